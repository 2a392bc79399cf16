//! The question that a policy is put, in the model's words, and what its answer means here.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::{Guided, OnDemand, Spot, tick};
use crate::candidates::Candidate;
use crate::claim::{Claim, Phase};
use crate::decision::{Advice, Advised};
use crate::money::{Usd, UsdPerHour};
use crate::objective::Course;
use crate::offer::{Capacity, OfferId};
use crate::spot::learned::Learned;
use crate::spot::model::{Choice, Kind, Machine, Place, Policy, Quote, Terms, View, Zone};
use crate::spot::policies::P1;
use crate::spot::safety;
use crate::spot::shelf::{Key, Shelf};
use crate::spot::table::Spec;
use crate::watch::Watch;
use crate::workload::Workload;

/// Everything that the answer depends on.
pub(super) struct Question<'q, 'a> {
    pub(super) workload: &'a Workload,
    /// The machine that the job has.
    pub(super) held: Option<&'a Claim>,
    /// What would do, the best first.
    pub(super) takeable: &'q [Candidate<'a>],
    pub(super) on_demand: OnDemand<'a>,
    /// The zones; at least one.
    pub(super) spots: Vec<Spot<'a>>,
    pub(super) memory: Option<&'a Watch>,
    /// Seconds until the deadline.
    pub(super) left: i64,
}

impl<'a> Question<'_, 'a> {
    /// Puts it to P1, and to the exact safety set.
    pub(super) fn put(&self, shelf: &Shelf, now: Timestamp) -> Guided<'a> {
        let (terms, quotes) = (self.terms(), self.quotes());
        let machine = self.held.and_then(|claim| self.machine(claim, &terms, now));
        let view = View {
            terms: &terms,
            tick: 0,
            work_left: terms.work,
            machine,
            home: None,
            zones: &quotes,
        };
        let ids: Vec<&OfferId> = self.spots.iter().map(|spot| &spot.offer.id).collect();
        let learned = match self.memory {
            Some(watch) => watch.learned(&ids, now),
            None => Learned::of(ids.len()),
        };
        let cheapest = quotes.iter().map(|quote| quote.spot_price).min().unwrap_or_default();
        let on_demand = quotes.first().map(|quote| quote.on_demand_price).unwrap_or_default();
        let ratio = cheapest.as_f64() / on_demand.as_f64().max(f64::MIN_POSITIVE);
        let spec = Spec::shared(&terms, ratio);
        let tables = Arc::new(shelf.tables(spec));
        let policy = P1::knowing(&terms, Arc::clone(&tables), learned);
        let choice = safety::guarded(&view, policy.choose(&view));
        let (choice, short_of_money) = match choice {
            Choice::Run(Place { zone, kind: Kind::Spot }) if !self.spots[zone].payable => {
                (Choice::Run(Place { zone, kind: Kind::OnDemand }), true)
            }
            choice => (choice, false),
        };
        let wants = tables.missed().map(|law| Key { spec, law });
        let (says, takes, vetoed) = self.answer(&view, choice);
        let sure = SignedDuration::from_secs(view.slack() - terms.shortest_restart());
        let advice = Advice {
            says,
            policy: if wants.is_some() { "r1" } else { "p1" }.to_owned(),
            zones: u32::try_from(self.spots.len()).unwrap_or(u32::MAX),
            slack_seconds: view.slack(),
            restart_seconds: terms.shortest_restart(),
            refused: self.on_demand.refused,
            line: now.saturating_add(sure).unwrap_or(now),
            on_demand: self.on_demand.candidate.offer.id.clone(),
            short_of_money,
        };
        let offers = self.spots.iter().map(|spot| (spot.offer, spot.sight));
        let watch = Watch::after(self.memory, &self.workload.id.uid, offers, now);
        let leaves = says == Advised::OnDemand && self.held.is_some();
        Guided { advice, takes, vetoed, leaves, wants, watch }
    }

    fn terms(&self) -> Terms {
        let seconds = |millis: i64| millis.saturating_add(999) / 1_000;
        let tick = tick(self.left);
        let OnDemand { bounds, refused, .. } = &self.on_demand;
        let work = self.spots.iter().map(|spot| spot.bounds.work).fold(bounds.work, i64::max);
        let refusals = bounds.launch.saturating_mul(i64::from(*refused));
        let late = bounds.restart(tick * 1_000).saturating_add(refusals);
        let restart = |spot: &Spot<'_>| seconds(spot.bounds.restart(tick * 1_000).max(late));
        let zone = |spot: &Spot<'_>| Zone { restart: restart(spot), probe: Usd::ZERO };
        Terms {
            tick,
            work: seconds(work).max(1),
            deadline: self.left.max(0),
            zones: self.spots.iter().map(zone).collect(),
            egress: Vec::new(),
        }
    }

    /// Prices of an hour of on-demand's work.
    fn quotes(&self) -> Vec<Quote> {
        let on_demand = &self.on_demand.candidate;
        let hourly = |price: UsdPerHour, course: &Course| course.hourly(price, &on_demand.course);
        let on_demand_price = hourly(on_demand.offer.price, &on_demand.course);
        let quote = |spot: &Spot<'_>| Quote {
            spot: spot.sight,
            spot_price: hourly(spot.offer.price, &spot.course),
            on_demand_price,
        };
        self.spots.iter().map(quote).collect()
    }

    /// The machine that is held, as the model sees it.
    fn machine(&self, claim: &Claim, terms: &Terms, now: Timestamp) -> Option<Machine> {
        let offer = &claim.spec.offer;
        let place = match offer.capacity {
            Capacity::Spot => {
                let zone = self.spots.iter().position(|spot| spot.offer.id == offer.id)?;
                Place { zone, kind: Kind::Spot }
            }
            // Its zone does not matter: on-demand is one.
            Capacity::OnDemand | Capacity::Owned => Place { zone: 0, kind: Kind::OnDemand },
        };
        let restart = terms.zones[place.zone].restart;
        let pending = match claim.phase {
            Phase::Launched { at, .. } => restart - now.duration_since(at).as_secs().max(0),
            _ => restart,
        };
        Some(Machine { place, pending: pending.clamp(0, restart) })
    }

    /// What a choice means: the words for it, what may be taken then, and what may not though it would do.
    fn answer(
        &self,
        view: &View<'_>,
        choice: Choice,
    ) -> (Advised, Vec<Candidate<'a>>, Vec<Candidate<'a>>) {
        let zone_of =
            |one: &Candidate<'_>| self.spots.iter().position(|spot| spot.offer.id == one.offer.id);
        let sure = |one: &Candidate<'_>| one.offer.capacity != Capacity::Spot;
        let safe = |one: &Candidate<'_>| {
            let allows =
                |zone: usize| self.spots[zone].payable && safety::allows(view, Choice::spot(zone));
            sure(one) || zone_of(one).is_some_and(allows)
        };
        let split = |keep: &dyn Fn(&Candidate<'_>) -> bool| -> (Vec<_>, Vec<_>) {
            self.takeable.iter().copied().partition(|one| keep(one))
        };
        // On-demand is one, whatever its zone.
        let is = |place: Place| match view.machine {
            Some(machine) if place.kind == Kind::OnDemand => machine.place.kind == Kind::OnDemand,
            machine => machine.is_some_and(|machine| machine.place == place),
        };
        let ((takes, vetoed), says) = match choice {
            Choice::Nothing if view.machine.is_none() => (split(&|_| false), Advised::Wait),
            // A machine is not given up for nothing: it would be had anew in a while.
            Choice::Nothing => (split(&sure), Advised::Stay),
            Choice::Run(place) if is(place) => match place.kind {
                Kind::Spot => (split(&safe), Advised::Stay),
                Kind::OnDemand => (split(&sure), Advised::Stay),
            },
            Choice::Run(Place { zone, kind: Kind::Spot }) => {
                let (mut takes, vetoed) = split(&safe);
                takes.retain(|one| zone_of(one) != Some(zone));
                takes.splice(0..0, self.spots[zone].candidate);
                ((takes, vetoed), Advised::Spot)
            }
            // Where on-demand is no longer sure to end in time either, what runs is the best there is.
            Choice::Run(_)
                if view.machine.is_some() && view.slack() < view.terms.shortest_restart() =>
            {
                (split(&|_| false), Advised::Stay)
            }
            Choice::Run(_) => {
                let (mut takes, vetoed) = split(&sure);
                let fallback = self.on_demand.candidate;
                takes.retain(|one| one.offer.id != fallback.offer.id);
                let at = takes.partition_point(|one| one.key() < fallback.key());
                takes.insert(at, fallback);
                ((takes, vetoed), Advised::OnDemand)
            }
        };
        (says, takes, vetoed)
    }
}
