//! Every way in which a provider in the box can misbehave, by name, and when.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use jiff::Timestamp;

use crate::engine::chance::Chance;

/// What is asked of a provider, whichever its API calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Prices, stock, types.
    Quote,
    /// A machine is bought.
    Create,
    /// All machines.
    List,
    /// One machine.
    Read,
    /// A machine is changed, stopped or started.
    Change,
    /// A machine is terminated.
    End,
    /// What it cost.
    Billing,
    /// Registry credentials and the rest.
    Other,
}

/// A way to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Done, and answered so much later.
    SlowAnswer(Duration),
    /// The connection is cut before anything is done.
    LostRequest,
    /// Done, and the connection is cut.
    LostAnswer,
    /// 500, nothing done.
    ErrorNotDone,
    /// 500, and done all the same.
    ErrorButDone,
    /// A listing that leaves out its last half without a word.
    PartialPage,
    /// A listing in pages whose cursor points to the same page.
    RepeatedCursor,
    /// 429 with the real headers; come again in so many seconds.
    RateLimited(u32),
    /// What was in stock when quoted is gone when bought.
    CapacityGone,
    /// What is bought costs so many thousandths of what was quoted.
    PriceChanged(u32),
    /// What is bought never gets as far as its program.
    NeverStarts,
    /// The key or account may not.
    Forbidden,
    /// 503.
    Unavailable,
    /// The API was retired: 410.
    Retired,
    /// RunPod's GraphQL was retired, its REST was not.
    GraphQlRetired,
    /// EC2 refuses with this status and code, nothing done.
    Refused(u16, &'static str),
}

impl Fault {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::SlowAnswer(_) => "slow-answer",
            Self::LostRequest => "lost-request",
            Self::LostAnswer => "lost-answer",
            Self::ErrorNotDone => "error-not-done",
            Self::ErrorButDone => "error-but-done",
            Self::PartialPage => "partial-page",
            Self::RepeatedCursor => "repeated-cursor",
            Self::RateLimited(_) => "rate-limited",
            Self::CapacityGone => "capacity-gone",
            Self::PriceChanged(_) => "price-changed",
            Self::NeverStarts => "never-starts",
            Self::Forbidden => "forbidden",
            Self::Unavailable => "unavailable",
            Self::Retired => "retired",
            Self::GraphQlRetired => "graphql-retired",
            Self::Refused(..) => "refused",
        }
    }
}

/// When a fault shows.
#[derive(Clone, Debug)]
pub enum When {
    /// From now on.
    Always,
    /// In the call of this number of its operation, from 1.
    Call(u64),
    /// In this time: an outage.
    During(Range<Timestamp>),
    /// In so many of a thousand calls, which ones by the seed alone.
    Chance {
        /// The same seed, the same calls.
        seed: u64,
        /// Of a thousand.
        permille: u32,
    },
}

#[derive(Clone, Debug)]
struct Rule {
    fault: Fault,
    operation: Option<Operation>,
    when: When,
}

/// What is switched on, and how many calls there were.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    rules: Vec<Rule>,
    calls: BTreeMap<Operation, u64>,
}

impl Faults {
    /// Misbehaves like this in an operation, or in all.
    pub fn on(&mut self, fault: Fault, operation: Option<Operation>, when: When) {
        self.rules.push(Rule { fault, operation, when });
    }

    /// Misbehaves like this in the next call of an operation.
    pub fn next(&mut self, fault: Fault, operation: Operation) {
        let number = self.calls(operation) + 1;
        self.on(fault, Some(operation), When::Call(number));
    }

    /// No longer misbehaves in the way of this name.
    pub fn off(&mut self, name: &str) {
        self.rules.retain(|rule| rule.fault.name() != name);
    }

    /// Calls of an operation so far.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.calls.get(&operation).copied().unwrap_or_default()
    }

    /// Counts a call; gives what shows in it.
    pub fn of_call(&mut self, operation: Operation, now: Timestamp) -> Vec<Fault> {
        let number = self.calls.entry(operation).or_default();
        *number += 1;
        let number = *number;
        let meant = self.rules.iter().filter(|r| r.operation.is_none_or(|o| o == operation));
        let showing = meant.filter(|rule| match &rule.when {
            When::Always => true,
            When::Call(call) => *call == number,
            When::During(time) => time.contains(&now),
            When::Chance { seed, permille } => {
                let place = (number << 4) | operation as u64;
                Chance::new(seed ^ Chance::new(place).draw()).below(1000) < u64::from(*permille)
            }
        });
        showing.map(|rule| rule.fault).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-20T10:00:00Z".parse().unwrap()
    }

    fn shown(faults: &mut Faults, operation: Operation, calls: usize) -> Vec<usize> {
        let shows = (1..=calls).map(|call| (call, !faults.of_call(operation, now()).is_empty()));
        shows.filter(|(_, shows)| *shows).map(|(call, _)| call).collect()
    }

    #[test]
    fn a_fault_shows_in_the_call_of_its_operation_that_it_was_set_for() {
        let mut faults = Faults::default();
        faults.on(Fault::LostAnswer, Some(Operation::Create), When::Call(3));
        assert!(shown(&mut faults, Operation::List, 5).is_empty());
        assert_eq!(shown(&mut faults, Operation::Create, 5), [3]);
    }

    #[test]
    fn chance_depends_on_the_seed_and_the_number_of_the_call_alone() {
        let run = |seed| {
            let mut faults = Faults::default();
            faults.on(Fault::Unavailable, None, When::Chance { seed, permille: 300 });
            let _ = shown(&mut faults, Operation::List, 7);
            shown(&mut faults, Operation::Create, 100)
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        assert!((15..45).contains(&run(1).len()));
    }
}
