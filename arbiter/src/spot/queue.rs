//! Several jobs in one recorded market, each with its own policy, arrival, deadline and budget.
//!
//! A zone has so many spot machines in a tick. Where there are fewer than are held, those that were
//! launched last are lost; what is free goes to the jobs in the order of their arrival, and a job
//! sees spot where it holds a machine or one is free. On-demand is without limit. A job whose budget
//! does not pay for the tick that it chose ends there, unfinished.

use super::model::{Choice, Kind, Machine, Paid, Policy, Quote, Sight, Terms, View, ZoneIndex};
use super::replay::{Job, Recorded};
use super::safety;
use crate::money::Usd;

/// A job of the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Tick of its arrival.
    pub arrives: usize,
    /// Its terms; ticks and zones are those of all.
    pub terms: Terms,
    /// Most that it may cost.
    pub budget: Option<Usd>,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Before its deadline.
    InTime,
    /// After its deadline.
    Late,
    /// Its budget did not pay for its next tick.
    OutOfMoney,
}

/// How a job went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Went {
    /// How it ended.
    pub end: End,
    /// What it cost.
    pub paid: Paid,
    /// Launches after the first.
    pub moves: u32,
    /// Ticks from its arrival to its end in which it had no machine.
    pub waited: u32,
}

/// A job on its way.
struct Under<'a> {
    queued: &'a Queued,
    job: Job,
    policy: Box<dyn Policy>,
    /// Number of its launch among all launches: who came last loses first.
    launched: u64,
    waited: u32,
    end: Option<End>,
}

impl Under<'_> {
    fn spot(&self) -> Option<ZoneIndex> {
        let held = self.job.machine.filter(|machine| machine.place.kind == Kind::Spot);
        held.filter(|_| self.end.is_none()).map(|Machine { place, .. }| place.zone)
    }
}

/// Runs all jobs to their ends. `capacity` holds, by zone and tick, how many spot machines there are;
/// none after its end.
pub fn run<'a>(
    jobs: &'a [Queued],
    market: &[Recorded],
    capacity: &[Vec<u32>],
    mut policy: impl FnMut(&Queued) -> Box<dyn Policy>,
) -> Vec<Went> {
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by_key(|index| (jobs[*index].arrives, *index));
    let mut all: Vec<Under<'a>> = jobs
        .iter()
        .map(|queued| Under {
            queued,
            job: Job::of(queued.terms.work),
            policy: policy(queued),
            launched: 0,
            waited: 0,
            end: None,
        })
        .collect();
    let (mut tick, mut launches) = (0_usize, 0_u64);
    while all.iter().any(|under| under.end.is_none()) {
        let mut free = lose(&mut all, capacity, tick);
        for index in &order {
            let under = &mut all[*index];
            if under.end.is_some() || under.queued.arrives > tick {
                continue;
            }
            if let Some(zone) = under.spot() {
                free[zone] += 1;
            }
            let before = under.job.machine.map(|machine| machine.place);
            under.step(market, &free, tick);
            // Also of a job that is done now: the tick was its.
            let after = under.job.machine.map(|machine| machine.place);
            if let Some(place) = after.filter(|place| place.kind == Kind::Spot) {
                free[place.zone] -= 1;
            }
            if after.is_some() && after != before {
                launches += 1;
                under.launched = launches;
            }
        }
        tick += 1;
    }
    let went = |under: Under<'_>| Went {
        end: under.end.unwrap_or(End::Late),
        paid: under.job.paid,
        moves: under.job.launches.saturating_sub(1),
        waited: under.waited,
    };
    all.into_iter().map(went).collect()
}

/// Takes machines away where there are fewer than are held, the newest first; how many are free in
/// each zone after that.
fn lose(all: &mut [Under<'_>], capacity: &[Vec<u32>], tick: usize) -> Vec<u32> {
    let there = |zone: &Vec<u32>| zone.get(tick).copied().unwrap_or(0);
    let mut free: Vec<u32> = capacity.iter().map(there).collect();
    let mut holders: Vec<&mut Under<'_>> =
        all.iter_mut().filter(|under| under.spot().is_some()).collect();
    holders.sort_by_key(|under| under.launched);
    for under in holders {
        let Some(zone) = under.spot() else { continue };
        match free[zone].checked_sub(1) {
            Some(rest) => free[zone] = rest,
            None => under.job.machine = None,
        }
    }
    free
}

impl Under<'_> {
    /// One tick of this job; `free` counts the machine that it holds as free.
    fn step(&mut self, market: &[Recorded], free: &[u32], tick: usize) {
        let terms = &self.queued.terms;
        let since = i64::try_from(tick - self.queued.arrives).unwrap_or(i64::MAX);
        let quote = |(zone, recorded): (usize, &Recorded)| Quote {
            spot: if free[zone] > 0 { Sight::There } else { Sight::Gone },
            spot_price: recorded.spot.at(tick),
            on_demand_price: recorded.on_demand,
        };
        let zones: Vec<Quote> = market.iter().enumerate().map(quote).collect();
        let view: View<'_> = self.job.view(terms, since, &zones);
        let choice = safety::guarded(&view, self.policy.choose(&view));
        let mut after = self.job;
        after.spend(terms, choice, &zones);
        if self.queued.budget.is_some_and(|budget| after.paid > Paid::once(budget)) {
            self.job.machine = None;
            self.end = Some(End::OutOfMoney);
            return;
        }
        self.job = after;
        self.waited += u32::from(choice == Choice::Nothing);
        self.policy.observe(&zones);
        if self.job.left <= 0 {
            let late = since + 1 > terms.ticks();
            self.end = Some(if late { End::Late } else { End::InTime });
        }
    }
}
