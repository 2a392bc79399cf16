//! What must be true of a chase in the end, by the clouds' own bills: they share no code with the
//! ledger.
//!
//! | | must hold |
//! |---|---|
//! | leak | nothing of it bills |
//! | double | no machine was bought while the job had one, and no more than its losses explain |
//! | lost row | each claim that was billed has consecutive rows, the last of which closes it |
//! | ledger | the rows of a claim are its machines' invoices, to the micro-dollar, where the operator could learn when they ended; else they reach at most as far as it could look late |

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::ledger::{Row, RowKind};

/// A machine as its cloud billed it.
#[derive(Clone, Debug)]
pub(crate) struct Billed {
    pub(crate) id: String,
    /// Uid of the claim that it carries.
    pub(crate) claim: String,
    /// When it was bought.
    pub(crate) from: Timestamp,
    /// When it ended; `None`: it has not.
    pub(crate) until: Option<Timestamp>,
    /// Micro-dollars, those of its disk included.
    pub(crate) invoiced: i64,
    /// Lines of its bill, each of which is rounded.
    pub(crate) lines: i64,
    /// How much later than it ended the operator may have learnt of it, and why; `None`: it can know
    /// to the second.
    pub(crate) late: Option<(SignedDuration, &'static str)>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) leaks: Vec<String>,
    pub(crate) doubles: Vec<String>,
    pub(crate) lost_rows: Vec<String>,
    /// Micro-dollars of the ledger beyond the invoices, of claims whose ends could be known.
    pub(crate) difference: i64,
    /// Claims that differ though they should not, or by more than their bound.
    pub(crate) wrong: Vec<String>,
    /// Claims that differ because their ends could not be known to the second, and by how much.
    pub(crate) late: (usize, i64),
}

impl Verdict {
    pub(crate) fn is_clean(&self) -> bool {
        self.leaks.is_empty()
            && self.doubles.is_empty()
            && self.lost_rows.is_empty()
            && self.wrong.is_empty()
            && self.difference == 0
    }
}

/// Judges a chase that is over; `needed`: machines of the job, the lost ones included.
pub(crate) fn judge(machines: &[Billed], rows: &[Row], needed: usize) -> Verdict {
    let mut verdict = Verdict::default();
    let open = machines.iter().filter(|machine| machine.until.is_none());
    verdict.leaks = open.map(|machine| machine.id.clone()).collect();
    doubles(machines, needed, &mut verdict);
    let claim_of = |row: &Row| row.claim_uid.split('.').next().unwrap_or_default().to_owned();
    let mut booked: BTreeMap<String, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        booked.entry(claim_of(row)).or_default().push(row);
    }
    let claims: BTreeSet<&str> = machines.iter().map(|machine| machine.claim.as_str()).collect();
    for claim in &claims {
        let rows = booked.remove(*claim).unwrap_or_default();
        let machines: Vec<&Billed> = machines.iter().filter(|m| m.claim == *claim).collect();
        rows_of(claim, &machines, &rows, &mut verdict);
        money(claim, &machines, &rows, &mut verdict);
    }
    let unbilled =
        booked.into_keys().map(|claim| format!("{claim} is booked, and was never billed"));
    verdict.wrong.extend(unbilled);
    verdict
}

/// One that was given back in the second in which it was made was no machine of the job's.
fn doubles(machines: &[Billed], needed: usize, verdict: &mut Verdict) {
    let mut kept: Vec<&Billed> = machines.iter().filter(|m| m.until != Some(m.from)).collect();
    kept.sort_by_key(|machine| machine.from);
    for (at, machine) in kept.iter().enumerate() {
        let earlier = &kept[..at];
        if let Some(other) = earlier.iter().find(|m| m.until.is_none_or(|end| end > machine.from)) {
            verdict.doubles.push(format!("{} was bought while there was {}", machine.id, other.id));
        }
    }
    let beyond = kept.len().saturating_sub(needed).saturating_sub(verdict.doubles.len());
    let beyond = (0..beyond).map(|_| format!("{} machines instead of {needed}", kept.len()));
    verdict.doubles.extend(beyond);
}

fn rows_of(claim: &str, machines: &[&Billed], rows: &[&Row], verdict: &mut Verdict) {
    let invoiced: i64 = machines.iter().map(|machine| machine.invoiced).sum();
    if invoiced > 0 && rows.is_empty() {
        verdict.lost_rows.push(format!("{claim}: {invoiced} µ$ billed and no row"));
    }
    let mut ledgers: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        ledgers.entry(&row.claim_uid).or_default().push(row);
    }
    for (uid, mut rows) in ledgers {
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        for (number, row) in rows.iter().enumerate() {
            if row.key != format!("{uid}/{number:06}") {
                verdict.lost_rows.push(format!("{} where {number} is due", row.key));
            }
            let gap = number > 0 && rows[number - 1].to != row.from;
            if gap && row.kind != RowKind::Correction {
                verdict.lost_rows.push(format!("{}: a gap before it", row.key));
            }
        }
        let last = rows.iter().filter(|r| matches!(r.kind, RowKind::Final | RowKind::Orphan));
        if last.count() != 1 {
            verdict.lost_rows.push(format!("{uid} is not closed once"));
        }
    }
}

fn money(claim: &str, machines: &[&Billed], rows: &[&Row], verdict: &mut Verdict) {
    let invoiced: i64 = machines.iter().map(|machine| machine.invoiced).sum();
    let booked: i64 = rows.iter().map(|row| row.amount.micros()).sum();
    let difference = booked - invoiced;
    // The ledger rounds once a claim, a bill once a line.
    let rounding = machines.iter().map(|machine| machine.lines).sum::<i64>().max(2) / 2;
    let difference = if difference.abs() <= rounding { 0 } else { difference };
    let late: Vec<_> = machines.iter().filter_map(|machine| machine.late).collect();
    if late.is_empty() {
        verdict.difference += difference;
        if difference != 0 {
            verdict.wrong.push(format!("{claim}: booked {booked}, invoiced {invoiced}"));
        }
        return;
    }
    verdict.late.0 += usize::from(difference != 0);
    verdict.late.1 += difference;
    let rate = rows.iter().map(|row| row.rate).max();
    let bound: i64 = late.iter().map(|(late, _)| late.as_millis() as i64).sum();
    let bound = rate.map_or(0, |rate| rate.for_millis(bound).micros()) + rounding;
    // A clock that is behind books too little, by as much.
    let least = if late.iter().any(|(_, why)| *why == CLOCK) { -bound } else { 0 };
    if difference > bound || difference < least {
        let whys: Vec<&str> = late.iter().map(|(_, why)| *why).collect();
        verdict.wrong.push(format!(
            "{claim}: booked {booked}, invoiced {invoiced}, {bound} may be booked late ({whys:?})"
        ));
    }
}

/// Why a row may end too early or too late: the operator's clock was off.
pub(crate) const CLOCK: &str = "the operator's clock is off";

#[cfg(test)]
mod tests {
    use petaflop_arbiter::claim::{ClaimSpec, Device};
    use petaflop_arbiter::ledger::ClaimLedger;
    use petaflop_arbiter::money::Usd;
    use petaflop_arbiter::workload::{OwnerKind, WorkloadId};
    use petaflop_fake_provider::cloud::small_offer;

    use super::*;

    /// A micro-dollar a millisecond.
    const RATE: &str = "3600";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("a time")
    }

    fn machine(id: &str, claim: &str, from: i64, until: i64) -> Billed {
        Billed {
            id: id.to_owned(),
            claim: claim.to_owned(),
            from: at(from),
            until: Some(at(until)),
            invoiced: (until - from) * 1_000_000,
            lines: 1,
            late: None,
        }
    }

    fn rows(claim: &str, from: i64, until: &[i64]) -> Vec<Row> {
        let owner = WorkloadId {
            kind: OwnerKind::TrainingJob,
            namespace: "ns".to_owned(),
            name: "chased".to_owned(),
            uid: "job".to_owned(),
        };
        let spec = ClaimSpec {
            name: "trj-chased".to_owned(),
            owner,
            placement: 1,
            index: 0,
            offer: small_offer("cloud", RATE.parse().expect("a price")),
            device: Device::Cpu,
            reserved: Usd::ZERO,
            decided_at: at(from),
            revision: None,
            checkpoint_interval_seconds: None,
            runners_up: Vec::new(),
        };
        let mut ledger = ClaimLedger::new(spec, claim.to_owned(), at(from));
        for (number, end) in until.iter().enumerate() {
            let billed = Usd::from_micros((end - from) * 1_000_000);
            let row = ledger.next_row(at(*end), billed, number + 1 == until.len());
            ledger.rows.push(row.expect("open").expect("time has passed"));
        }
        ledger.rows
    }

    /// Two machines, one after the other, and their rows.
    fn world() -> (Vec<Billed>, Vec<Row>) {
        let machines = vec![machine("i-1", "a", 0, 700), machine("p-2", "b", 720, 900)];
        let rows = [rows("a", 0, &[300, 600, 700]), rows("b", 720, &[900])].concat();
        (machines, rows)
    }

    const NEEDED: usize = 2;

    #[test]
    fn a_chase_in_which_all_is_well_is_clean() {
        let (machines, rows) = world();
        assert_eq!(judge(&machines, &rows, NEEDED), Verdict::default());
    }

    #[test]
    fn a_machine_that_bills_on_is_a_leak() {
        let (mut machines, rows) = world();
        machines[0].until = None;
        let verdict = judge(&machines, &rows, NEEDED);
        assert_eq!(verdict.leaks, ["i-1"]);
        assert!(!verdict.is_clean());
    }

    #[test]
    fn a_bill_that_is_off_by_a_second_either_way_is_a_difference() {
        for (seconds, difference) in [(1, -1_000_000), (-1, 1_000_000)] {
            let (mut machines, rows) = world();
            machines[1].invoiced += seconds * 1_000_000;
            let verdict = judge(&machines, &rows, NEEDED);
            assert_eq!(verdict.difference, difference);
            assert!(verdict.wrong.len() == 1 && !verdict.is_clean());
        }
    }

    #[test]
    fn two_at_once_are_a_double_of_one_claim_and_of_two_and_so_is_one_more_than_was_lost() {
        for claim in ["a", "b"] {
            let (mut machines, mut rows) = world();
            machines.push(machine("p-3", claim, 600, 650));
            let mut surplus = self::rows(&format!("{claim}.p-3"), 600, &[650]);
            rows.append(&mut surplus);
            let verdict = judge(&machines, &rows, 3);
            assert_eq!(verdict.doubles, ["p-3 was bought while there was i-1"]);
            assert_eq!(verdict.difference, 0, "and yet all of it is booked");
            assert!(!verdict.is_clean());
        }
        let (machines, rows) = world();
        let verdict = judge(&machines, &rows, 1);
        assert_eq!(verdict.doubles, ["2 machines instead of 1"]);
    }

    #[test]
    fn what_was_given_back_in_the_second_in_which_it_was_made_is_no_machine() {
        let (mut machines, rows) = world();
        machines.push(machine("p-0", "b", 720, 720));
        assert!(judge(&machines, &rows, NEEDED).is_clean());
    }

    #[test]
    fn a_row_that_is_missing_anywhere_is_lost() {
        for missing in 0..4 {
            let (machines, mut rows) = world();
            rows.remove(missing);
            let verdict = judge(&machines, &rows, NEEDED);
            assert!(!verdict.lost_rows.is_empty() && !verdict.is_clean(), "{missing}");
        }
    }

    #[test]
    fn what_could_be_learnt_late_is_booked_to_its_bound_and_counted_apart() {
        let (mut machines, mut rows) = world();
        rows.pop();
        rows.extend(self::rows("b", 720, &[960]));
        assert_eq!(judge(&machines, &rows, NEEDED).difference, 60_000_000, "by right it is wrong");
        machines[1].late = Some((SignedDuration::from_secs(60), "it does not say when"));
        let verdict = judge(&machines, &rows, NEEDED);
        assert!(verdict.is_clean() && verdict.late == (1, 60_000_000), "{verdict:?}");
        machines[1].late = Some((SignedDuration::from_secs(59), "it does not say when"));
        assert_eq!(judge(&machines, &rows, NEEDED).wrong.len(), 1, "beyond its bound");
        let booked_less = machine("p-2", "b", 720, 961);
        machines[1] = Billed { late: Some((SignedDuration::from_secs(60), "")), ..booked_less };
        assert_eq!(judge(&machines, &rows, NEEDED).wrong.len(), 1, "late is never less");
    }

    #[test]
    fn what_was_never_billed_is_not_booked() {
        let (machines, mut rows) = world();
        rows.extend(self::rows("c", 0, &[10]));
        assert_eq!(judge(&machines, &rows, NEEDED).wrong.len(), 1);
    }
}
