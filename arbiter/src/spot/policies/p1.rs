//! P1: what is cheapest under a renewal law that is learned as the job runs.
//!
//! In one zone: the law's two factors are learned, the nearest table of the grid says what to do. In many: the zone
//! that is expected to last longest for its price stands for all. Where many have spot, the tables decide: when it is lost, another has spot with
//! a chance that is learned too, and then the job only pays the restart. Where few have, R1's rule decides, by that zone's age.

use std::sync::Arc;

use crate::spot::law::{self, BUCKETS, Seen, Shape};
use crate::spot::learned::Learned;
use crate::spot::model::{Choice, Kind, Paid, Policy, Quote, Sight, Terms, View, ZoneIndex};
use crate::spot::table::{Advice, LawIndex, Tables};

use super::baselines::plenty;
use super::r1::R1;

/// The learned up-factor is raised by this: a table takes it for certain, and a job that waits in vain pays more than one that
/// need not have waited.
const UP_BIAS: f64 = 1.3;

/// Of several zones, with spot in no more than so many R1 decides: who flaps there is lost together, of which the tables' one
/// chance of another zone knows nothing; where more have spot, a loss costs a restart.
const FEW: usize = 3;

/// P1, and what it learned in this run.
#[derive(Debug)]
pub struct P1 {
    tables: Arc<Tables>,
    tick: i64,
    learned: Learned,
}

impl P1 {
    /// Before anything was seen.
    pub fn new(terms: &Terms, tables: Arc<Tables>) -> P1 {
        P1::knowing(terms, tables, Learned::of(terms.zones.len()))
    }

    /// With what was learned before, of the same zones in the same order.
    pub fn knowing(terms: &Terms, tables: Arc<Tables>, learned: Learned) -> P1 {
        P1 { tables, tick: terms.tick, learned }
    }

    /// Decides where no table does.
    fn simple(&self) -> R1 {
        R1::knowing(&self.learned, self.tick)
    }

    fn shape(&self) -> &Shape {
        self.tables.shape()
    }

    /// The zone to be on spot in, of those with this sight: the cheapest for a tick of work, losses included.
    fn best(&self, view: &View<'_>, sight: Sight) -> Option<ZoneIndex> {
        let of_sight = |zone: &ZoneIndex| view.zones[*zone].spot == sight;
        let cost = |zone: ZoneIndex| self.cost_of_work(view, zone);
        (0..view.zones.len())
            .filter(of_sight)
            .min_by(|a, b| cost(*a).total_cmp(&cost(*b)).then(a.cmp(b)))
    }

    /// What a tick of useful work costs here: the price, and a share of the restart, the slack it takes and the move, by
    /// how long a run is expected to last.
    fn cost_of_work(&self, view: &View<'_>, zone: ZoneIndex) -> f64 {
        let (seen, quote, terms) = (&self.learned.zones[zone], &view.zones[zone], view.terms);
        let age = seen.age(true, self.tick);
        let lives = law::lives(self.shape(), seen.down(), self.tick);
        let life = lives[law::bucket(age)].min((view.work_left / self.tick + 1) as f64);
        let restart = terms.zones[zone].restart as f64 / self.tick as f64;
        let hours = self.tick as f64 / 3_600.0;
        let once = terms.move_cost(view.home, zone);
        let moved = Paid::once(once).usd().as_f64() / hours;
        let (price, slack) = (quote.spot_price.as_f64(), quote.on_demand_price.as_f64());
        price + (restart * (price + slack) + moved) / life
    }
}

impl Policy for P1 {
    fn choose(&self, view: &View<'_>) -> Choice {
        if let Some(machine) = view.on(Kind::Spot) {
            return Choice::Run(machine.place);
        }
        let target = self.best(view, Sight::There).or_else(|| self.best(view, Sight::Unknown));
        let there = view.zones.iter().filter(|quote| quote.spot == Sight::There).count();
        if view.zones.len() > 1 && there <= FEW && plenty(view, 10) {
            return self.simple().with(view, target);
        }
        let on_demand = view.on_demand();
        let (there, bucket, down, others) = match target {
            Some(zone) => {
                let seen = &self.learned.zones[zone];
                let others = self.learned.others(view.zones, zone);
                (true, law::bucket(seen.age(true, self.tick)), seen.down(), others)
            }
            None => {
                let zones = self.learned.zones.iter();
                let down = zones.map(Seen::down).fold(f64::INFINITY, f64::min);
                let others = if view.zones.len() < 2 { 0.0 } else { 0.5 };
                (false, law::bucket(self.learned.union.age(false, self.tick)), down, others)
            }
        };
        debug_assert!(bucket < BUCKETS);
        let law = LawIndex::nearest(down, self.learned.union.up() * UP_BIAS, others);
        let Some(table) = self.tables.table(law) else { return self.simple().choose(view) };
        let (left, slack) = (view.time_left() / self.tick, view.slack());
        let advice = match view.on(Kind::OnDemand) {
            Some(machine) => table.on_demand(left, slack, machine.pending, there, bucket),
            None => table.idle(left, slack, there, bucket),
        };
        match (advice, target) {
            (Advice::Spot, Some(zone)) => Choice::spot(zone),
            (Advice::Nothing, _) => Choice::Nothing,
            _ => Choice::Run(on_demand),
        }
    }

    fn observe(&mut self, zones: &[Quote]) {
        self.learned.observe(self.tables.shape(), self.tick, zones.iter().map(|quote| quote.spot));
    }
}
