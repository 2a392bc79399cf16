//! The offers of a market that come into question for a workload, from the best on.
//!
//! What provider, capacity type and model rule out is passed by shelf by shelf, what the class rules
//! out class by class. The rest is merged: each class shows its cheapest offer, and the next one only
//! when that was taken. Where places are asked for, a class shows the cheapest of those first, and
//! each of them by itself only then. So a search looks at little more than
//! the offers it returns, and what it returns does not depend on the order in which they came.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::candidates::{Candidate, Promise};
use crate::claim::Device;
use crate::fit::{self, First};
use crate::market::{Market, Place, Shelf, Stock};
use crate::money::{Usd, UsdPerHour};
use crate::objective::Course;
use crate::obstacle::Check;
use crate::offer::{Capacity, OfferId};
use crate::pass::Pass;
use crate::workload::{Placement, Workload};

/// Offers stopped, by the check that stopped them.
pub(crate) struct Stopped(pub(crate) Vec<u32>);

impl Stopped {
    pub(crate) fn new() -> Stopped {
        Stopped(vec![0; Check::ALL.len()])
    }

    pub(crate) fn add(&mut self, check: Check, offers: u32) {
        self.0[check as usize] += offers;
    }
}

/// Which places will do, by number; `None`: all of them.
pub(crate) struct Open(Option<Vec<Option<Check>>>);

impl Open {
    pub(crate) fn of(market: &Market, placement: &Placement) -> Open {
        let Placement { regions, zones, exclude_regions, .. } = placement;
        if regions.is_empty() && zones.is_empty() && exclude_regions.is_empty() {
            return Open(None);
        }
        Open(Some(
            market.places().iter().map(|place| stands_in_the_way(place, placement)).collect(),
        ))
    }

    /// What stops everything at a place.
    pub(crate) fn check(&self, place: u32) -> Option<Check> {
        self.0.as_ref().and_then(|checks| checks[place as usize])
    }
}

fn stands_in_the_way(place: &Place, placement: &Placement) -> Option<Check> {
    let Placement { regions, zones, exclude_regions, .. } = placement;
    if exclude_regions.contains(&place.region)
        || !(regions.is_empty() || regions.contains(&place.region))
    {
        Some(Check::Region)
    } else if !(zones.is_empty() || zones.contains(&place.zone)) {
        Some(Check::Zone)
    } else {
        None
    }
}

/// A class that will do for a workload.
pub(crate) struct Row<'a> {
    pub(crate) stock: &'a Stock,
    pub(crate) device: Device,
    pub(crate) course: Course,
    pub(crate) promise: Promise,
    /// Its offers in places that will do.
    pub(crate) offers: u32,
}

impl<'a> Row<'a> {
    pub(crate) fn candidate(&self, at: u32) -> Candidate<'a> {
        let Row { stock, device, course, promise, .. } = *self;
        let offer = stock.offer(at);
        Candidate { offer, device, course, total: course.dollars(offer.price), promise }
    }
}

impl<'a> Pass<'a> {
    /// The classes that will do for a workload, of the capacity type that is wanted.
    pub(crate) fn rows(
        &self,
        workload: &Workload,
        capacity: Option<Capacity>,
        open: &Open,
        stopped: &mut Stopped,
    ) -> Vec<Row<'a>> {
        let mut rows = Vec::new();
        for shelf in self.world.market.shelves() {
            self.rows_of_shelf(workload, capacity, shelf, open, stopped, &mut rows);
        }
        rows
    }

    fn rows_of_shelf(
        &self,
        workload: &Workload,
        capacity: Option<Capacity>,
        shelf: &'a Shelf,
        open: &Open,
        stopped: &mut Stopped,
        rows: &mut Vec<Row<'a>>,
    ) {
        let Some(example) = shelf.example() else { return };
        let mut first = First::default();
        let Some(provider) = self.check_provider(workload, example, &mut first) else {
            return stopped.add(first.0.unwrap_or(Check::ProviderUnknown), shelf.len());
        };
        if capacity.is_some_and(|needs| needs != example.capacity) {
            return stopped.add(Check::CapacityType, shelf.len());
        }
        if !fit::model_may_do(workload, example) {
            return stopped.add(Check::AcceleratorModel, shelf.len());
        }
        for stock in shelf.stocks() {
            let mut first = First::default();
            let chosen = self.choose_device(workload, stock.class(), provider, &mut first);
            let Some((device, course, promise)) = chosen else {
                stopped.add(first.0.unwrap_or(Check::Engine), stock.len());
                continue;
            };
            let mut offers = stock.len();
            for aisle in stock.aisles() {
                if let Some(check) = open.check(aisle.place) {
                    stopped.add(check, aisle.end - aisle.start);
                    offers -= aisle.end - aisle.start;
                }
            }
            if offers > 0 {
                rows.push(Row { stock, device, course, promise, offers });
            }
        }
    }
}

/// Offers of many classes in the order of [`Candidate::key`].
pub(crate) struct Merge<'r, 'a> {
    rows: &'r [&'r Row<'a>],
    open: &'r Open,
    heads: BinaryHeap<Head<'a>>,
    /// Offers of each row that were not returned.
    left: Vec<u32>,
}

/// The next offer of a class, or of one place of it.
struct Head<'a> {
    tier: (u8, i64),
    total: Usd,
    price: UsdPerHour,
    id: &'a OfferId,
    row: u32,
    at: u32,
    next: Next,
}

/// What of a class comes after its head.
#[derive(Clone, Copy)]
enum Next {
    /// The offer of this rank: all places will do.
    Rank(u32),
    /// The cheapest of each place that will do, this one's place included.
    Places,
    /// The next at the same place, up to this position (exclusive).
    Place(u32),
}

impl<'a> Head<'a> {
    fn of(row: &Row<'a>, index: u32, at: u32, next: Next) -> Head<'a> {
        let (price, id) = (row.stock.price(at), &row.stock.offer(at).id);
        let total = row.course.dollars(price);
        Head { tier: row.promise.tier(), total, price, id, row: index, at, next }
    }

    fn key(&self) -> ((u8, i64), Usd, UsdPerHour, &'a OfferId) {
        (self.tier, self.total, self.price, self.id)
    }
}

impl Ord for Head<'_> {
    /// The best is the greatest: what a heap gives first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head<'_> {}

impl<'r, 'a> Merge<'r, 'a> {
    pub(crate) fn new(rows: &'r [&'r Row<'a>], open: &'r Open) -> Merge<'r, 'a> {
        let heads: Vec<Head<'a>> = rows
            .iter()
            .enumerate()
            .filter_map(|(index, row)| {
                let (at, next) = first(row.stock, open)?;
                Some(Head::of(row, index as u32, at, next))
            })
            .collect();
        Merge { rows, open, heads: heads.into(), left: rows.iter().map(|row| row.offers).collect() }
    }

    /// The next best, and which row it is of.
    pub(crate) fn next(&mut self) -> Option<(usize, Candidate<'a>)> {
        loop {
            let Head { row: index, at, next, .. } = self.heads.pop()?;
            let row = self.rows[index as usize];
            let left = &mut self.left[index as usize];
            if *left == 0 {
                continue;
            }
            *left -= 1;
            match next {
                Next::Rank(rank) => {
                    if let Some(at) = row.stock.ranked(rank) {
                        self.heads.push(Head::of(row, index, at, Next::Rank(rank + 1)));
                    }
                }
                Next::Place(end) => {
                    if at + 1 < end {
                        self.heads.push(Head::of(row, index, at + 1, next));
                    }
                }
                Next::Places => {
                    for aisle in row.stock.aisles() {
                        // The first of all is the first of its place.
                        let at = aisle.start + u32::from(aisle.start == at);
                        if at < aisle.end && self.open.check(aisle.place).is_none() {
                            self.heads.push(Head::of(row, index, at, Next::Place(aisle.end)));
                        }
                    }
                }
            }
            return Some((index as usize, row.candidate(at)));
        }
    }

    /// Returns no more of a row; says how many those would have been.
    pub(crate) fn close(&mut self, row: usize) -> u32 {
        std::mem::take(&mut self.left[row])
    }

    /// How many were not returned.
    pub(crate) fn rest(&self) -> u32 {
        self.left.iter().sum()
    }
}

/// The cheapest offer of a stock in a place that will do, and what comes after it.
fn first(stock: &Stock, open: &Open) -> Option<(u32, Next)> {
    if open.0.is_none() {
        return stock.ranked(0).map(|at| (at, Next::Rank(1)));
    }
    let order = |at: u32| (stock.price(at), &stock.offer(at).id);
    let aisles = stock.aisles().iter().filter(|aisle| open.check(aisle.place).is_none());
    let cheapest = aisles.map(|aisle| aisle.start).min_by(|&a, &b| order(a).cmp(&order(b)));
    cheapest.map(|at| (at, Next::Places))
}
