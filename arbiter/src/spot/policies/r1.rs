//! R1: the α rule with the exact safety set, and an age test before on-demand is left for spot.
//!
//! A run of spot that just began mostly flaps; leaving on-demand for it costs up to two restarts. R1 leaves when the run's age
//! in minutes ≥ 0.57 · work left · (d ÷ s)^1.4, work in minutes, and s ≥ 2 d.

use super::baselines::{spot, spot_or_wait};
use crate::spot::law::Seen;
use crate::spot::learned::Learned;
use crate::spot::model::{Choice, Kind, Policy, Quote, Sight, Terms, View, ZoneIndex};

/// Ages of the runs of spot, by zone.
#[derive(Clone, Debug)]
pub struct R1 {
    /// Ticks for which spot was there without a break, until the last tick.
    ages: Vec<i64>,
}

impl R1 {
    /// Before anything was seen.
    pub fn new(terms: &Terms) -> R1 {
        R1 { ages: vec![0; terms.zones.len()] }
    }

    /// With the ages of what was seen before, in whole ticks.
    pub fn knowing(learned: &Learned, tick: i64) -> R1 {
        let age =
            |seen: &Seen| if seen.was_there() == Some(true) { seen.age(true, 0) / tick } else { 0 };
        R1 { ages: learned.zones.iter().map(age).collect() }
    }

    /// Whether the run in a zone is old enough to leave on-demand for.
    fn lasts(&self, view: &View<'_>, zone: ZoneIndex) -> bool {
        let minutes = (self.ages[zone] + 1) as f64 * view.terms.tick as f64 / 60.0;
        let restart = view.terms.zones[zone].restart;
        if view.slack() < 2 * restart {
            return false;
        }
        let share = restart as f64 / view.slack().max(1) as f64;
        minutes >= 0.57 * (view.work_left as f64 / 60.0) * libm::pow(share, 1.4)
    }

    /// What to do, were this the zone to be on spot in.
    pub(super) fn with(&self, view: &View<'_>, spot: Option<ZoneIndex>) -> Choice {
        if view.on(Kind::OnDemand).is_some() {
            let ready = |zone: &ZoneIndex| self.lasts(view, *zone);
            return spot.filter(ready).map_or(Choice::Run(view.on_demand()), Choice::spot);
        }
        spot_or_wait(view, spot, 10)
    }
}

impl Policy for R1 {
    fn choose(&self, view: &View<'_>) -> Choice {
        self.with(view, spot(view))
    }

    fn observe(&mut self, zones: &[Quote]) {
        for (age, quote) in self.ages.iter_mut().zip(zones) {
            *age = match quote.spot {
                Sight::There => *age + 1,
                Sight::Gone => 0,
                Sight::Unknown => *age,
            };
        }
    }
}
