//! What others do, and the simplest rules: beside these every figure of ours is printed.
//!
//! They keep their deadlines by the two lines of "Can't Be Late", which are a little inside the exact safety set.

use crate::spot::model::{Choice, Kind, Place, Policy, Quote, Sight, View, ZoneIndex};

/// On-demand from the first tick.
#[derive(Clone, Copy, Debug)]
pub struct OnDemand;

/// Spot, else wait, until the safety line.
#[derive(Clone, Copy, Debug)]
pub struct Greedy;

/// On-demand while behind the straight line from nothing at the start to everything at the deadline.
#[derive(Clone, Copy, Debug)]
pub struct UniformProgress;

/// Waits while there is more time than this share of the work to spare.
#[derive(Clone, Copy, Debug)]
pub struct Alpha {
    /// The share, in percent.
    pub percent: i64,
}

impl Policy for OnDemand {
    fn choose(&self, view: &View<'_>) -> Choice {
        Choice::Run(view.on_demand())
    }
}

impl Policy for Greedy {
    fn choose(&self, view: &View<'_>) -> Choice {
        within_lines(view, spot(view).map_or(Choice::Nothing, Choice::spot))
    }
}

impl Policy for UniformProgress {
    fn choose(&self, view: &View<'_>) -> Choice {
        let (work, deadline) = (i128::from(view.terms.work), i128::from(view.terms.deadline));
        // Progress made against the line at a time after the start.
        let made = i128::from(view.done()) * deadline;
        let line = |seconds: i64| i128::from(seconds) * work;
        let spare = 2 * view.terms.shortest_restart();
        let behind = made < line(view.elapsed());
        let ahead = made > line(view.elapsed() + spare);
        let on_demand = view.on(Kind::OnDemand).is_some();
        let wish = match spot(view) {
            Some(_) if on_demand && !ahead => Choice::Run(view.on_demand()),
            Some(zone) => Choice::spot(zone),
            None if on_demand || behind => Choice::Run(view.on_demand()),
            None => Choice::Nothing,
        };
        within_lines(view, wish)
    }
}

impl Policy for Alpha {
    fn choose(&self, view: &View<'_>) -> Choice {
        within_lines(view, spot_or_wait(view, spot(view), self.percent))
    }
}

/// Spot where there is some; else stays on on-demand, or waits while time is plenty.
pub(super) fn spot_or_wait(view: &View<'_>, spot: Option<ZoneIndex>, percent: i64) -> Choice {
    match spot {
        Some(zone) => Choice::spot(zone),
        None if view.on(Kind::OnDemand).is_none() && plenty(view, percent) => Choice::Nothing,
        None => Choice::Run(view.on_demand()),
    }
}

/// Whether there is this share of the work to spare, after a restart and two ticks.
pub(super) fn plenty(view: &View<'_>, percent: i64) -> bool {
    let needed = view.work_left + view.terms.shortest_restart() + 2 * view.terms.tick;
    (view.time_left() - needed) * 100 > percent * view.work_left
}

/// The spot to be on: the machine alive, else the cheapest that is there, else the cheapest that may be.
pub(super) fn spot(view: &View<'_>) -> Option<ZoneIndex> {
    if let Some(machine) = view.on(Kind::Spot) {
        return Some(machine.place.zone);
    }
    let cheapest = |sight: Sight| {
        let zones = view.zones.iter().enumerate().filter(move |(_, quote)| quote.spot == sight);
        zones
            .min_by_key(|(zone, Quote { spot_price, .. })| (*spot_price, *zone))
            .map(|(zone, _)| zone)
    };
    cheapest(Sight::There).or_else(|| cheapest(Sight::Unknown))
}

/// The two lines: when a restart no longer fits, only a warm spot machine or on-demand; when two no longer fit, no new spot
/// machine. Both in whole ticks.
fn within_lines(view: &View<'_>, wish: Choice) -> Choice {
    let restart = view.terms.shortest_restart();
    let reached = |restarts: i64| {
        let ticks = (view.work_left + restarts * restart + view.terms.tick - 1) / view.terms.tick;
        ticks * view.terms.tick >= view.time_left()
    };
    let warm = view.on(Kind::Spot).filter(|machine| machine.pending == 0);
    let starts = match wish {
        Choice::Run(place @ Place { kind: Kind::Spot, .. }) => {
            view.machine.is_none_or(|machine| machine.place != place)
        }
        _ => false,
    };
    match warm {
        Some(machine) if reached(1) => Choice::Run(machine.place),
        None if reached(1) => Choice::Run(view.on_demand()),
        _ if reached(2) && starts => Choice::Run(view.on_demand()),
        _ => wish,
    }
}
