//! Offers that will do: their order, the best of them, and what is shown of them.

use jiff::Timestamp;

use crate::claim::{ClaimSpec, Device, RUNNERS_UP, RunnerUp};
use crate::deadline::Guided;
use crate::decision::{RANKED_SHOWN, Ranked, Saving, StoppedBy};
use crate::money::{Usd, UsdPerHour};
use crate::objective::Course;
use crate::obstacle::{Check, Obstacle};
use crate::offer::{Offer, OfferId};
use crate::search::Stopped;
use crate::workload::Workload;

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

impl Promise {
    /// What counts before dollars; the lower first.
    pub(crate) const fn tier(self) -> (u8, i64) {
        match self {
            Promise::Kept => (0, 0),
            Promise::AtRisk(_) => (1, 0),
            Promise::Broken(late) => (2, late),
        }
    }
}

impl<'a> Candidate<'a> {
    /// What candidates are ordered by: the deadline, then dollars, then price, then id. How far a
    /// deadline is at risk does not count; once it is broken, the soonest end comes first.
    pub(crate) fn key(&self) -> (u8, i64, Usd, UsdPerHour, &'a OfferId) {
        let (tier, late) = self.promise.tier();
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

    fn runner_up(&self) -> RunnerUp {
        RunnerUp { offer: self.offer.id.clone(), total: self.total }
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

/// What a search found.
pub(crate) struct Found<'a> {
    /// Offers that can be taken, the best first.
    pub(crate) takeable: Vec<Candidate<'a>>,
    /// Offers with a dated price only, the best first.
    pub(crate) dated: Vec<Candidate<'a>>,
    /// The cheapest on-demand offer, for sale or not; looked for where something can be taken.
    pub(crate) on_demand: Option<Candidate<'a>>,
    pub(crate) stopped: Stopped,
    /// What the spot policy said, where it was asked.
    pub(crate) guided: Option<Guided<'a>>,
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
            let obstacle = one.offer.not_for_sale().map(|note| Obstacle::NotForSale { note });
            (one, obstacle)
        });
        let vetoed = self.guided.iter().flat_map(|guided| {
            let obstacle = guided.obstacle();
            guided.vetoed.iter().map(move |one| (one, Some(obstacle.clone())))
        });
        let mut rest: Vec<(&Candidate<'a>, Option<Obstacle>)> =
            others.chain(dated).chain(vetoed).collect();
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
            .zip(&self.stopped.0)
            .filter(|(_, offers)| **offers > 0)
            .map(|(check, &offers)| StoppedBy { constraint: check.name().to_owned(), offers })
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

/// The claim that takes a candidate and passes over others.
pub(crate) fn claim_of(
    workload: &Workload,
    candidate: &Candidate<'_>,
    others: &[Candidate<'_>],
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
        revision: None,
        checkpoint_interval_seconds: candidate.course.checkpoint_interval_seconds,
        runners_up: others.iter().take(RUNNERS_UP).map(Candidate::runner_up).collect(),
    }
}
