//! One run of one policy over a recorded market: what it cost, how often it moved, whether it ended in time.

use super::model::{Choice, Kind, Machine, Paid, Policy, Quote, Sight, Terms, View, ZoneIndex};
use super::safety;
use crate::money::UsdPerHour;

/// A price over time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Price {
    /// Always the same.
    Fixed(UsdPerHour),
    /// One a tick; the last holds on.
    PerTick(Vec<UsdPerHour>),
}

impl Price {
    /// In a tick of the recording.
    pub fn at(&self, tick: usize) -> UsdPerHour {
        match self {
            Price::Fixed(price) => *price,
            Price::PerTick(prices) => {
                prices.get(tick).or(prices.last()).copied().unwrap_or_default()
            }
        }
    }
}

/// A recorded zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Whether there was spot, by tick; none after the end.
    pub available: Vec<bool>,
    /// Price of spot.
    pub spot: Price,
    /// Price of on-demand.
    pub on_demand: UsdPerHour,
}

impl Recorded {
    /// Whether there was spot in a tick.
    pub fn has_spot(&self, tick: usize) -> bool {
        self.available.get(tick).copied().unwrap_or(false)
    }

    /// The zone in a tick, seen.
    fn quote(&self, tick: usize, seen: bool) -> Quote {
        let spot = match (seen, self.has_spot(tick)) {
            (false, _) => Sight::Unknown,
            (true, true) => Sight::There,
            (true, false) => Sight::Gone,
        };
        Quote { spot, spot_price: self.spot.at(tick), on_demand_price: self.on_demand }
    }
}

/// What a policy sees of zones in which it holds no spot machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Observe {
    /// Everything.
    #[default]
    All,
    /// Nothing, until it tries to start a machine there; trying is free.
    Held,
    /// The same, and every try costs the zone's probe.
    Probed,
}

/// How a run went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// What it cost.
    pub paid: Paid,
    /// Launches after the first.
    pub moves: u32,
    /// Whether it ended after its deadline.
    pub missed: bool,
}

/// How a run is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// What the policy sees.
    pub observe: Observe,
    /// Whether it saw all ticks of the recording before its start.
    pub history: bool,
}

/// Runs a policy from a tick of the recording until the work is done.
pub fn run(
    terms: &Terms,
    market: &[Recorded],
    start: usize,
    manner: Manner,
    policy: &mut dyn Policy,
) -> Run {
    if manner.history {
        for tick in 0..start {
            let zones: Vec<Quote> = market.iter().map(|zone| zone.quote(tick, true)).collect();
            policy.observe(&zones);
        }
    }
    let mut job = Job::of(terms.work);
    let mut zones = Vec::with_capacity(market.len());
    let mut tick = 0;
    while job.left > 0 {
        let now = start + tick as usize;
        let held = job.machine.filter(|machine| machine.place.kind == Kind::Spot);
        let held = held.map(|machine| machine.place.zone);
        let sees = |zone: ZoneIndex| manner.observe == Observe::All || held == Some(zone);
        zones.clear();
        zones.extend(market.iter().enumerate().map(|(index, zone)| zone.quote(now, sees(index))));
        if held.is_some_and(|zone| !market[zone].has_spot(now)) {
            job.machine = None;
        }
        let choice = loop {
            let view = job.view(terms, tick, &zones);
            let choice = safety::guarded(&view, policy.choose(&view));
            match choice {
                Choice::Run(place) if place.kind == Kind::Spot => {
                    let zone = place.zone;
                    if zones[zone].spot == Sight::Unknown {
                        if manner.observe == Observe::Probed {
                            job.paid = job.paid.plus(Paid::once(terms.zones[zone].probe));
                        }
                        zones[zone] = market[zone].quote(now, true);
                    }
                    if zones[zone].spot == Sight::There {
                        break choice;
                    }
                }
                other => break other,
            }
        };
        job.spend(terms, choice, &zones);
        policy.observe(&zones);
        tick += 1;
    }
    Run { paid: job.paid, moves: job.launches.saturating_sub(1), missed: tick > terms.ticks() }
}

/// The job while it runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    /// Seconds of useful work.
    pub(super) left: i64,
    pub(super) machine: Option<Machine>,
    /// Where its checkpoint lies.
    pub(super) home: Option<ZoneIndex>,
    pub(super) paid: Paid,
    pub(super) launches: u32,
}

impl Job {
    /// One with so many seconds of work, before its first tick.
    pub(super) const fn of(work: i64) -> Job {
        Job { left: work, machine: None, home: None, paid: Paid::ZERO, launches: 0 }
    }

    pub(super) fn view<'a>(&self, terms: &'a Terms, tick: i64, zones: &'a [Quote]) -> View<'a> {
        let Self { left, machine, home, .. } = *self;
        View { terms, tick, work_left: left, machine, home, zones }
    }

    /// A whole tick of what was chosen.
    pub(super) fn spend(&mut self, terms: &Terms, choice: Choice, zones: &[Quote]) {
        let Choice::Run(place) = choice else {
            self.machine = None;
            return;
        };
        let pending = match self.machine {
            Some(machine) if machine.place == place => machine.pending,
            _ => {
                self.launches += 1;
                self.paid = self.paid.plus(Paid::once(terms.move_cost(self.home, place.zone)));
                terms.zones[place.zone].restart
            }
        };
        let used = pending.min(terms.tick);
        self.left -= terms.tick - used;
        self.machine = Some(Machine { place, pending: pending - used });
        self.home = Some(place.zone);
        let price = zones[place.zone].price(place.kind);
        self.paid = self.paid.plus(Paid::rate(price, terms.tick));
    }
}
