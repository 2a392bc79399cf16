//! What runs, and how it ended: progress, cost, limits, and each end counted once.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::reason::Reason;
use petaflop_store::report::{Progress, ProgressReader};

use super::{OperateError, Operator};
use crate::claims::StoredClaim;
use crate::embedded::health;
use crate::embedded::job::{End, Phase, Task};
use crate::restart::not_before;
use crate::status::{LastWord, take_over};

/// A server that does not answer this long after its start has failed.
const READY_WITHIN: SignedDuration = SignedDuration::from_secs(120);

impl Operator<'_> {
    /// Everything that this job or service has cost, by the ledger.
    pub(super) async fn cost(&self) -> Result<petaflop_arbiter::money::Usd, OperateError> {
        let rows = self.ledger.rows().await?;
        Ok(rows.iter().filter(|row| row.job_uid == self.admission.uid).map(|row| row.amount).sum())
    }

    /// An instance runs: limits, and whether a server answers.
    pub(super) async fn runs(&mut self, stored: &StoredClaim, since: Timestamp) {
        let now = self.clock.now();
        self.status.refusals = 0;
        self.status.started.get_or_insert(now);
        let billed = stored.billed_from.unwrap_or(since);
        let millis = now.as_millisecond().saturating_sub(billed.as_millisecond());
        let others = self.cost_of_others(stored).await;
        let running = stored.claim.spec.offer.price.for_millis(millis);
        self.status.cost = others.saturating_add(running);
        match &self.admission.task {
            Task::Training(task) => {
                let limit = task.spec.max_total_cost.as_ref().and_then(|m| m.micro_dollars().ok());
                let limit = limit.map(petaflop_arbiter::money::Usd::from_micros);
                let seconds = task.spec.active_deadline_seconds;
                self.status.phase = Phase::Running;
                if let Some(limit) = limit.filter(|limit| self.status.cost >= *limit)
                    && self.status.end.is_none()
                {
                    let message =
                        format!("has cost {} $; maxTotalCost is {limit} $", self.status.cost);
                    self.end(Phase::Failed, Reason::CostLimitExceeded, &message);
                }
                if let (Some(seconds), Some(started)) = (seconds, self.status.started)
                    && now.duration_since(started) >= SignedDuration::from_secs(i64::from(seconds))
                    && self.status.end.is_none()
                {
                    let message = format!("activeDeadlineSeconds ({seconds}) is over");
                    self.end(Phase::Failed, Reason::DeadlineExceeded, &message);
                }
            }
            Task::Serving(task) => {
                let port = task.port;
                if health::answers(port).await {
                    self.status.phase = Phase::Available;
                    self.status.reason = None;
                    self.status.failures = 0;
                    self.status.url = Some(format!("http://127.0.0.1:{port}"));
                } else {
                    self.status.phase = Phase::Launching;
                    self.status.reason = Some(Reason::NewReplicaLaunching);
                    if now.duration_since(billed) > READY_WITHIN && self.status.end.is_none() {
                        let message = format!("does not answer at port {port}; see its log");
                        self.end(Phase::Failed, Reason::LaunchTimedOut, &message);
                    }
                }
            }
        }
    }

    /// What all other claims of this job or service have cost. They are closed while this one runs,
    /// so it is added up once a claim.
    pub(super) async fn cost_of_others(
        &mut self,
        stored: &StoredClaim,
    ) -> petaflop_arbiter::money::Usd {
        let claim = &stored.claim.uid;
        if let Some((known, cost)) = &self.others
            && known == claim
        {
            return *cost;
        }
        let Ok(rows) = self.ledger.rows().await else {
            return petaflop_arbiter::money::Usd::ZERO;
        };
        let cost = rows
            .iter()
            .filter(|row| row.job_uid == self.admission.uid && row.claim_uid != *claim)
            .map(|row| row.amount)
            .sum();
        self.others = Some((claim.clone(), cost));
        cost
    }

    /// An instance ended: what that means, counted once.
    pub(super) fn count_end(&mut self, claim: &str) {
        if self.status.counted.as_deref() == Some(claim) {
            return;
        }
        self.status.counted = Some(claim.to_owned());
        let last = match &self.reading {
            Some((_, _, last)) => last.clone(),
            None => LastWord::None,
        };
        match (&self.admission.task, last) {
            (Task::Training(_), LastWord::Finished { artifact, caveat }) => {
                self.status.artifact = Some(artifact);
                self.end(Phase::Complete, Reason::Succeeded, &caveat.unwrap_or_default());
            }
            (Task::Training(_), LastWord::Failed { message, retry: false }) => {
                self.end(Phase::Failed, Reason::InvalidSpec, &message);
            }
            // Somebody else ended it; it can go on from its checkpoint.
            (Task::Training(_), LastWord::Stopped) => {
                self.status.interruptions += 1;
                self.status.phase = Phase::Interrupted;
                self.status.reason = Some(Reason::SpotInterrupted);
            }
            (Task::Training(task), LastWord::Failed { message, retry: true }) => {
                self.failed(&message, task.spec.backoff_limit);
            }
            (Task::Training(task), LastWord::None) => {
                let message = "ended without a word (killed, or the machine went down)";
                self.failed(message, task.spec.backoff_limit);
            }
            // Another model, port or machine is needed; the same command fails again.
            (Task::Serving(_), LastWord::Failed { message, retry: false }) => {
                self.end(Phase::Failed, Reason::BlockedByFailedLoad, &message);
            }
            (Task::Serving(_), _) => {
                let log = self.folder.run(claim).join("log");
                let message = last_line(&log).unwrap_or_else(|| "ended without a word".to_owned());
                self.failed(&message, 3);
            }
        }
    }

    pub(super) fn failed(&mut self, message: &str, limit: u32) {
        self.status.failures += 1;
        self.status.phase = Phase::Interrupted;
        self.status.reason = Some(Reason::HeartbeatLost);
        self.status.message = message.to_owned();
        if self.status.failures > limit {
            let message =
                format!("failed {} times; the last time: {message}", self.status.failures);
            self.end(Phase::Failed, Reason::BackoffLimitExceeded, &message);
        } else {
            self.status.not_before = Some(not_before(self.clock.now(), self.status.failures));
        }
    }

    pub(super) fn end(&mut self, phase: Phase, reason: Reason, message: &str) {
        self.status.end = Some(End { phase, reason, message: message.to_owned() });
    }

    pub(super) fn read_progress(&mut self, claim: &str) {
        if self.reading.as_ref().is_none_or(|(known, _, _)| known != claim) {
            let file = self.folder.run(claim).join("progress.jsonl");
            self.reading = Some((claim.to_owned(), ProgressReader::new(file), LastWord::None));
        }
        let Some((_, reader, last)) = &mut self.reading else {
            return;
        };
        match reader.poll() {
            Ok(lines) => {
                for line in &lines {
                    take_over(&mut self.status, last, line);
                }
            }
            Err(error) => tracing::warn!(%error, "progress"),
        }
    }

    /// Lines of progress that came by an agent.
    pub(super) fn take_over(&mut self, lines: &[Progress]) {
        if let Some((_, _, last)) = &mut self.reading {
            lines.iter().for_each(|line| take_over(&mut self.status, last, line));
        }
    }
}

fn last_line(log: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&std::fs::read(log).ok()?).into_owned();
    text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
}
