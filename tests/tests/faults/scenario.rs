//! What a user, and the cloud, do to a job or a service. A scenario is asked whenever nothing is left to do now:
//! it sees what stands, and says what happens next.

use std::time::Duration;

use petaflop_fake_provider::Manners;
use serde_json::{Value, json};

use crate::world::Seen;

/// What happens next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Nothing but time.
    Wait,
    /// The job is deleted.
    Delete,
    /// The service is scaled.
    Scale(u32),
    /// `spec.suspend` is written.
    Suspend(bool),
    /// The service is to serve another model.
    RollOut,
    /// The cloud sells the same for less.
    Undersell,
    /// The cloud takes the machine away, after a notice or without.
    Interrupt(Option<Duration>),
    /// Somebody removes the claim by force: its machine is nobody's.
    Orphan,
    /// It is over.
    Done,
}

/// A scenario.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    /// A word, which the job's name begins with.
    pub(crate) name: &'static str,
    /// It is about an InferenceService; else about a TrainingJob.
    pub(crate) serves: bool,
    /// How the cloud behaves.
    pub(crate) manners: Manners,
    /// How long the command takes.
    pub(crate) lasts: Duration,
    /// Added to the spec.
    pub(crate) spec: fn() -> Value,
    /// A budget, in dollars.
    pub(crate) budget: Option<&'static str>,
    /// What is booked may reach so far beyond what is billed: nobody can say when a machine ended.
    pub(crate) late: Duration,
    /// Machines that a run without faults buys.
    pub(crate) machines: usize,
    /// What happens: called with how many acts there were.
    pub(crate) next: fn(u32, &Seen) -> Act,
}

const RUN: Duration = Duration::from_secs(40);

const COMPLETE: Scenario = Scenario {
    name: "complete",
    serves: false,
    manners: Manners::runpod(),
    lasts: RUN,
    spec: || json!({}),
    budget: None,
    late: Duration::ZERO,
    machines: 1,
    next: |_, seen| match seen.is("Complete") && seen.claims.is_empty() {
        true => Act::Done,
        false => Act::Wait,
    },
};

fn delete_when(done: u32, seen: &Seen, now: bool) -> Act {
    match (done, now) {
        (0, true) => Act::Delete,
        (0, false) => Act::Wait,
        _ if seen.job.is_none() && seen.claims.is_empty() => Act::Done,
        _ => Act::Wait,
    }
}

/// The same in another cloud.
const fn in_aws(scenario: Scenario, name: &'static str) -> Scenario {
    Scenario { name, manners: Manners::aws(), ..scenario }
}

// Long enough for a row of the ledger in between.
const CHARGED: Scenario = Scenario { name: "charged", lasts: Duration::from_secs(340), ..COMPLETE };

const DELETE_LAUNCHING: Scenario = Scenario {
    name: "delete-launching",
    next: |done, seen| delete_when(done, seen, !seen.billed.is_empty()),
    ..COMPLETE
};

const DELETE_RUNNING: Scenario = Scenario {
    name: "delete-running",
    next: |done, seen| delete_when(done, seen, seen.is("Running")),
    ..COMPLETE
};

const SUSPEND: Scenario = Scenario {
    name: "suspend",
    machines: 2,
    lasts: Duration::from_secs(60),
    next: |done, seen| match done {
        0 if seen.is("Running") => Act::Suspend(true),
        1 if seen.is("Suspended") && seen.claims.is_empty() => Act::Suspend(false),
        2 if seen.is("Complete") && seen.claims.is_empty() => Act::Done,
        _ => Act::Wait,
    },
    ..COMPLETE
};

const INTERRUPTED: Scenario = Scenario {
    name: "interrupted",
    // A cloud that says afterwards when it took the machine away.
    manners: Manners::aws(),
    machines: 2,
    lasts: Duration::from_secs(60),
    next: |done, seen| match done {
        0 if seen.is("Running") => Act::Interrupt(None),
        1 if seen.is("Complete") && seen.claims.is_empty() => Act::Done,
        _ => Act::Wait,
    },
    ..COMPLETE
};

/// The sweep books the machine, ends it and closes its account, while the job goes on on another.
const ORPHAN: Scenario = Scenario {
    name: "orphan",
    machines: 2,
    // Who dies between the end and the last row closes the account by when the machine was first missed: a
    // round of the sweep, and another where that one dies too.
    late: Duration::from_secs(25),
    // Longer than the sweep may take.
    lasts: Duration::from_secs(340),
    next: |done, seen| match done {
        0 if seen.is("Running") => Act::Orphan,
        1 if seen.is("Complete") && seen.claims.is_empty() && seen.billed.is_empty() => Act::Done,
        _ => Act::Wait,
    },
    ..COMPLETE
};

const MOVES: Scenario = Scenario {
    name: "moves",
    machines: 2,
    lasts: Duration::from_secs(200),
    // What is cheaper is cheap enough at once.
    spec: || json!({ "placement": { "interruption": { "minHoldSeconds": 0 } } }),
    next: |done, seen| match done {
        0 if seen.is("Running") => Act::Undersell,
        1 if seen.is("Complete") && seen.claims.is_empty() => Act::Done,
        _ => Act::Wait,
    },
    ..COMPLETE
};

const SCALE: Scenario = Scenario {
    name: "scale",
    serves: true,
    machines: 3,
    spec: || json!({ "replicas": 0 }),
    next: |done, seen| match done {
        0 if seen.is("Ready") => Act::Scale(3),
        1 if seen.answer() == 3 => Act::Scale(1),
        2 if seen.answer() == 1 && seen.claims.len() == 1 => Act::Scale(0),
        3 if seen.is("Ready") && seen.claims.is_empty() => Act::Done,
        _ => Act::Wait,
    },
    ..COMPLETE
};

const ROLL_OUT: Scenario = Scenario {
    name: "rollout",
    serves: true,
    machines: 2,
    spec: || json!({ "replicas": 1 }),
    next: |done, seen| match done {
        0 if seen.answer() == 1 => Act::RollOut,
        // The new one answers, and the old one is gone.
        1 if seen.answer() == 1 && seen.is_rolled_out() && seen.claims.len() == 1 => Act::Scale(0),
        2 if seen.is("Ready") && seen.claims.is_empty() => Act::Done,
        _ => Act::Wait,
    },
    ..COMPLETE
};

const BUDGET: Scenario = Scenario {
    name: "budget",
    // It would go on for an hour; the money is enough for two minutes.
    lasts: Duration::from_secs(3600),
    budget: Some("0.05"),
    next: |_, seen| match seen.is("Suspended") && seen.claims.is_empty() {
        true => Act::Done,
        false => Act::Wait,
    },
    ..COMPLETE
};

/// All of them. What has no name of a cloud is in the one without idempotency that forgets machines
/// with their end, unless it says so.
pub(crate) const ALL: [Scenario; 24] = [
    COMPLETE,
    CHARGED,
    in_aws(COMPLETE, "complete-aws"),
    in_aws(CHARGED, "charged-aws"),
    Scenario {
        name: "delete-planned",
        machines: 0,
        // It can never be placed: nothing that is sold is so cheap.
        spec: || json!({ "placement": { "maxHourlyPrice": "0.01" } }),
        next: |done, seen| {
            let waits = seen.job.as_ref().is_some_and(|job| job.status.is_some());
            delete_when(done, seen, waits)
        },
        ..COMPLETE
    },
    DELETE_LAUNCHING,
    DELETE_RUNNING,
    Scenario {
        name: "delete-complete",
        next: |done, seen| delete_when(done, seen, seen.is("Complete")),
        ..COMPLETE
    },
    in_aws(DELETE_LAUNCHING, "aws-delete-launching"),
    in_aws(DELETE_RUNNING, "aws-delete-running"),
    SUSPEND,
    in_aws(SUSPEND, "suspend-aws"),
    INTERRUPTED,
    Scenario {
        name: "interrupted-runpod",
        manners: Manners::runpod(),
        // It is booked until it was missed: an agent is after 90 s, and each of the two looks that say
        // so may come after a crash.
        late: Duration::from_secs(150),
        ..INTERRUPTED
    },
    ORPHAN,
    MOVES,
    in_aws(MOVES, "moves-aws"),
    SCALE,
    in_aws(SCALE, "scale-aws"),
    ROLL_OUT,
    in_aws(ROLL_OUT, "rollout-aws"),
    Scenario {
        name: "ttl",
        spec: || json!({ "ttlSecondsAfterFinished": 30 }),
        next: |_, seen| match seen.is_gone() && seen.claims.is_empty() {
            true => Act::Done,
            false => Act::Wait,
        },
        ..COMPLETE
    },
    BUDGET,
    in_aws(BUDGET, "budget-aws"),
];
