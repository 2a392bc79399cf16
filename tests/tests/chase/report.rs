//! What came of chases: a line for each, and one of JSON for all.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::oracles::Verdict;
use crate::script::Script;

/// What came of a chase.
pub(crate) struct Report {
    pub(crate) machines: usize,
    /// Micro-dollars.
    pub(crate) invoiced: i64,
    pub(crate) finished: bool,
    pub(crate) hash_equal: bool,
    pub(crate) verdict: Verdict,
    /// Why it did not end.
    pub(crate) error: Option<String>,
    /// Machines that were to be lost, and were not: the job was faster.
    pub(crate) unreached: usize,
    pub(crate) took: Duration,
}

impl Report {
    pub(crate) fn is_clean(&self) -> bool {
        self.finished && self.hash_equal && self.error.is_none() && self.verdict.is_clean()
    }
}

/// What all of them came to.
#[derive(Default)]
pub(crate) struct Sum {
    pub(crate) chases: usize,
    leaks: usize,
    doubles: usize,
    lost_rows: usize,
    difference: i64,
    late: (usize, i64),
    hash_equal: usize,
    finished: usize,
    machines: usize,
    invoiced: i64,
    unreached: usize,
    pub(crate) failed: Vec<u64>,
}

impl Sum {
    pub(crate) fn add(&mut self, script: &Script, report: &Result<Report>) {
        self.chases += 1;
        let seed = script.seed;
        let report = match report {
            Ok(report) => report,
            Err(error) => {
                self.failed.push(seed);
                eprintln!("chase {seed}: {script}: {error:?}");
                return;
            }
        };
        let Report { machines, invoiced, finished, hash_equal, verdict, .. } = report;
        self.leaks += verdict.leaks.len();
        self.doubles += verdict.doubles.len();
        self.lost_rows += verdict.lost_rows.len();
        self.difference += verdict.difference;
        self.late.0 += verdict.late.0;
        self.late.1 += verdict.late.1;
        self.hash_equal += usize::from(*hash_equal);
        self.finished += usize::from(*finished);
        self.machines += machines;
        self.invoiced += invoiced;
        self.unreached += report.unreached;
        let result = if report.is_clean() { "ok" } else { "FAILED" };
        eprintln!(
            "chase {seed}: {script}: {machines} machines, {} $, {} s: {result}",
            dollars(*invoiced),
            report.took.as_secs(),
        );
        if !report.is_clean() {
            self.failed.push(seed);
            eprintln!("  {verdict:?}\n  {}", report.error.as_deref().unwrap_or_default());
        }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        json!({
            "chases": self.chases,
            "leaks": self.leaks,
            "doubles": self.doubles,
            "lost_rows": self.lost_rows,
            "ledger_minus_invoice_micro_usd": self.difference,
            "booked_late": self.late.0,
            "booked_late_micro_usd": self.late.1,
            "hash_equal": self.hash_equal,
            "finished": self.finished,
            "machines": self.machines,
            "invoiced_micro_usd": self.invoiced,
            "losses_not_reached": self.unreached,
            "failed_seeds": self.failed,
        })
    }
}

fn dollars(micros: i64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}
