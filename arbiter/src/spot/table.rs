//! What is cheapest under a known renewal law: backward induction over ticks left × slack × machine × age.
//!
//! A table depends on the law, the tick, the restart and the ratio of prices, and not on the job: ticks left and slack say
//! all of it. It is made off the decision path, and a decision is one look-up. Numbers are in ticks of on-demand.
//!
//! `spec` says what a table is of, `induction` makes it; here is where it is kept and looked into.

mod induction;
mod spec;

use std::sync::{Arc, OnceLock};

use super::law::Shape;
use spec::{FACTORS, OTHERS};
pub use spec::{LawIndex, Spec};

/// How many ticks left apart decisions are kept.
const KEPT: usize = 4;

/// What to do, where a machine may be had or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Be on spot.
    Spot,
    /// Be on on-demand.
    OnDemand,
    /// Have no machine.
    Nothing,
}

/// The tables of a [`Spec`], each made when it is first needed, or beforehand.
#[derive(Debug)]
pub struct Tables {
    spec: Spec,
    shape: Shape,
    laws: Vec<OnceLock<Arc<Table>>>,
    /// Whether a decision may wait for a table.
    waits: bool,
    /// The law of which a table was asked for and was not there.
    missed: OnceLock<LawIndex>,
}

impl Tables {
    /// Tables that are made on the decision path: for replays.
    pub fn made_when_needed(spec: Spec, shape: Shape) -> Tables {
        Tables { waits: true, ..Tables::made_beforehand(spec, shape) }
    }

    /// Tables that are not there until [`Tables::make`] was called.
    pub fn made_beforehand(spec: Spec, shape: Shape) -> Tables {
        let count = FACTORS.len() * FACTORS.len() * OTHERS.len();
        let laws = (0..count).map(|_| OnceLock::new()).collect();
        Tables { spec, shape, laws, waits: false, missed: OnceLock::new() }
    }

    /// Takes in a table that was made elsewhere.
    pub fn put(&mut self, law: LawIndex, table: Arc<Table>) {
        self.laws[law.place()] = OnceLock::from(table);
    }

    /// What was asked for and not there, the first of it.
    pub fn missed(&self) -> Option<LawIndex> {
        self.missed.get().copied()
    }

    /// What the tables depend on beside the law.
    pub const fn spec(&self) -> Spec {
        self.spec
    }

    /// The shape of the law.
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Makes a law's table, unless it is there.
    pub fn make(&self, law: LawIndex) -> &Table {
        let made = || Arc::new(Table::made(&self.spec, &self.shape, law));
        self.laws[law.place()].get_or_init(made)
    }

    /// A law's table, if it is there or may be made now.
    pub fn table(&self, law: LawIndex) -> Option<&Table> {
        match self.waits {
            true => Some(self.make(law)),
            false => {
                let table = self.laws[law.place()].get();
                if table.is_none() {
                    let _ = self.missed.set(law);
                }
                table.map(|table| &**table)
            }
        }
    }
}

/// Decisions of one state of slack: a bit an age bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bits {
    /// From nothing, spot there: take it.
    take: u16,
    /// From nothing, spot there and not taken: on-demand.
    instead: u16,
    /// From nothing, spot gone: on-demand.
    on_demand: u16,
}

/// Decisions on on-demand of one pending level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct OnDemandBits {
    /// Spot there: leave for it.
    leave: u16,
    /// Spot gone: drop to nothing.
    drop: u16,
}

/// What is cheapest under one law.
#[derive(Debug)]
pub struct Table {
    per_tick: usize,
    tick: i64,
    width: usize,
    /// Pending at a tick's start, in units, by level.
    pending: Vec<usize>,
    idle: Vec<Bits>,
    on_demand: Vec<OnDemandBits>,
}

impl Table {
    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.idle) + size_of_val(&*self.on_demand)
    }

    fn row(&self, left: i64) -> usize {
        let rows = self.idle.len() / self.width;
        (left.max(0) as usize).div_ceil(KEPT).min(rows - 1)
    }

    fn slack(&self, slack: i64) -> usize {
        let units = (slack.max(0) * self.per_tick as i64 / self.tick) as usize;
        units.min(self.width - 1)
    }

    /// From nothing: with whole ticks left, seconds of slack, and the age bucket of the spot that is there or gone.
    pub fn idle(&self, left: i64, slack: i64, there: bool, bucket: usize) -> Advice {
        let bits = self.idle[self.row(left) * self.width + self.slack(slack)];
        let says = |word: u16| word >> bucket & 1 == 1;
        match there {
            true if says(bits.take) => Advice::Spot,
            true if says(bits.instead) => Advice::OnDemand,
            false if says(bits.on_demand) => Advice::OnDemand,
            _ => Advice::Nothing,
        }
    }

    /// From on-demand with so many seconds pending.
    pub fn on_demand(
        &self,
        left: i64,
        slack: i64,
        pending: i64,
        there: bool,
        bucket: usize,
    ) -> Advice {
        let units = ((pending * self.per_tick as i64 + self.tick - 1) / self.tick) as usize;
        let level = self.pending.iter().position(|at| *at <= units).unwrap_or(0);
        let place = (self.row(left) * self.pending.len() + level) * self.width + self.slack(slack);
        let bits = self.on_demand[place];
        match there {
            true if bits.leave >> bucket & 1 == 1 => Advice::Spot,
            false if bits.drop >> bucket & 1 == 1 => Advice::Nothing,
            _ => Advice::OnDemand,
        }
    }
}
