//! Gangs: several machines of equal hardware in one zone of one provider, all or none.
//!
//! A gang goes at the pace of its slowest machine and talks all the time, so its machines are of one
//! class and one zone. Which zone is the cheapest is decided here, within the same limits as
//! everything else; nothing buys a gang yet.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::candidates::Candidate;
use crate::claim::Device;
use crate::fit::First;
use crate::market::Aisle;
use crate::money::Usd;
use crate::offer::Offer;
use crate::pass::Pass;
use crate::search::{Open, Row, Stopped};
use crate::workload::{Workload, WorkloadId};
use crate::world::World;

/// Where a gang goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gang {
    /// What each machine takes, from the cheapest up; an offer with several slots may be there again.
    pub machines: Vec<Offer>,
    /// Which part of them computes.
    pub device: Device,
    /// Expected cost of all of them.
    pub total: Usd,
}

/// Most machines of a gang. An offer need not say how many there are of it, and each machine of a
/// gang takes time and memory to decide.
pub const MOST_MACHINES: u32 = 4096;

/// The cheapest zone that has so many equal machines for a workload now, within its own limits and
/// what claims have left of slots, quotas and budgets; `None` where there is none, or no such workload,
/// and for more than [`MOST_MACHINES`].
pub fn gang(world: &World, now: Timestamp, workload: &WorkloadId, size: u32) -> Option<Gang> {
    if size > MOST_MACHINES {
        return None;
    }
    let workload = world.workloads.iter().find(|known| known.id == *workload)?;
    let mut pass = Pass::new(world, now, Some(workload.id.uid.as_str()));
    let best = pass.gang(workload, size)?;
    Some(Gang {
        device: best.machines.first()?.device,
        total: best.total,
        machines: best.machines.into_iter().map(|one| one.offer.clone()).collect(),
    })
}

/// Enough machines in one zone.
struct Complete<'a> {
    machines: Vec<Candidate<'a>>,
    total: Usd,
}

impl<'a> Pass<'a> {
    fn gang(&mut self, workload: &'a Workload, size: u32) -> Option<Complete<'a>> {
        let open = Open::of(&self.world.market, &workload.placement);
        let rows = self.rows(workload, workload.placement.capacity, &open, &mut Stopped::new());
        let mut best: Option<Complete<'a>> = None;
        for row in rows.iter().filter(|row| row.stock.class().buyable) {
            for aisle in row.stock.aisles() {
                if open.check(aisle.place).is_some() {
                    continue;
                }
                // As many of the cheapest there would be the least it can cost.
                let cheapest = row.candidate(aisle.start);
                let least = cheapest.total.micros().saturating_mul(i64::from(size));
                let beaten = best.as_ref().is_some_and(|best| {
                    (best.machines[0].promise.tier(), best.total.micros())
                        < (cheapest.promise.tier(), least)
                });
                if beaten {
                    continue;
                }
                let Some(found) = self.gang_in(workload, row, *aisle, size) else { continue };
                if best.as_ref().is_none_or(|best| found.key() < best.key()) {
                    best = Some(found);
                }
            }
        }
        best
    }

    /// The cheapest so many of one class in one zone.
    fn gang_in(
        &mut self,
        workload: &'a Workload,
        row: &Row<'a>,
        aisle: Aisle,
        size: u32,
    ) -> Option<Complete<'a>> {
        let (namespace, uid) = (&workload.id.namespace, workload.id.uid.as_str());
        let mut machines: Vec<Candidate<'a>> = Vec::new();
        let mut at = aisle.start;
        while at < aisle.end && (machines.len() as u64) < u64::from(size) {
            let one = row.candidate(at);
            let mut first = First::default();
            if self.check_offer(workload, one.offer, one.total, &mut first) {
                self.check_now(workload, one.offer, &one.course, one.total, &mut first);
            }
            match first.0 {
                None => {
                    // What each takes is not there for the next.
                    self.reserve(one.offer, namespace, uid, one.total);
                    machines.push(one);
                }
                Some(_) => at += 1,
            }
        }
        for one in &machines {
            self.give_back(one.offer, namespace, uid, one.total);
        }
        if machines.is_empty() || (machines.len() as u64) < u64::from(size) {
            return None;
        }
        let total = machines.iter().fold(Usd::ZERO, |sum, one| sum.saturating_add(one.total));
        Some(Complete { machines, total })
    }
}

impl<'a> Complete<'a> {
    /// The deadline, then dollars, then the id of the first machine.
    fn key(&self) -> ((u8, i64), Usd, &'a str) {
        let first = &self.machines[0];
        (first.promise.tier(), self.total, &first.offer.id.0)
    }
}
