//! The policies, by name. Each holds what it learned in one run; all are pure.

mod baselines;
mod p1;
mod r1;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::model::{Policy, Terms};
use super::table::Tables;

pub use baselines::{Alpha, Greedy, OnDemand, UniformProgress};
pub use p1::P1;
pub use r1::R1;

/// A policy's name, as `--policy` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// On-demand from the first tick.
    OnDemand,
    /// Spot, else wait, until the safety line.
    Greedy,
    /// The policy of "Can't Be Late" (NSDI'24).
    UniformProgress,
    /// Stay on what runs; wait while there is 10 % of the work to spare.
    Alpha10,
    /// The same with 20 %.
    Alpha20,
    /// The α rule with the exact safety set, and an age test before on-demand is left.
    R1,
    /// The dynamic programme over a learned renewal law.
    P1,
}

impl Name {
    /// All of them, from the simplest.
    pub const ALL: [Name; 7] = [
        Name::OnDemand,
        Name::Greedy,
        Name::UniformProgress,
        Name::Alpha10,
        Name::Alpha20,
        Name::R1,
        Name::P1,
    ];

    /// A new policy for one run. P1 decides as R1 where tables are not given.
    pub fn policy(self, terms: &Terms, tables: Option<&Arc<Tables>>) -> Box<dyn Policy> {
        match self {
            Name::OnDemand => Box::new(OnDemand),
            Name::Greedy => Box::new(Greedy),
            Name::UniformProgress => Box::new(UniformProgress),
            Name::Alpha10 => Box::new(Alpha { percent: 10 }),
            Name::Alpha20 => Box::new(Alpha { percent: 20 }),
            Name::R1 => Box::new(R1::new(terms)),
            Name::P1 => match tables {
                Some(tables) => Box::new(P1::new(terms, Arc::clone(tables))),
                None => Box::new(R1::new(terms)),
            },
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Name::OnDemand => "on-demand",
            Name::Greedy => "greedy",
            Name::UniformProgress => "uniform-progress",
            Name::Alpha10 => "alpha-0.1",
            Name::Alpha20 => "alpha-0.2",
            Name::R1 => "r1",
            Name::P1 => "p1",
        })
    }
}

/// There is no policy of that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no policy {0:?}; there are: on-demand, greedy, uniform-progress, alpha-0.1, alpha-0.2, r1, p1"
)]
pub struct UnknownPolicy(String);

impl FromStr for Name {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let same = |name: &Name| name.to_string() == text.replace('_', "-");
        Name::ALL.into_iter().find(same).ok_or_else(|| UnknownPolicy(text.to_owned()))
    }
}
