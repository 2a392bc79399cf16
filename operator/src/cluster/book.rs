//! What claims have cost, kept in memory so that the ledger need not be read for every look: added
//! up by claim, workload, provider, namespace and budget, in buckets of an hour, for every period
//! begins with one. Read from the ledger at start; each row is added once, whenever it was written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use petaflop_arbiter::claim::{Claim, Phase};
use petaflop_arbiter::ledger::{Row, RowKind};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::Capacity;
use petaflop_arbiter::workload::{OwnerKind, WorkloadId};

use crate::claims::StoredClaim;
use crate::ledger::{self, Ledger, Open};

const HOUR_SECONDS: i64 = 3600;

/// The sums. Clones are the same book.
#[derive(Clone, Debug, Default)]
pub struct Book {
    sums: Arc<Mutex<Sums>>,
}

/// Sums by the hour in which a row's span begins, in hours since 1970.
type Hours = BTreeMap<i64, Usd>;

#[derive(Debug, Default)]
struct Sums {
    /// By uid.
    claims: HashMap<String, ClaimSum>,
    /// By uid of the owner.
    workloads: HashMap<String, WorkloadSum>,
    /// By name.
    providers: HashMap<String, Hours>,
    /// By name.
    namespaces: HashMap<String, Hours>,
    /// By namespace and name.
    budgets: HashMap<(String, String), Hours>,
    /// Of all time, without what was corrected downward.
    bought: HashMap<Bought, Usd>,
    /// Accounts whose last row is to come, by their uid.
    open: HashMap<String, Open>,
}

/// What was paid for, by what metrics tell apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bought {
    /// Of whoever asked.
    pub namespace: String,
    /// What asked.
    pub owner_kind: OwnerKind,
    /// Who sold it.
    pub provider: String,
    /// Region, or empty.
    pub region: String,
    /// Zone, or empty.
    pub zone: String,
    /// Machine type.
    pub instance_type: String,
    /// Model of its accelerators, or empty.
    pub accelerator: String,
    /// How it was held.
    pub capacity: Capacity,
}

/// What is booked for a claim.
#[derive(Debug)]
struct ClaimSum {
    /// Rows that are added up here: the next one has this number.
    rows: u64,
    amount: Usd,
    until: Timestamp,
    closed: bool,
}

#[derive(Debug, Default)]
struct WorkloadSum {
    amount: Usd,
    /// By hour and the budgets that it counted under then.
    parts: BTreeMap<(i64, Arc<[String]>), Usd>,
    /// Uids of claims whose last row is to come.
    open: BTreeSet<String>,
    /// Names of those whose last row is here.
    closed: BTreeSet<String>,
}

impl Book {
    /// Reads everything.
    pub async fn read(&self, ledger: &Ledger) -> Result<(), ledger::Error> {
        let mut sums = Sums::default();
        for row in ledger.rows().await? {
            sums.add(&row);
        }
        *self.lock() = sums;
        Ok(())
    }

    /// Takes over what was written for a claim since.
    pub async fn refresh(&self, ledger: &Ledger, claim: &Claim) -> Result<(), ledger::Error> {
        let known = self.lock().claims.get(&claim.uid).map_or(0, |sum| sum.rows);
        let rows = ledger.since(&claim.uid, known).await?;
        rows.iter().for_each(|row| self.add(row));
        Ok(())
    }

    /// Adds a row, unless it was added before.
    pub fn add(&self, row: &Row) {
        self.lock().add(row);
    }

    /// Until when a claim's cost is booked.
    pub fn charged_until(&self, claim_uid: &str) -> Option<Timestamp> {
        self.lock().claims.get(claim_uid).map(|sum| sum.until)
    }

    /// Accounts at a provider whose last row is to come.
    pub fn open_at(&self, provider: &str) -> Vec<Open> {
        let sums = self.lock();
        sums.open.values().filter(|open| open.provider == provider).cloned().collect()
    }

    /// What a workload has cost: its rows, and for machines that run what ran up since the last one.
    pub fn spent(&self, uid: &str, claims: &[StoredClaim], now: Timestamp) -> Usd {
        let sums = self.lock();
        let booked = sums.workloads.get(uid).map_or(Usd::ZERO, |sum| sum.amount);
        let running = claims.iter().map(|stored| sums.running(stored, Timestamp::MIN, now));
        running.fold(booked, Usd::saturating_add)
    }

    /// Whether all that a workload has cost is here, its claim of this name last.
    pub fn is_settled(&self, uid: &str, last: &str) -> bool {
        let sums = self.lock();
        let known = sums.workloads.get(uid);
        known.is_some_and(|known| known.open.is_empty() && known.closed.contains(last))
    }

    /// What a claim has cost by now.
    pub fn of_claim(&self, stored: &StoredClaim, now: Timestamp) -> Usd {
        let sums = self.lock();
        let booked = sums.claims.get(&stored.claim.uid).map_or(Usd::ZERO, |sum| sum.amount);
        booked.saturating_add(sums.running(stored, Timestamp::MIN, now))
    }

    /// What claims' machines have cost since their last rows, and since a time.
    pub fn running<'a>(
        &self,
        claims: impl IntoIterator<Item = &'a StoredClaim>,
        since: Timestamp,
        now: Timestamp,
    ) -> Usd {
        let sums = self.lock();
        claims.into_iter().map(|stored| sums.running(stored, since, now)).sum()
    }

    /// What is booked for a provider in a period.
    pub fn of_provider(&self, name: &str, period: &Range<Timestamp>) -> Usd {
        within(self.lock().providers.get(name), period)
    }

    /// What is booked for a namespace in a period.
    pub fn of_namespace(&self, name: &str, period: &Range<Timestamp>) -> Usd {
        within(self.lock().namespaces.get(name), period)
    }

    /// What is booked in a period for a budget that does not count all: whatever counted under its
    /// name when it was written, and everything of the workloads that it counts now.
    pub fn of_budget<'a>(
        &self,
        namespace: &str,
        name: &str,
        counted: impl IntoIterator<Item = &'a String>,
        period: &Range<Timestamp>,
    ) -> Usd {
        let sums = self.lock();
        let named = within(sums.budgets.get(&(namespace.to_owned(), name.to_owned())), period);
        let hours = hours(period);
        counted
            .into_iter()
            .filter_map(|uid| sums.workloads.get(uid))
            .flat_map(|sum| &sum.parts)
            .filter(|((hour, names), _)| {
                hours.contains(hour) && !names.iter().any(|known| known == name)
            })
            .map(|(_, amount)| *amount)
            .fold(named, Usd::saturating_add)
    }

    /// All that was ever paid. No sum ever falls: corrections downward are left out.
    pub fn bought(&self) -> HashMap<Bought, Usd> {
        self.lock().bought.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sums {
    fn add(&mut self, row: &Row) {
        let number = row.key.rsplit('/').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        let claim = self.claims.entry(row.claim_uid.clone()).or_insert(ClaimSum {
            rows: 0,
            amount: Usd::ZERO,
            until: row.to,
            closed: false,
        });
        if number < claim.rows {
            return;
        }
        claim.rows = number + 1;
        claim.until = row.to;
        claim.closed |= row.kind != RowKind::Running;
        match claim.closed {
            true => drop(self.open.remove(&row.claim_uid)),
            false => drop(self.open.insert(row.claim_uid.clone(), Open::of(row))),
        }
        let hour = row.from.as_second().div_euclid(HOUR_SECONDS);
        let plus = |sum: &mut Usd| *sum = sum.saturating_add(row.amount);
        plus(&mut claim.amount);
        if row.amount > Usd::ZERO {
            let bought = Bought {
                namespace: row.namespace.clone(),
                owner_kind: owner_kind(&row.claim),
                provider: row.provider.clone(),
                region: row.region.clone(),
                zone: row.zone.clone(),
                instance_type: row.instance_type.clone(),
                accelerator: row.accelerator.clone(),
                capacity: row.capacity,
            };
            plus(self.bought.entry(bought).or_default());
        }
        let workload = self.workloads.entry(row.job_uid.clone()).or_default();
        plus(&mut workload.amount);
        match claim.closed {
            // Whether a claim's own ledger is closed, another machine's does not tell.
            _ if row.is_beside() => {}
            true => {
                workload.open.remove(&row.claim_uid);
                workload.closed.insert(row.claim.clone());
            }
            false => drop(workload.open.insert(row.claim_uid.clone())),
        }
        plus(workload.parts.entry((hour, row.budgets.clone().into())).or_default());
        for hours in [
            self.providers.entry(row.provider.clone()).or_default(),
            self.namespaces.entry(row.namespace.clone()).or_default(),
        ] {
            plus(hours.entry(hour).or_default());
        }
        for name in &row.budgets {
            let budget = self.budgets.entry((row.namespace.clone(), name.clone())).or_default();
            plus(budget.entry(hour).or_default());
        }
    }

    /// What a machine has cost since its last row, and since a time.
    fn running(&self, stored: &StoredClaim, since: Timestamp, now: Timestamp) -> Usd {
        let claim = &stored.claim;
        let bills = matches!(claim.phase, Phase::Launched { .. } | Phase::Ending { .. });
        let (Some(began), true) = (stored.billed_from, bills) else {
            return Usd::ZERO;
        };
        let booked = match self.claims.get(&claim.uid) {
            Some(sum) if sum.closed => return Usd::ZERO,
            Some(sum) => sum.amount,
            None => Usd::ZERO,
        };
        let until = |at: Timestamp| {
            let millis = at.as_millisecond().saturating_sub(began.as_millisecond());
            claim.spec.offer.price.for_millis(millis)
        };
        until(now).saturating_sub(booked.max(until(since))).max(Usd::ZERO)
    }
}

/// The hours of a period, which begins and ends with one.
fn hours(period: &Range<Timestamp>) -> Range<i64> {
    let hour = |at: Timestamp| at.as_second().div_euclid(HOUR_SECONDS);
    hour(period.start)..hour(period.end)
}

/// Whose claim it is. A row does not say, but the name of its claim begins with it.
fn owner_kind(claim: &str) -> OwnerKind {
    match claim.split_once('-') {
        Some((kind, _)) if kind == OwnerKind::InferenceService.short() => {
            OwnerKind::InferenceService
        }
        _ => OwnerKind::TrainingJob,
    }
}

/// Who asked for the claim that a row is of.
pub fn owner(row: &Row) -> WorkloadId {
    WorkloadId {
        kind: owner_kind(&row.claim),
        namespace: row.namespace.clone(),
        name: row.job.clone(),
        uid: row.job_uid.clone(),
    }
}

fn within(sums: Option<&Hours>, period: &Range<Timestamp>) -> Usd {
    sums.map_or(Usd::ZERO, |sums| sums.range(hours(period)).map(|(_, amount)| *amount).sum())
}

#[cfg(test)]
mod tests {
    use petaflop_arbiter::ledger::{ClaimLedger, beside, row_key};
    use petaflop_crds::spend_budget::Period;

    use super::*;
    use crate::cluster::testing::claim_spec;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a point in time")
    }

    fn usd(text: &str) -> Usd {
        text.parse().expect("an amount")
    }

    /// A claim at 3.6 $/h, 0.001 $ a second, that began to bill at a time.
    fn claim(uid: &str, began: Timestamp) -> StoredClaim {
        let spec = claim_spec(uid, "job", began);
        StoredClaim {
            version: String::new(),
            deleting: false,
            billed_from: Some(began),
            running_from: None,
            endpoint: None,
            agent_key: None,
            claim: Claim {
                spec,
                uid: uid.to_owned(),
                phase: Phase::Launched { instance: "i".into(), at: began },
                attempt: 1,
                spent: Usd::ZERO,
            },
        }
    }

    fn rows(stored: &StoredClaim, until: &[&str], budgets: &[&str]) -> Vec<Row> {
        let claim = &stored.claim;
        let began = stored.billed_from.expect("it bills");
        let mut ledger = ClaimLedger::new(claim.spec.clone(), claim.uid.clone(), began);
        ledger.budgets = Some(budgets.iter().map(|name| (*name).to_owned()).collect());
        for until in until {
            let millis = at(until).as_millisecond() - began.as_millisecond();
            let billed = ledger.spec.offer.price.for_millis(millis);
            let row = ledger.next_row(at(until), billed, false).expect("open");
            let row = row.expect("time has passed");
            ledger.rows.push(row);
        }
        ledger.rows
    }

    #[test]
    fn a_row_is_added_once_however_often_it_is_read() {
        let (book, stored) = (Book::default(), claim("c", at("2026-11-21T10:50:00Z")));
        let rows = rows(&stored, &["2026-11-21T11:00:00Z", "2026-11-21T11:10:00Z"], &[]);
        book.add(&rows[0]);
        rows.iter().chain(&rows).for_each(|row| book.add(row));
        let now = at("2026-11-21T11:20:00Z");
        assert_eq!(book.spent("job-c", std::slice::from_ref(&stored), now), usd("1.8"));
        assert_eq!(book.spent("job-c", &[], now), usd("1.2"), "what is booked");
        assert_eq!(book.charged_until("c"), Some(at("2026-11-21T11:10:00Z")));
        let hour = Period::Hourly.around(now);
        assert_eq!(book.of_namespace("ns", &hour), usd("0.6"), "by the begin of each row");
        assert_eq!(book.of_provider("fake", &Period::Monthly.around(now)), usd("1.2"));
        assert_eq!(book.of_provider("other", &hour), Usd::ZERO);
    }

    #[test]
    fn a_machine_beside_the_claim_s_own_counts_and_settles_nothing() {
        let (book, stored) = (Book::default(), claim("c", at("2026-11-21T10:50:00Z")));
        let name = stored.claim.spec.name.clone();
        let until = ["2026-11-21T11:00:00Z", "2026-11-21T11:10:00Z"];
        let mut own = rows(&stored, &until, &["team"]);
        own[1].kind = RowKind::Final;
        let mut other = own[0].clone();
        other.claim_uid = beside("c", "i-2");
        other.key = row_key(&other.claim_uid, 0);
        other.kind = RowKind::Final;
        book.add(&other);
        assert!(!book.is_settled("job-c", &name), "its own machine has no row yet");
        assert_eq!(book.spent("job-c", &[], at("2026-11-21T11:00:00Z")), usd("0.6"));
        book.add(&own[0]);
        other.kind = RowKind::Running;
        other.key = row_key(&other.claim_uid, 1);
        book.add(&other);
        book.add(&own[1]);
        assert!(book.is_settled("job-c", &name), "nobody waits for what is beside it");
        assert_eq!(book.spent("job-c", &[], at("2026-11-21T11:10:00Z")), usd("2.4"));
        let hour = Period::Monthly.around(at("2026-11-21T11:00:00Z"));
        assert_eq!(book.of_budget("ns", "team", &[], &hour), usd("2.4"));
    }

    #[test]
    fn what_runs_over_the_end_of_a_period_counts_in_both_each_its_part() {
        let (book, stored) = (Book::default(), claim("c", at("2026-11-21T10:50:00Z")));
        let claims = std::slice::from_ref(&stored);
        let (full, now) = (at("2026-11-21T11:00:00Z"), at("2026-11-21T11:05:00Z"));
        // Before the row that ends the hour is written, and after.
        assert_eq!(book.running(claims, full, now), usd("0.3"));
        rows(&stored, &["2026-11-21T11:00:00Z"], &[]).iter().for_each(|row| book.add(row));
        assert_eq!(book.running(claims, full, now), usd("0.3"));
        assert_eq!(book.of_claim(&stored, now), usd("0.9"));
    }

    #[test]
    fn a_budget_keeps_what_counted_under_its_name_and_takes_what_it_counts_now() {
        let book = Book::default();
        let began = at("2026-11-21T10:00:00Z");
        let until = ["2026-11-21T10:10:00Z"];
        // One is deleted, one was relabelled, one is counted only now, one never was.
        for (uid, names) in [("a", vec!["team"]), ("b", vec!["team"]), ("c", vec![]), ("d", vec![])]
        {
            rows(&claim(uid, began), &until, &names).iter().for_each(|row| book.add(row));
        }
        let counted = ["job-b".to_owned(), "job-c".to_owned()];
        let day = Period::Daily.around(began);
        assert_eq!(book.of_budget("ns", "team", &counted, &day), usd("1.8"));
        assert_eq!(book.of_budget("other", "team", &[], &day), Usd::ZERO);
        let next = Period::Daily.around(day.end);
        assert_eq!(book.of_budget("ns", "team", &counted, &next), Usd::ZERO);
    }
}
