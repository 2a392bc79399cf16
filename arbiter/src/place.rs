//! Placing one workload: the best offer, the runners-up, and what came nearest where none will do.
//!
//! Work is done once a class where it can be: place and fit checks, and the [`Course`]. Within a
//! class offers are looked at from the cheapest up, until none that follows can matter.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::claim::{Claim, ClaimSpec, Device};
use crate::decision::{MISSES_SHOWN, Miss, RANKED_SHOWN, Ranked, Saving, StoppedBy};
use crate::fit::{self, All, First, Sink};
use crate::market::Class;
use crate::money::{Usd, UsdPerHour};
use crate::objective::Course;
use crate::obstacle::{Check, Obstacle};
use crate::offer::{Capacity, Offer, OfferId};
use crate::workload::{Work, Workload};
use crate::world::{ProviderState, Switch, Unavailable, World};

/// One pass over a world at a time: the world, indexed, and what is taken so far.
pub(crate) struct Pass<'a> {
    pub(crate) world: &'a World,
    pub(crate) now: Timestamp,
    now_millis: i64,
    providers: HashMap<&'a str, usize>,
    unavailable: HashMap<&'a OfferId, &'a Unavailable>,
    taken: Taken<'a>,
}

/// What unfinished claims, and those planned in this pass, take.
struct Taken<'a> {
    slots: HashMap<&'a OfferId, u32>,
    /// By provider.
    hourly: Vec<UsdPerHour>,
    machines: Vec<u32>,
    outstanding: Vec<Usd>,
    /// By budget.
    budgets: Vec<Usd>,
    /// By uid of the workload.
    workloads: HashMap<&'a str, Usd>,
}

/// What a claim may still cost.
fn outstanding(claim: &Claim) -> Usd {
    claim
        .spec
        .reserved
        .saturating_sub(claim.spent)
        .max(Usd::ZERO)
}

/// An offer that will do.
#[derive(Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub(crate) offer: &'a Offer,
    pub(crate) device: Device,
    pub(crate) course: Course,
    pub(crate) total: Usd,
    pub(crate) promise: Promise,
}

/// How a place stands to the deadline; the better first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Promise {
    /// Met even if things go badly, or there is none.
    Kept,
    /// Expected to be met; may be missed by so many milliseconds.
    AtRisk(i64),
    /// Expected to be missed by so many milliseconds.
    Broken(i64),
}

impl<'a> Candidate<'a> {
    /// What candidates are ordered by: the deadline, then dollars, then price, then id. How far a
    /// deadline is at risk does not count; once it is broken, the soonest end comes first.
    pub(crate) fn key(&self) -> (u8, i64, Usd, UsdPerHour, &'a OfferId) {
        let (tier, late) = match self.promise {
            Promise::Kept => (0, 0),
            Promise::AtRisk(_) => (1, 0),
            Promise::Broken(late) => (2, late),
        };
        (tier, late, self.total, self.offer.price, &self.offer.id)
    }

    pub(crate) fn ranked(&self, obstacle: Option<Obstacle>) -> Ranked {
        Ranked {
            offer: self.offer.clone(),
            device: self.device,
            cost: self.course.breakdown(self.offer.price),
            obstacle,
        }
    }

    /// Why this one, though nothing stands in its way, was not taken.
    pub(crate) fn against(&self, chosen: &Candidate<'_>) -> Obstacle {
        let by = self.total.saturating_sub(chosen.total);
        if by > Usd::ZERO {
            Obstacle::Dearer { by }
        } else {
            Obstacle::NotPreferred {
                late_millis: match self.promise {
                    Promise::Kept => 0,
                    Promise::AtRisk(late) | Promise::Broken(late) => late,
                },
            }
        }
    }
}

/// The best few of what was seen, in order.
struct Best<'a> {
    list: Vec<Candidate<'a>>,
    /// How many were ever taken in.
    taken: u32,
}

impl<'a> Best<'a> {
    fn new() -> Best<'a> {
        Best {
            list: Vec::with_capacity(RANKED_SHOWN + 1),
            taken: 0,
        }
    }

    /// Whether a candidate would be kept.
    fn wants(&self, candidate: &Candidate<'a>) -> bool {
        self.list.len() < RANKED_SHOWN
            || self
                .list
                .last()
                .is_some_and(|worst| candidate.key() < worst.key())
    }

    fn take(&mut self, candidate: Candidate<'a>) {
        let at = self
            .list
            .partition_point(|kept| kept.key() < candidate.key());
        self.list.insert(at, candidate);
        self.list.truncate(RANKED_SHOWN);
        self.taken += 1;
    }
}

/// What a search found.
pub(crate) struct Found<'a> {
    /// Offers that can be taken, the best first.
    pub(crate) takeable: Vec<Candidate<'a>>,
    /// Offers with a dated price only, the best first.
    dated: Vec<Candidate<'a>>,
    /// The cheapest on-demand offer, for sale or not.
    on_demand: Option<Candidate<'a>>,
    /// Offers stopped, by check.
    stopped: Vec<u32>,
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
                hourly: vec![UsdPerHour::ZERO; world.providers.len()],
                machines: vec![0; world.providers.len()],
                outstanding: vec![Usd::ZERO; world.providers.len()],
                budgets: vec![Usd::ZERO; world.budgets.len()],
                workloads: HashMap::new(),
            },
            providers,
            unavailable: HashMap::with_capacity(world.unavailable.len()),
        };
        // Of several entries for one offer the longest counts.
        for entry in &world.unavailable {
            let longest = pass.unavailable.entry(&entry.offer).or_insert(entry);
            if entry.until > longest.until {
                *longest = entry;
            }
        }
        for claim in &world.claims {
            let spec = &claim.spec;
            if claim.is_unfinished() && except != Some(spec.owner.uid.as_str()) {
                pass.reserve(
                    &spec.offer,
                    &spec.owner.namespace,
                    &spec.owner.uid,
                    outstanding(claim),
                );
            }
        }
        pass
    }

    /// Takes an offer's slot and money.
    pub(crate) fn reserve(&mut self, offer: &'a Offer, namespace: &str, uid: &'a str, cost: Usd) {
        let taken = &mut self.taken;
        *taken.slots.entry(&offer.id).or_default() += 1;
        if let Some(&provider) = self.providers.get(offer.provider.as_str()) {
            taken.hourly[provider] = taken.hourly[provider].saturating_add(offer.price);
            taken.machines[provider] = taken.machines[provider].saturating_add(1);
            taken.outstanding[provider] = taken.outstanding[provider].saturating_add(cost);
        }
        for (budget, taken) in self.world.budgets.iter().zip(&mut taken.budgets) {
            if budget.counts(namespace, uid) {
                *taken = taken.saturating_add(cost);
            }
        }
        let own = taken.workloads.entry(uid).or_default();
        *own = own.saturating_add(cost);
    }

    fn provider(&self, name: &str) -> Option<&'a ProviderState> {
        self.providers
            .get(name)
            .map(|&index| &self.world.providers[index])
    }

    /// Finds the best offers for one machine of a workload.
    pub(crate) fn search(&self, workload: &'a Workload) -> Found<'a> {
        let mut takeable = Best::new();
        let mut dated = Best::new();
        let mut on_demand: Option<Candidate<'a>> = None;
        let mut stopped = vec![0u32; Check::ALL.len()];
        for (class, members) in self.world.market.classes() {
            let Some(cheapest) = members.iter().next() else {
                continue;
            };
            let count = members.len() as u32;
            let mut first = First::default();
            let Some(provider) = self.check_provider(workload, class, &mut first) else {
                stopped[first.0.unwrap_or(Check::ProviderUnknown) as usize] += count;
                continue;
            };
            // An on-demand class is compared with even where another capacity type is asked for.
            let compare = class.capacity == Capacity::OnDemand;
            let other_capacity = workload
                .placement
                .capacity
                .is_some_and(|needs| needs != class.capacity);
            if other_capacity {
                stopped[Check::CapacityType as usize] += count;
                if !compare {
                    continue;
                }
            }
            let choice = self.choose_device(workload, class, provider, &mut first);
            let Some((device, course, promise)) = choice else {
                if !other_capacity {
                    stopped[first.0.unwrap_or(Check::Engine) as usize] += count;
                }
                continue;
            };
            let candidate = |offer: &'a Offer| Candidate {
                offer,
                device,
                course,
                total: course.dollars(offer.price),
                promise,
            };
            if compare
                && on_demand
                    .as_ref()
                    .is_none_or(|best| candidate(cheapest).key() < best.key())
            {
                let found = members
                    .iter()
                    .map(candidate)
                    .take_while(|one| on_demand.as_ref().is_none_or(|best| one.key() < best.key()))
                    .find(|one| {
                        self.check_offer(workload, one.offer, one.total, &mut First::default())
                    });
                on_demand = found.or(on_demand);
            }
            if other_capacity {
                continue;
            }
            let (best, pruned) = match class.buyable {
                true => (&mut takeable, Check::Dearer),
                false => (&mut dated, Check::NotForSale),
            };
            for (seen, offer) in members.iter().enumerate() {
                let one = candidate(offer);
                let rest = count - seen as u32;
                if !best.wants(&one) {
                    stopped[pruned as usize] += rest;
                    break;
                }
                let mut first = First::default();
                if self.check_offer(workload, offer, one.total, &mut first) {
                    self.check_now(workload, offer, &one.course, one.total, &mut first);
                }
                match first.0 {
                    None => best.take(one),
                    Some(Check::NotForSale) => {
                        best.take(one);
                        stopped[Check::NotForSale as usize] += 1;
                    }
                    // What follows costs no less.
                    Some(check) if rises_with_price(check) => {
                        stopped[check as usize] += rest;
                        break;
                    }
                    Some(check) => stopped[check as usize] += 1,
                }
            }
        }
        // Each offer is counted once: the chosen one as none, what it beat as dearer.
        let others = takeable.taken.saturating_sub(1);
        stopped[Check::Dearer as usize] += others;
        Found {
            takeable: takeable.list,
            dated: dated.list,
            on_demand,
            stopped,
        }
    }

    /// Checks of the provider of a class.
    fn check_provider(
        &self,
        workload: &Workload,
        class: &Class,
        sink: &mut impl Sink,
    ) -> Option<&'a ProviderState> {
        let Some(state) = self.provider(&class.provider) else {
            sink.hit(Check::ProviderUnknown, || Obstacle::ProviderUnknown {
                provider: class.provider.clone(),
            });
            return None;
        };
        let listed = &workload.placement.providers;
        if !listed.is_empty()
            && !listed.contains(&state.name)
            && !sink.hit(Check::ProviderNotListed, || Obstacle::ProviderNotListed {
                provider: state.name.clone(),
            })
        {
            return None;
        }
        let namespace = &workload.id.namespace;
        if state
            .allowed_namespaces
            .as_ref()
            .is_some_and(|allowed| !allowed.contains(namespace))
            && !sink.hit(Check::NamespaceNotAllowed, || {
                Obstacle::NamespaceNotAllowed {
                    provider: state.name.clone(),
                    namespace: namespace.clone(),
                }
            })
        {
            return None;
        }
        let open = match state.state {
            Switch::Enabled => true,
            // A dated price is compared with, whatever its provider is doing now.
            Switch::Cordoned | Switch::Disabled => !class.buyable,
        };
        if !open
            && !sink.hit(Check::ProviderOff, || Obstacle::ProviderOff {
                provider: state.name.clone(),
            })
        {
            return None;
        }
        if class.owner == crate::offer::HostOwner::Unknown
            && !workload.placement.allow_untrusted_hosts
            && !sink.hit(Check::UntrustedHost, || Obstacle::UntrustedHost)
        {
            return None;
        }
        Some(state)
    }

    /// The part of a class's machines that would compute, and the course on it: the first that
    /// fits; of two that fit the faster.
    fn choose_device(
        &self,
        workload: &Workload,
        class: &Class,
        provider: &ProviderState,
        first: &mut First,
    ) -> Option<(Device, Course, Promise)> {
        let (better, other) = fit::devices(workload, class);
        let mut chosen: Option<(Device, Course, Promise)> = None;
        for device in [Some(better), other].into_iter().flatten() {
            let mut sink = First::default();
            match self.check_device(workload, class, provider, device, &mut sink) {
                Some((course, promise)) if sink.0.is_none() => {
                    let faster = chosen.is_none_or(|(_, best, _)| {
                        course.millis_to_end().unwrap_or(0) < best.millis_to_end().unwrap_or(0)
                    });
                    if faster {
                        chosen = Some((device, course, promise));
                    }
                }
                Some(_) | None => first.0 = first.0.max(sink.0),
            }
        }
        if chosen.is_some() {
            first.0 = None;
        }
        chosen
    }

    /// Everything that a class and one of its devices decide.
    fn check_device(
        &self,
        workload: &Workload,
        class: &Class,
        provider: &ProviderState,
        device: Device,
        sink: &mut impl Sink,
    ) -> Option<(Course, Promise)> {
        if !fit::check(workload, &self.world.support, class, device, sink) {
            return None;
        }
        let Some(course) = Course::of(self.world, workload, class, provider, device) else {
            match device {
                Device::Cpu => sink.hit(Check::Vcpus, || Obstacle::Vcpus {
                    needs: workload.resources.vcpu_milli.max(1000),
                    has: class.vcpu_milli,
                }),
                Device::Accelerators => {
                    sink.hit(Check::AcceleratorModel, || Obstacle::AcceleratorModel {
                        needs: "a known accelerator".to_owned(),
                        has: class.accelerators.as_ref().map_or_else(
                            || "no accelerator".to_owned(),
                            |devices| devices.model.clone(),
                        ),
                    })
                }
            };
            return None;
        };
        if let (Work::Serving(work), Some(millis)) = (&workload.work, course.millis_per_token)
            && let Some(limit) = work.max_millis_per_token
            && millis > f64::from(limit)
            && !sink.hit(Check::Latency, || Obstacle::Latency {
                limit,
                expected: millis.ceil() as u32,
            })
        {
            return None;
        }
        let promise = self.promise(workload, &course);
        // A promise that cannot be kept is not begun with; one that is breaking is made the best of.
        if let (Promise::Broken(late_millis), Some(finish_by)) = (promise, workload.finish_by)
            && workload.progress.placements == 0
            && !sink.hit(Check::Deadline, || Obstacle::Deadline {
                finish_by,
                late_millis,
            })
        {
            return None;
        }
        Some((course, promise))
    }

    fn promise(&self, workload: &Workload, course: &Course) -> Promise {
        let (Some(finish_by), Some(expected), Some(late)) = (
            workload.finish_by,
            course.millis_to_end(),
            course.late_millis_to_end(),
        ) else {
            return Promise::Kept;
        };
        let after = |millis: i64| {
            self.now_millis
                .saturating_add(millis)
                .saturating_sub(finish_by.as_millisecond())
        };
        if after(expected) > 0 {
            Promise::Broken(after(expected))
        } else if after(late) > 0 {
            Promise::AtRisk(after(late))
        } else {
            Promise::Kept
        }
    }

    /// Constraints of the workload that depend on the offer: they hold for dated prices too.
    fn check_offer(
        &self,
        workload: &Workload,
        offer: &Offer,
        total: Usd,
        sink: &mut impl Sink,
    ) -> bool {
        let placement = &workload.placement;
        let excluded = placement.exclude_regions.contains(&offer.region);
        if (excluded
            || !(placement.regions.is_empty() || placement.regions.contains(&offer.region)))
            && !sink.hit(Check::Region, || Obstacle::Region {
                has: offer.region.clone(),
                excluded,
            })
        {
            return false;
        }
        if !(placement.zones.is_empty() || placement.zones.contains(&offer.zone))
            && !sink.hit(Check::Zone, || Obstacle::Zone {
                has: offer.zone.clone(),
            })
        {
            return false;
        }
        if let Some(limit) = placement.max_hourly_price
            && offer.price > limit
            && !sink.hit(Check::HourlyPrice, || Obstacle::HourlyPrice {
                limit,
                price: offer.price,
            })
        {
            return false;
        }
        if let Some(limit) = workload.max_total_cost {
            let own = self.taken.workloads.get(workload.id.uid.as_str());
            let left = limit
                .saturating_sub(workload.progress.spent)
                .saturating_sub(own.copied().unwrap_or(Usd::ZERO));
            if total > left
                && !sink.hit(Check::TotalCost, || Obstacle::TotalCost {
                    left,
                    needs: total,
                })
            {
                return false;
            }
        }
        true
    }

    /// What stands in the way of taking the offer now.
    fn check_now(
        &self,
        workload: &Workload,
        offer: &Offer,
        course: &Course,
        total: Usd,
        sink: &mut impl Sink,
    ) -> bool {
        if let Some(note) = offer.not_for_sale() {
            return sink.hit(Check::NotForSale, || Obstacle::NotForSale { note });
        }
        let skew = i64::from(self.world.assumptions.clock_skew_seconds) * 1000;
        let quoted = offer.quoted_at.as_millisecond();
        if quoted.saturating_sub(self.now_millis) > skew
            && !sink.hit(Check::FutureQuote, || Obstacle::FutureQuote {
                quoted_at: offer.quoted_at,
            })
        {
            return false;
        }
        let expires = quoted.saturating_add(i64::from(offer.ttl_seconds) * 1000);
        if expires <= self.now_millis
            && !sink.hit(Check::StaleQuote, || Obstacle::StaleQuote {
                quoted_at: offer.quoted_at,
                expired_at: offer.expires_at(),
            })
        {
            return false;
        }
        if let Some(entry) = self.unavailable.get(&offer.id)
            && entry.until > self.now
            && !sink.hit(Check::Unavailable, || Obstacle::Unavailable {
                until: entry.until,
                reason: entry.reason,
            })
        {
            return false;
        }
        if let Some(slots) = offer.slots
            && self.taken.slots.get(&offer.id).copied().unwrap_or(0) >= slots
            && !sink.hit(Check::NoSlot, || Obstacle::NoSlot { slots })
        {
            return false;
        }
        self.check_provider_limits(offer, course, total, sink)
            && self.check_budgets(workload, offer, course, total, sink)
    }

    fn check_provider_limits(
        &self,
        offer: &Offer,
        course: &Course,
        total: Usd,
        sink: &mut impl Sink,
    ) -> bool {
        let Some(&index) = self.providers.get(offer.provider.as_str()) else {
            return true;
        };
        let state = &self.world.providers[index];
        if let Some(limit) = state.max_machines
            && self.taken.machines[index] >= limit
            && !sink.hit(Check::ProviderMachines, || Obstacle::ProviderMachines {
                limit,
            })
        {
            return false;
        }
        if let Some(limit) = state.max_hourly {
            let left = limit
                .one_hour()
                .saturating_sub(self.taken.hourly[index].one_hour());
            let needs = offer.price.one_hour();
            if needs > left
                && !sink.hit(Check::ProviderHourly, || Obstacle::ProviderHourly {
                    left,
                    needs,
                })
            {
                return false;
            }
        }
        if let Some(month) = &state.monthly {
            let left = month
                .limit
                .saturating_sub(month.spent)
                .saturating_sub(self.taken.outstanding[index]);
            let needs = self.cost_until(course, offer.price, total, month.ends_at);
            if needs > left
                && !sink.hit(Check::ProviderMonthly, || Obstacle::ProviderMonthly {
                    left,
                    needs,
                })
            {
                return false;
            }
        }
        true
    }

    fn check_budgets(
        &self,
        workload: &Workload,
        offer: &Offer,
        course: &Course,
        total: Usd,
        sink: &mut impl Sink,
    ) -> bool {
        let (namespace, uid) = (&workload.id.namespace, &workload.id.uid);
        for (budget, &taken) in self.world.budgets.iter().zip(&self.taken.budgets) {
            if !budget.counts(namespace, uid) {
                continue;
            }
            let left = budget
                .limit
                .saturating_sub(budget.spent)
                .saturating_sub(taken);
            let needs = self.cost_until(course, offer.price, total, budget.period_ends_at);
            if needs > left
                && !sink.hit(Check::Budget, || Obstacle::Budget {
                    budget: budget.name.clone(),
                    left,
                    needs,
                })
            {
                return false;
            }
        }
        true
    }

    /// What an offer costs until a period ends, and not more than in all.
    fn cost_until(&self, course: &Course, price: UsdPerHour, total: Usd, end: Timestamp) -> Usd {
        let millis = end.as_millisecond().saturating_sub(self.now_millis);
        course.dollars_within(price, millis.max(0)).min(total)
    }

    /// The offers that came nearest, each with everything that would have to give: fewest
    /// obstacles first, then the smallest distance. At most two of the same kind.
    pub(crate) fn misses(&self, workload: &'a Workload) -> Vec<Miss> {
        let mut seen: Vec<(usize, f64, Verdict<'a>)> = self
            .verdicts(workload)
            .into_iter()
            .filter(|verdict| !verdict.obstacles.is_empty())
            .map(|verdict| {
                let distance = verdict.obstacles.iter().map(Obstacle::distance).sum();
                (verdict.obstacles.len(), distance, verdict)
            })
            .collect();
        seen.sort_by(|a, b| {
            (a.0, a.1)
                .partial_cmp(&(b.0, b.1))
                .unwrap_or(std::cmp::Ordering::Equal)
                .then_with(|| a.2.offer.price.cmp(&b.2.offer.price))
                .then_with(|| a.2.offer.id.cmp(&b.2.offer.id))
        });
        let mut kinds: HashMap<Vec<Check>, u32> = HashMap::new();
        seen.into_iter()
            .filter(|(_, _, verdict)| {
                let kind = verdict.obstacles.iter().map(Obstacle::check).collect();
                let count = kinds.entry(kind).or_default();
                *count += 1;
                *count <= 2
            })
            .take(MISSES_SHOWN)
            .map(|(_, _, verdict)| Miss {
                total: verdict
                    .course
                    .map(|(course, _)| course.dollars(verdict.offer.price)),
                offer: verdict.offer.clone(),
                obstacles: verdict.obstacles,
            })
            .collect()
    }

    /// Every offer with everything that stands in its way. For people who ask, not for deciding.
    pub(crate) fn verdicts(&self, workload: &'a Workload) -> Vec<Verdict<'a>> {
        let mut verdicts = Vec::with_capacity(self.world.market.len());
        for (class, members) in self.world.market.classes() {
            let mut provider_sink = All::default();
            let provider = self.check_provider(workload, class, &mut provider_sink);
            if let Some(needs) = workload.placement.capacity
                && needs != class.capacity
            {
                let has = class.capacity;
                provider_sink.0.push(Obstacle::CapacityType { needs, has });
            }
            let (better, other) = fit::devices(workload, class);
            let on_device = [Some(better), other]
                .into_iter()
                .flatten()
                .map(|device| {
                    let mut sink = All::default();
                    let course = provider.and_then(|provider| {
                        self.check_device(workload, class, provider, device, &mut sink)
                    });
                    (device, course, sink.0)
                })
                .min_by(|(_, a_course, a), (_, b_course, b)| {
                    let millis = |course: &Option<(Course, Promise)>| {
                        course.and_then(|(course, _)| course.millis_to_end())
                    };
                    (a.len(), millis(a_course)).cmp(&(b.len(), millis(b_course)))
                });
            let Some((device, course, device_obstacles)) = on_device else {
                continue;
            };
            for offer in members.iter() {
                let mut sink = All(provider_sink.0.clone());
                sink.0.extend(device_obstacles.iter().cloned());
                match &course {
                    Some((course, _)) => {
                        let total = course.dollars(offer.price);
                        self.check_offer(workload, offer, total, &mut sink);
                        self.check_now(workload, offer, course, total, &mut sink);
                    }
                    // Without a course there are no dollars to check, but there are places and prices.
                    None => {
                        self.check_offer(workload, offer, Usd::ZERO, &mut sink);
                        let dated = offer.not_for_sale();
                        sink.0
                            .extend(dated.map(|note| Obstacle::NotForSale { note }));
                    }
                }
                sink.0.sort_by_key(Obstacle::check);
                verdicts.push(Verdict {
                    offer,
                    device,
                    course,
                    obstacles: sink.0,
                });
            }
        }
        verdicts
    }
}

/// One offer and everything that stands in its way.
pub(crate) struct Verdict<'a> {
    pub(crate) offer: &'a Offer,
    pub(crate) device: Device,
    pub(crate) course: Option<(Course, Promise)>,
    pub(crate) obstacles: Vec<Obstacle>,
}

/// Whether what a check stopped stops everything dearer of the same class too.
const fn rises_with_price(check: Check) -> bool {
    matches!(
        check,
        Check::HourlyPrice
            | Check::TotalCost
            | Check::ProviderMachines
            | Check::ProviderHourly
            | Check::ProviderMonthly
            | Check::Budget
    )
}

impl<'a> Found<'a> {
    /// The places to show: the chosen one, then what it beat and what is not for sale, by dollars.
    pub(crate) fn ranked(&self) -> Vec<Ranked> {
        let chosen = self.takeable.first();
        let others = self.takeable.iter().skip(1).map(|one| {
            let obstacle = chosen.map(|chosen| one.against(chosen));
            (one, obstacle)
        });
        let dated = self.dated.iter().map(|one| {
            let obstacle = one
                .offer
                .not_for_sale()
                .map(|note| Obstacle::NotForSale { note });
            (one, obstacle)
        });
        let mut rest: Vec<(&Candidate<'a>, Option<Obstacle>)> = others.chain(dated).collect();
        rest.sort_by(|(a, _), (b, _)| a.key().cmp(&b.key()));
        chosen
            .map(|chosen| chosen.ranked(None))
            .into_iter()
            .chain(rest.into_iter().map(|(one, obstacle)| one.ranked(obstacle)))
            .take(RANKED_SHOWN)
            .collect()
    }

    /// How many offers each check stopped, by name.
    pub(crate) fn stopped(&self) -> Vec<StoppedBy> {
        let mut list: Vec<StoppedBy> = Check::ALL
            .iter()
            .zip(&self.stopped)
            .filter(|(_, offers)| **offers > 0)
            .map(|(check, &offers)| StoppedBy {
                constraint: check.name().to_owned(),
                offers,
            })
            .collect();
        list.sort();
        list
    }

    /// What the choice saves against on-demand.
    pub(crate) fn saving(&self) -> Option<Saving> {
        let chosen = self.takeable.first()?;
        let against = self.on_demand.as_ref()?;
        Some(Saving {
            against: against.offer.id.clone(),
            note: against.offer.not_for_sale(),
            would_cost: against.total,
            costs: chosen.total,
            saved: against.total.saturating_sub(chosen.total),
        })
    }
}

/// The claim that takes a candidate.
pub(crate) fn claim_of(
    workload: &Workload,
    candidate: &Candidate<'_>,
    placement: u32,
    index: u32,
    now: Timestamp,
) -> ClaimSpec {
    ClaimSpec {
        name: crate::claim::claim_name(&workload.id, placement, index),
        owner: workload.id.clone(),
        placement,
        index,
        offer: candidate.offer.clone(),
        device: candidate.device,
        reserved: candidate.total,
        decided_at: now,
    }
}
