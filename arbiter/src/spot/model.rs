//! The model: whole ticks, one machine at most, a restart that costs time, every tick paid whole.
//!
//! All times are whole seconds; money is summed in [`Paid`], which is exact.

use serde::{Deserialize, Serialize};

use crate::money::{Usd, UsdPerHour};

/// Seconds in an hour.
const HOUR: i64 = 3_600;

/// Money of a run, exact: micro-dollars × seconds ÷ hour, so that a tick at any price is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Paid(i64);

impl Paid {
    /// Nothing.
    pub const ZERO: Paid = Paid(0);

    /// What a rate costs over whole seconds; held at the largest amount.
    pub const fn rate(price: UsdPerHour, seconds: i64) -> Paid {
        Paid(price.micros().saturating_mul(seconds))
    }

    /// A single payment; held at the largest amount.
    pub const fn once(amount: Usd) -> Paid {
        Paid(amount.micros().saturating_mul(HOUR))
    }

    /// The sum; held at the largest amount.
    #[must_use]
    pub const fn plus(self, other: Paid) -> Paid {
        Paid(self.0.saturating_add(other.0))
    }

    /// To the nearest micro-dollar.
    pub const fn usd(self) -> Usd {
        Usd::from_micros((self.0 + HOUR / 2).div_euclid(HOUR))
    }

    pub(crate) const fn units(self) -> i64 {
        self.0
    }

    pub(crate) const fn from_units(units: i64) -> Paid {
        Paid(units)
    }
}

/// A zone, by its place in [`Terms::zones`].
pub type ZoneIndex = usize;

/// What is true of a zone for the whole run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Seconds from starting a machine here until it does useful work: launch, and work since the last checkpoint.
    pub restart: i64,
    /// What asking here costs, where availability is only known by asking.
    pub probe: Usd,
}

/// What is true of a job for the whole run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Seconds of a tick; above 0.
    pub tick: i64,
    /// Seconds of useful work.
    pub work: i64,
    /// Seconds from the start within which it must be done.
    pub deadline: i64,
    /// Where machines can be had; at least one.
    pub zones: Vec<Zone>,
    /// What a launch in zone `to` costs after one in zone `from`: `egress[from][to]`. Empty: nothing anywhere.
    pub egress: Vec<Vec<Usd>>,
}

impl Terms {
    /// Whole ticks before the deadline.
    pub const fn ticks(&self) -> i64 {
        self.deadline.div_euclid(self.tick)
    }

    /// The shortest time to useful work on on-demand: what every plan must be able to fall back on.
    pub fn shortest_restart(&self) -> i64 {
        self.zones.iter().map(|zone| zone.restart).min().unwrap_or(0)
    }

    /// What moving the checkpoint costs; nothing from nowhere.
    pub fn move_cost(&self, from: Option<ZoneIndex>, to: ZoneIndex) -> Usd {
        from.and_then(|from| self.egress.get(from)?.get(to)).copied().unwrap_or(Usd::ZERO)
    }

    /// Whether any move costs money.
    pub fn pays_for_moves(&self) -> bool {
        self.egress.iter().flatten().any(|cost| *cost > Usd::ZERO)
    }
}

/// Spot is taken away; on-demand is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Lost at the start of the first tick in which its zone has none.
    Spot,
    /// Always there.
    OnDemand,
}

/// Where a machine is, and on which terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The zone.
    pub zone: ZoneIndex,
    /// The terms.
    pub kind: Kind,
}

/// The machine now alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Where.
    pub place: Place,
    /// Seconds until it does useful work.
    pub pending: i64,
}

/// What is known of spot in a zone in this tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Sight {
    /// There is some.
    There,
    /// There is none.
    Gone,
    /// Nobody looked. Choosing it asks; who is refused chooses again.
    Unknown,
}

/// A zone in this tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Is there spot?
    pub spot: Sight,
    /// Price of spot.
    pub spot_price: UsdPerHour,
    /// Price of on-demand.
    pub on_demand_price: UsdPerHour,
}

impl Quote {
    /// The price of a kind.
    pub const fn price(&self, kind: Kind) -> UsdPerHour {
        match kind {
            Kind::Spot => self.spot_price,
            Kind::OnDemand => self.on_demand_price,
        }
    }
}

/// What a policy sees at the start of a tick.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// What stays.
    pub terms: &'a Terms,
    /// Ticks since the start.
    pub tick: i64,
    /// Seconds of useful work still to do; above 0.
    pub work_left: i64,
    /// The machine alive, if any; a lost one is not.
    pub machine: Option<Machine>,
    /// Where the last machine ran, and so the checkpoint lies.
    pub home: Option<ZoneIndex>,
    /// The zones, as in [`Terms::zones`].
    pub zones: &'a [Quote],
}

/// What is done for a whole tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Choice {
    /// No machine.
    Nothing,
    /// A machine here: the one alive, or a new one.
    Run(Place),
}

impl Choice {
    /// Spot in a zone.
    pub const fn spot(zone: ZoneIndex) -> Choice {
        Choice::Run(Place { zone, kind: Kind::Spot })
    }

    /// On-demand in a zone.
    pub const fn on_demand(zone: ZoneIndex) -> Choice {
        Choice::Run(Place { zone, kind: Kind::OnDemand })
    }
}

impl View<'_> {
    /// Seconds since the start.
    pub const fn elapsed(&self) -> i64 {
        self.tick * self.terms.tick
    }

    /// Seconds until the deadline, in whole ticks; below 0 after it.
    pub const fn time_left(&self) -> i64 {
        (self.terms.ticks() - self.tick) * self.terms.tick
    }

    /// Seconds that need not be worked.
    pub const fn slack(&self) -> i64 {
        self.time_left() - self.work_left
    }

    /// Seconds of useful work done.
    pub const fn done(&self) -> i64 {
        self.terms.work - self.work_left
    }

    /// The machine alive, if it is of this kind.
    pub fn on(&self, kind: Kind) -> Option<Machine> {
        self.machine.filter(|machine| machine.place.kind == kind)
    }

    /// Seconds before useful work, were this place chosen now.
    pub fn pending(&self, place: Place) -> i64 {
        match self.machine {
            Some(machine) if machine.place == place => machine.pending,
            _ => self.terms.zones[place.zone].restart,
        }
    }

    /// The on-demand machine to be on: the one alive if it ends in time, else where finishing costs least, the quickest start before
    /// the smallest index where that is equal.
    pub fn on_demand(&self) -> Place {
        let in_time = |machine: &Machine| self.slack() >= machine.pending;
        if let Some(machine) = self.on(Kind::OnDemand).filter(in_time) {
            return machine.place;
        }
        let zones = 0..self.terms.zones.len();
        let cost = |zone: ZoneIndex| {
            let restart = self.terms.zones[zone].restart;
            let run = Paid::rate(self.zones[zone].on_demand_price, self.work_left + restart);
            run.plus(Paid::once(self.terms.move_cost(self.home, zone)))
        };
        let feasible = |zone: ZoneIndex| self.slack() >= self.terms.zones[zone].restart;
        let zone = zones
            .min_by_key(|zone| match feasible(*zone) {
                true => (false, cost(*zone).units(), self.terms.zones[*zone].restart, *zone),
                false => (true, 0, self.terms.zones[*zone].restart, *zone),
            })
            .unwrap_or(0);
        Place { zone, kind: Kind::OnDemand }
    }
}

/// Decides for a tick, from what was seen so far. Neither method may look anywhere else.
pub trait Policy {
    /// What is wanted for this tick. [`safety::guarded`](super::safety::guarded) has the last word.
    fn choose(&self, view: &View<'_>) -> Choice;

    /// Takes in what was seen of the zones in a tick, once it is over. Ticks come in order and without gaps;
    /// those before the job's start may come first.
    fn observe(&mut self, zones: &[Quote]) {
        let _ = zones;
    }
}
