//! One pass over a world: the world, indexed, and what is taken so far.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::claim::Claim;
use crate::deadline::Guided;
use crate::money::{Usd, UsdPerHour};
use crate::offer::{Offer, OfferId};
use crate::spot::shelf::Key;
use crate::spread::Place;
use crate::watch::Watch;
use crate::world::{Budget, ProviderState, Unavailable, World};

/// One pass over a world at a time: the world, indexed, and what is taken so far.
pub(crate) struct Pass<'a> {
    pub(crate) world: &'a World,
    pub(crate) now: Timestamp,
    pub(crate) now_millis: i64,
    pub(crate) providers: HashMap<&'a str, usize>,
    /// Indices of the budgets of a namespace.
    budgets: HashMap<&'a str, Vec<usize>>,
    /// Claims by the uid of their owner.
    claims: HashMap<&'a str, Vec<&'a Claim>>,
    pub(crate) unavailable: HashMap<&'a OfferId, &'a Unavailable>,
    pub(crate) taken: Taken<'a>,
    /// Where no more replicas of the service that is decided go on spot.
    pub(crate) crowded: Vec<Place<'a>>,
    /// What jobs with a deadline have seen by now.
    pub(crate) watched: Vec<Watch>,
    /// Tables that were not there.
    pub(crate) tables: Vec<Key>,
}

/// What unfinished claims, and those planned in this pass, take.
pub(crate) struct Taken<'a> {
    pub(crate) slots: HashMap<&'a OfferId, u32>,
    /// By provider and what it is a share of.
    pub(crate) shares: HashMap<(&'a str, &'a str), u64>,
    /// By provider.
    pub(crate) hourly: Vec<UsdPerHour>,
    pub(crate) machines: Vec<u32>,
    pub(crate) outstanding: Vec<Usd>,
    /// By budget.
    pub(crate) budgets: Vec<Usd>,
    /// By uid of the workload.
    pub(crate) workloads: HashMap<&'a str, Usd>,
}

/// Which way an account goes.
#[derive(Clone, Copy)]
enum Way {
    Take,
    GiveBack,
}

/// What a claim may still cost.
fn outstanding(claim: &Claim) -> Usd {
    claim.spec.reserved.saturating_sub(claim.spent).max(Usd::ZERO)
}

impl<'a> Pass<'a> {
    /// Begins a pass: what unfinished claims hold is taken. Those of `except` are left out.
    pub(crate) fn new(world: &'a World, now: Timestamp, except: Option<&str>) -> Pass<'a> {
        let providers: HashMap<&str, usize> = world
            .providers
            .iter()
            .enumerate()
            .map(|(index, provider)| (provider.name.as_str(), index))
            .collect();
        let mut pass = Pass {
            world,
            now,
            now_millis: now.as_millisecond(),
            taken: Taken {
                slots: HashMap::new(),
                shares: HashMap::new(),
                hourly: vec![UsdPerHour::ZERO; world.providers.len()],
                machines: vec![0; world.providers.len()],
                outstanding: vec![Usd::ZERO; world.providers.len()],
                budgets: vec![Usd::ZERO; world.budgets.len()],
                workloads: HashMap::new(),
            },
            crowded: Vec::new(),
            watched: Vec::new(),
            tables: Vec::new(),
            providers,
            budgets: HashMap::new(),
            claims: HashMap::with_capacity(world.claims.len()),
            unavailable: HashMap::with_capacity(world.unavailable.len()),
        };
        // Of several entries for one offer the longest counts.
        for entry in &world.unavailable {
            let longest = pass.unavailable.entry(&entry.offer).or_insert(entry);
            if entry.until > longest.until {
                *longest = entry;
            }
        }
        for (index, budget) in world.budgets.iter().enumerate() {
            pass.budgets.entry(budget.namespace.as_str()).or_default().push(index);
        }
        for claim in &world.claims {
            let spec = &claim.spec;
            pass.claims.entry(spec.owner.uid.as_str()).or_default().push(claim);
            if claim.is_unfinished() && except != Some(spec.owner.uid.as_str()) {
                pass.hold(claim);
            }
        }
        pass
    }

    /// Keeps what the spot policy saw, and what it lacked.
    pub(crate) fn remember(&mut self, guided: Option<&Guided<'_>>) {
        let Some(Guided { watch, wants, .. }) = guided else { return };
        self.watched.retain(|seen| seen.workload != watch.workload);
        self.watched.push(watch.clone());
        if let Some(key) = wants.filter(|key| key.spec.is_makeable() && !self.tables.contains(key))
        {
            self.tables.push(key);
        }
    }

    /// The claims of a workload.
    pub(crate) fn claims_of(&self, uid: &str) -> &[&'a Claim] {
        self.claims.get(uid).map_or(&[], Vec::as_slice)
    }

    /// The budgets that count a workload, with their indices.
    pub(crate) fn budgets_of<'b>(
        &'b self,
        namespace: &'b str,
        uid: &'b str,
    ) -> impl Iterator<Item = (usize, &'a Budget)> + use<'a, 'b> {
        let indices = self.budgets.get(namespace).map_or(&[][..], Vec::as_slice);
        let all = indices.iter().map(|index| (*index, &self.world.budgets[*index]));
        all.filter(|(_, budget)| budget.counts(namespace, uid))
    }

    /// Of what a machine may still cost, the part that falls before a period's end.
    fn before(&self, end: Timestamp, price: UsdPerHour, cost: Usd) -> Usd {
        let millis = end.as_millisecond().saturating_sub(self.now_millis);
        price.for_millis(millis).min(cost)
    }

    /// Takes an offer's slot and money.
    pub(crate) fn reserve(&mut self, offer: &'a Offer, namespace: &str, uid: &'a str, cost: Usd) {
        self.account(offer, namespace, uid, cost, Way::Take);
    }

    /// The reverse of [`Pass::reserve`].
    pub(crate) fn give_back(&mut self, offer: &'a Offer, namespace: &str, uid: &'a str, cost: Usd) {
        self.account(offer, namespace, uid, cost, Way::GiveBack);
    }

    /// Takes what an unfinished claim holds.
    pub(crate) fn hold(&mut self, claim: &'a Claim) {
        let spec = &claim.spec;
        let id = &spec.owner;
        self.account(&spec.offer, &id.namespace, &id.uid, outstanding(claim), Way::Take);
    }

    /// The reverse of [`Pass::hold`], for a look at what there would be without the claim.
    pub(crate) fn release(&mut self, claim: &'a Claim) {
        let spec = &claim.spec;
        let id = &spec.owner;
        self.account(&spec.offer, &id.namespace, &id.uid, outstanding(claim), Way::GiveBack);
    }

    fn account(&mut self, offer: &'a Offer, namespace: &str, uid: &'a str, cost: Usd, way: Way) {
        let counted: Vec<(usize, Usd)> = self
            .budgets_of(namespace, uid)
            .map(|(index, budget)| (index, self.before(budget.period_ends_at, offer.price, cost)))
            .collect();
        let month = self.provider(&offer.provider).and_then(|state| state.monthly.as_ref());
        let this_month = month.map_or(cost, |month| self.before(month.ends_at, offer.price, cost));
        let money = |sum: &mut Usd, by: Usd| match way {
            Way::Take => *sum = sum.saturating_add(by),
            Way::GiveBack => *sum = sum.saturating_sub(by),
        };
        let count = |sum: &mut u32| match way {
            Way::Take => *sum = sum.saturating_add(1),
            Way::GiveBack => *sum = sum.saturating_sub(1),
        };
        let taken = &mut self.taken;
        count(taken.slots.entry(&offer.id).or_default());
        for share in &offer.shares {
            let sum = taken.shares.entry((&offer.provider, &share.of)).or_default();
            match way {
                Way::Take => *sum = sum.saturating_add(share.amount),
                Way::GiveBack => *sum = sum.saturating_sub(share.amount),
            }
        }
        if let Some(&provider) = self.providers.get(offer.provider.as_str()) {
            let hourly = &mut taken.hourly[provider];
            *hourly = match way {
                Way::Take => hourly.saturating_add(offer.price),
                Way::GiveBack => hourly.saturating_sub(offer.price),
            };
            count(&mut taken.machines[provider]);
            money(&mut taken.outstanding[provider], this_month);
        }
        for (index, cost) in counted {
            money(&mut taken.budgets[index], cost);
        }
        money(taken.workloads.entry(uid).or_default(), cost);
    }

    pub(crate) fn provider(&self, name: &str) -> Option<&'a ProviderState> {
        self.providers.get(name).map(|&index| &self.world.providers[index])
    }
}
