//! What must be true after the faults have stopped, whatever they were.

use std::collections::BTreeMap;
use std::time::Duration;

use petaflop_arbiter::ledger::{Row, RowKind};
use petaflop_fake_provider::Manners;
use petaflop_fake_provider::manners::Style;
use petaflop_harness::Write;
use serde_json::{Value, json};

use crate::calls::Point;
use crate::world::Seen;

/// What a run left behind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// O1: what stands at the end, without what differs from run to run.
    pub(crate) end: Value,
    /// Machines that billed while no claim stood for them, or at the end.
    pub(crate) leaks: Vec<String>,
    /// Most claims that stood at once.
    pub(crate) at_once: u64,
    /// O4: machines ever made.
    pub(crate) machines: usize,
    /// O5: writes while nothing was to be done, and all calls then.
    pub(crate) idle_writes: Vec<String>,
    pub(crate) idle_calls: usize,
    /// O6: errors that were logged, at any time.
    pub(crate) errors: Vec<String>,
    /// O8: refusals for want of rights.
    pub(crate) denied: Vec<String>,
    /// Where ledger and bill differ.
    pub(crate) ledger: Vec<String>,
    /// All calls.
    pub(crate) calls: Vec<Point>,
    /// Faults that struck.
    pub(crate) struck: u32,
    /// O2 and O7: writes a kind of object, from the audit log; filled in last.
    pub(crate) writes: BTreeMap<String, u64>,
}

/// An oracle that was not satisfied, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    /// `O1` to `O8`, or `ledger`.
    pub(crate) oracle: &'static str,
    pub(crate) why: String,
}

/// Between two looks at a machine that is to be gone, and how many say that it is; looks are counted in
/// memory, so each crash may cost one more.
const LOOK_MILLIS: i64 = 2_000;
const LOOKS: i64 = 2;

/// Writes that one fault may cost beyond those of a run without faults, for each kind of object.
const MORE_WRITES: u64 = 3;

impl Outcome {
    /// Holds it against the run without faults. `machines`: how many the scenario wants.
    pub(crate) fn judge(&self, reference: &Self, machines: usize) -> Vec<Broken> {
        let mut broken = Vec::new();
        let mut must = |oracle, holds: bool, why: String| {
            if !holds {
                broken.push(Broken { oracle, why });
            }
        };
        must("O1", self.end == reference.end, difference(&reference.end, &self.end));
        for (object, count) in &self.writes {
            let usual = reference.writes.get(object).copied().unwrap_or(0);
            // Whoever dies, dies with all machines that are under way.
            let hit = match object.as_str() {
                "events" => reference.at_once,
                object if object.contains("computeclaims") => reference.at_once,
                // A service's status tells of each of its replicas.
                object if object.contains("inferenceservices/status") => reference.at_once,
                _ => 1,
            };
            let most = usual + MORE_WRITES * u64::from(self.struck) * hit.max(1);
            let oracle = if object == "events" { "O7" } else { "O2" };
            must(oracle, *count <= most, format!("{object}: {count} writes, at most {most}"));
        }
        must("O3", self.leaks.is_empty(), format!("no claim stands for {:?}", self.leaks));
        must(
            "O4",
            self.machines <= machines,
            format!("{} machines, not {machines}", self.machines),
        );
        must("O5", self.idle_writes.is_empty(), format!("idle, and writes {:?}", self.idle_writes));
        let most = reference.idle_calls + reference.idle_calls / 2 + 20;
        must("O5", self.idle_calls <= most, format!("idle: {} calls > {most}", self.idle_calls));
        must("O6", self.errors.is_empty(), format!("{:?}", self.errors));
        must("O8", self.denied.is_empty(), format!("{:?}", self.denied));
        must("ledger", self.ledger.is_empty(), self.ledger.join("; "));
        broken
    }
}

/// The end of a run, without times, uids and sums, which the ledger's oracle looks at.
pub(crate) fn end(seen: &Seen) -> Value {
    let Some(meta) = seen.metadata().filter(|_| !seen.is_gone()) else {
        return json!({ "job": null, "claims": seen.claims.len() });
    };
    let mut status = seen.status();
    let provider = status["placement"]["provider"].as_str().map(str::to_owned);
    if let Some(status) = status.as_object_mut() {
        // Progress is what the agent said last, and whoever died did not hear it; the checkpoint itself is
        // in the store.
        for volatile in
            ["admittedTime", "startTime", "completionTime", "cost", "resolvedRecipe", "progress"]
        {
            status.remove(volatile);
        }
        let conditions = status.remove("conditions").unwrap_or_default();
        for mut condition in conditions.as_array().cloned().unwrap_or_default() {
            if let Some(fields) = condition.as_object_mut() {
                fields.remove("lastTransitionTime");
            }
            let name = condition["type"].as_str().unwrap_or_default().to_owned();
            status.insert(name, condition);
        }
        if let Some(placement) = status.get_mut("placement").and_then(Value::as_object_mut) {
            placement.remove("claim");
            placement.remove("provider");
            // Replicas that one pass would have placed may come in two, where the first was cut short.
            if seen.service.is_some() {
                placement.remove("number");
            }
        }
    }
    let mut text = status.to_string();
    if let Some(provider) = provider {
        text = text.replace(&provider, "<provider>");
    }
    if let (Some(service), Some(name)) = (&seen.service, &meta.name) {
        let host = format!("{name}.{}", service.metadata.namespace.as_deref().unwrap_or_default());
        text = text.replace(&host, "<name>.<namespace>");
        text = text.replace(&format!("owner={name}"), "owner=<name>");
    }
    let status: Value = serde_json::from_str(&text).unwrap_or(status);
    let finalizers = meta.finalizers.clone().unwrap_or_default();
    json!({ "job": status, "finalizers": finalizers, "claims": seen.claims.len() })
}

/// What nobody can know of when a machine ended, where a test says so.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unsure {
    /// It may be booked for so long after its end.
    pub(crate) late: Duration,
    /// It may bill for so long after what is booked.
    pub(crate) early: Duration,
}

/// Where ledger and bill differ. Both round up to begun units and to the minimum, once for each
/// machine; `struck` faults may each have cost a look.
pub(crate) fn compare(
    rows: &[Row],
    bill: &BTreeMap<String, i64>,
    manners: &Manners,
    micros_per_hour: i64,
    struck: u32,
    unsure: Unsure,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut by_claim: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        by_claim.entry(&row.claim_uid).or_default().push(row);
    }
    for (claim, rows) in &by_claim {
        for (number, row) in rows.iter().enumerate() {
            if row.key != format!("{claim}/{number:06}") {
                wrong.push(format!("row {} where {number} is due", row.key));
            }
            if number > 0 && rows[number - 1].to != row.from {
                wrong.push(format!("{}: a gap before it, or an overlap", row.key));
            }
        }
        // A surplus machine may be gone before its last row.
        if claim.contains('.') {
            continue;
        }
        let last = rows.iter().filter(|row| row.kind != RowKind::Running).count();
        if last != 1 {
            wrong.push(format!("{claim} has {last} last rows"));
        }
    }
    let unit = i64::try_from(manners.granularity.as_millis()).unwrap_or(0);
    let micros = |time: Duration| {
        i64::try_from(time.as_secs()).unwrap_or(i64::MAX).saturating_mul(micros_per_hour) / 3_600
    };
    let (late, early) = (micros(unsure.late), micros(unsure.early));
    // Where a provider forgets a machine with its end, it is booked until it was seen gone twice.
    let looks = if manners.style == Style::RunPod { LOOKS + i64::from(struck) } else { 0 };
    let unseen = looks * LOOK_MILLIS;
    let slack = (unit + unseen) * micros_per_hour / 3_600_000 + 1;
    let mut billed: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
    for (identity, micros) in bill {
        let claim = identity.split('/').nth(3).unwrap_or(identity);
        let sum = billed.entry(claim).or_default();
        sum.0 += micros;
        sum.1 += 1;
    }
    for (claim, (micros, machines)) in &billed {
        let of_claim = |row: &&Row| row.claim_uid.split('.').next() == Some(*claim);
        let booked: i64 = rows.iter().filter(of_claim).map(|row| row.amount.micros()).sum();
        let missing = micros - booked;
        if missing > slack * machines + early || -missing > slack * machines + late {
            wrong.push(format!("{claim}: billed {micros}, booked {booked}, slack {slack}"));
        }
    }
    let owner = |claim: &str| claim.split('.').next().unwrap_or_default().to_owned();
    for claim in by_claim.keys().filter(|claim| !billed.contains_key(owner(claim).as_str())) {
        wrong.push(format!("{claim} is booked and was never billed"));
    }
    wrong
}

/// Writes of the operator that were taken, for each run's job: by kind of object and verb, events
/// counted apart.
pub(crate) fn writes(all: &[Write], namespace: &str, job: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    // Not the controllers that follow our objects with their own.
    let operator = format!("operator-{namespace}");
    let named = |name: &str| {
        let of_job = ["trj-", "infs-"].iter().any(|p| name.starts_with(&format!("{p}{job}-")));
        name == job || of_job || name == format!("{job}-gateway")
    };
    for write in all {
        let object = &write.object;
        if !write.was_taken() || object.namespace != namespace || write.user != operator {
            continue;
        }
        // An event is named after what it is about, a dot, and when it came.
        if write.is_event() && object.name.rsplit_once('.').is_some_and(|(about, _)| named(about)) {
            *counts.entry("events".to_owned()).or_default() += 1;
        } else if named(&object.name) {
            let sub = if object.subresource.is_empty() { "" } else { "/" };
            let kind = format!("{} {}{sub}{}", write.verb, object.resource, object.subresource);
            *counts.entry(kind).or_default() += 1;
        }
    }
    counts
}

fn difference(expected: &Value, found: &Value) -> String {
    let mut lines = Vec::new();
    differ("", expected, found, &mut lines);
    lines.join("; ")
}

fn differ(path: &str, expected: &Value, found: &Value, lines: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let none = &Value::Null;
                let (a, b) = (a.get(key).unwrap_or(none), b.get(key).unwrap_or(none));
                differ(&format!("{path}.{key}"), a, b, lines);
            }
        }
        _ if expected == found => {}
        _ => lines.push(format!("{path}: {expected} became {found}")),
    }
}
