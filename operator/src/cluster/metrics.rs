//! What happens, counted since this process began. What *is* (claims, offers, money) is read from
//! where it is known whenever somebody asks: [`crate::http::metrics`].
//!
//! A pass has exactly one [`Outcome`], a request to a provider exactly one code; work that is
//! dropped half-way counts too, as abandoned.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::decision::{Decision, Outcome as Decided};
use petaflop_arbiter::reason::Reason;
use petaflop_providers::Provider;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::cluster::error::{Error, is_conflict};

mod requests;
use requests::Counted;

/// Seconds: from a pass over something that did not change to one that waits for a slow provider.
const BUCKETS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0];

/// Who makes passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// Over TrainingJobs.
    TrainingJob,
    /// Over InferenceServices.
    InferenceService,
    /// Over ComputeClaims.
    ComputeClaim,
    /// Over ComputeProviders.
    ComputeProvider,
    /// Over SpendBudgets.
    SpendBudget,
    /// The placement pass over all that waits.
    Placement,
    /// The sweep of one provider.
    Sweep,
}

impl Controller {
    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TrainingJob => "TrainingJob",
            Self::InferenceService => "InferenceService",
            Self::ComputeClaim => "ComputeClaim",
            Self::ComputeProvider => "ComputeProvider",
            Self::SpendBudget => "SpendBudget",
            Self::Placement => "placement",
            Self::Sweep => "sweep",
        }
    }
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Done,
    /// Somebody else wrote first; tried again at once.
    Conflict,
    /// For this reason.
    Error(Reason),
    /// A fault of ours.
    Panicked,
    /// Dropped half-way: this process no longer leads, or ends.
    Abandoned,
}

impl Outcome {
    /// Of what a pass returned.
    pub fn of<T>(result: &Result<T, Error>) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(Error::Api { source, .. }) if is_conflict(source) => Self::Conflict,
            Err(error) => Self::Error(error.reason()),
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Conflict => "conflict",
            Self::Error(_) => "error",
            Self::Panicked => "panicked",
            Self::Abandoned => "abandoned",
        }
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::Error(reason) => reason.as_str(),
            Self::Done | Self::Conflict | Self::Panicked | Self::Abandoned => "",
        }
    }
}

/// All that is counted. Clones count into the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    clock: Clock,
    registry: Arc<Registry>,
    passes: Family<OfPass, Counter>,
    pass_seconds: Family<OfController, Histogram, fn() -> Histogram>,
    under_way: Arc<Mutex<UnderWay>>,
    decisions: Family<OfDecision, Counter>,
    decision_seconds: Histogram,
    savings: Family<Baseline, Counter<f64, AtomicU64>>,
    requests: Family<OfRequest, Counter>,
    request_seconds: Family<OfOperation, Histogram, fn() -> Histogram>,
    orphans: Family<OfProvider, Counter>,
    unfit: Family<OfUnfit, Counter>,
    doubles: Family<OfProvider, Counter>,
    abandoned: Counter,
    ambiguous: Counter,
    interruptions: Counter,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfPass {
    controller: &'static str,
    outcome: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfController {
    controller: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfDecision {
    result: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Baseline {
    baseline: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfRequest {
    provider: String,
    operation: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfOperation {
    provider: String,
    operation: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfProvider {
    provider: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfUnfit {
    provider: String,
    reason: &'static str,
}

/// Passes that have begun, and when (time since boot).
#[derive(Debug, Default)]
struct UnderWay {
    next: u64,
    began: BTreeMap<u64, Duration>,
}

impl Metrics {
    /// All at zero.
    pub fn new(clock: Clock) -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        let mut metrics = Self {
            clock,
            registry: Arc::default(),
            passes: Family::default(),
            pass_seconds: Family::new_with_constructor(histogram),
            under_way: Arc::default(),
            decisions: Family::default(),
            decision_seconds: histogram(),
            savings: Family::default(),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(histogram),
            orphans: Family::default(),
            unfit: Family::default(),
            doubles: Family::default(),
            abandoned: Counter::default(),
            ambiguous: Counter::default(),
            interruptions: Counter::default(),
        };
        metrics.savings.get_or_create(&Baseline { baseline: "ondemand" }).inc_by(0.0);
        metrics.registry = Arc::new(metrics.registered());
        metrics
    }

    /// To be encoded. Clones of the counters are in it.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    fn registered(&self) -> Registry {
        let mut all = Registry::with_prefix("petaflop");
        all.register(
            "reconciliations",
            "Passes of the controllers, by how they ended and why",
            self.passes.clone(),
        );
        all.register(
            "reconcile_duration_seconds",
            "How long passes took",
            self.pass_seconds.clone(),
        );
        all.register(
            "arbiter_decisions",
            "Decisions about workloads that lacked a machine, by what came out and why",
            self.decisions.clone(),
        );
        all.register(
            "arbiter_decision_duration_seconds",
            "How long deciding about all workloads took, reading and writing left out",
            self.decision_seconds.clone(),
        );
        all.register(
            "savings_usd",
            "Dollars that decisions expected to save against the cheapest on-demand offer that would do",
            self.savings.clone(),
        );
        all.register(
            "provider_requests",
            "Requests to providers; code is Ok, or the reason that conditions give too",
            self.requests.clone(),
        );
        all.register(
            "provider_request_duration_seconds",
            "How long requests to providers took",
            self.request_seconds.clone(),
        );
        all.register(
            "orphans_terminated",
            "Machines that no claim wanted and that the sweep ended",
            self.orphans.clone(),
        );
        all.register(
            "instances_unfit",
            "Machines that were not what they were bought for and were ended at once, and why",
            self.unfit.clone(),
        );
        all.register(
            "offers_doubled",
            "Quotes that were left out, since their provider gave the same id another one",
            self.doubles.clone(),
        );
        all.register(
            "instances_abandoned",
            "Machines that were given up by hand, and may still bill",
            self.abandoned.clone(),
        );
        all.register(
            "launch_ambiguous",
            "Launches whose answer was lost or unclear",
            self.ambiguous.clone(),
        );
        all.register(
            "spot_interruptions",
            "Machines that were taken away from workloads",
            self.interruptions.clone(),
        );
        all
    }

    /// A pass begins.
    pub fn begin(&self, controller: Controller) -> Pass {
        let began = self.clock.boottime();
        let mut under_way = self.lock();
        under_way.next += 1;
        let id = under_way.next;
        under_way.began.insert(id, began);
        drop(under_way);
        Pass { metrics: self.clone(), controller, began, id, outcome: Outcome::Abandoned }
    }

    /// For how long the oldest pass has been under way.
    pub fn longest_under_way(&self) -> Duration {
        let oldest = self.lock().began.values().min().copied();
        oldest.map_or(Duration::ZERO, |began| self.clock.boottime().saturating_sub(began))
    }

    /// What one placement pass decided, and how long (by [`Clock::boottime`]) it took.
    pub fn decided(&self, decisions: &[Decision], took: Duration) {
        self.decision_seconds.observe(took.as_secs_f64());
        for decision in decisions {
            let (result, reason) = match &decision.outcome {
                // Nothing was to be decided.
                Decided::Settled { .. } => continue,
                Decided::Placed { .. } => ("placed", decision.warning.map_or("", Reason::as_str)),
                Decided::Moves { reason, .. } => ("moved", reason.as_str()),
                Decided::Waiting { reason, .. } => ("waiting", reason.as_str()),
            };
            self.decisions.get_or_create(&OfDecision { result, reason }).inc();
            // A counter cannot go down; what was dearer than it might have been saved nothing.
            if let (Decided::Placed { .. }, Some(saving)) = (&decision.outcome, &decision.saving) {
                let baseline = Baseline { baseline: "ondemand" };
                self.savings.get_or_create(&baseline).inc_by(saving.saved.as_f64().max(0.0));
            }
        }
    }

    /// The sweep ended a machine.
    pub fn orphan_terminated(&self, provider: &str) {
        self.orphans.get_or_create(&OfProvider { provider: provider.to_owned() }).inc();
    }

    /// A machine is not what it was bought for.
    pub fn unfit(&self, provider: &str, reason: Reason) {
        let (provider, reason) = (provider.to_owned(), reason.as_str());
        self.unfit.get_or_create(&OfUnfit { provider, reason }).inc();
    }

    /// So many quotes were left out for others of the same id.
    pub fn doubled(&self, provider: &str, quotes: u64) {
        self.doubles.get_or_create(&OfProvider { provider: provider.to_owned() }).inc_by(quotes);
    }

    /// Somebody gave a machine up by hand.
    pub fn instance_abandoned(&self) {
        self.abandoned.inc();
    }

    /// How many were.
    pub fn instances_abandoned(&self) -> u64 {
        self.abandoned.get()
    }

    /// Machines were taken away from a workload.
    pub fn interrupted(&self, times: u32) {
        self.interruptions.inc_by(u64::from(times));
    }

    /// The same provider, its requests counted.
    pub fn counted(&self, provider: Arc<dyn Provider>) -> Arc<dyn Provider> {
        // There from the start, so that the first one shows as a rise.
        let of = OfProvider { provider: provider.name().to_owned() };
        self.orphans.get_or_create(&of).inc_by(0);
        let reason = Reason::AcceleratorProbeFailed.as_str();
        self.unfit.get_or_create(&OfUnfit { provider: of.provider, reason }).inc_by(0);
        Arc::new(Counted { metrics: self.clone(), provider })
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pass under way. Dropped before [`Pass::end`] it counts as abandoned.
#[derive(Debug)]
#[must_use = "a pass that is dropped at once counts as abandoned"]
pub struct Pass {
    metrics: Metrics,
    controller: Controller,
    began: Duration,
    id: u64,
    outcome: Outcome,
}

impl Pass {
    /// It ended by itself.
    pub fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let Self { metrics, controller, began, id, outcome } = self;
        metrics.lock().began.remove(id);
        let controller = controller.as_str();
        let (outcome, reason) = (outcome.as_str(), outcome.reason());
        metrics.passes.get_or_create(&OfPass { controller, outcome, reason }).inc();
        let took = metrics.clock.boottime().saturating_sub(*began);
        metrics
            .pass_seconds
            .get_or_create(&OfController { controller })
            .observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode_registry;

    use super::*;

    #[test]
    fn a_pass_that_is_dropped_counts_as_abandoned_and_is_no_longer_under_way() {
        let clock = Clock::manual(jiff::Timestamp::UNIX_EPOCH);
        let metrics = Metrics::new(clock.clone());
        let stuck = metrics.begin(Controller::ComputeClaim);
        clock.advance(Duration::from_secs(60));
        metrics.begin(Controller::TrainingJob).end(Outcome::Error(Reason::Unreachable));
        assert_eq!(metrics.longest_under_way(), Duration::from_secs(60));
        drop(stuck);
        assert_eq!(metrics.longest_under_way(), Duration::ZERO);
        let mut text = String::new();
        encode_registry(&mut text, metrics.registry()).expect("a String takes all");
        for line in [
            r#"petaflop_reconciliations_total{controller="ComputeClaim",outcome="abandoned",reason=""} 1"#,
            r#"petaflop_reconciliations_total{controller="TrainingJob",outcome="error",reason="Unreachable"} 1"#,
            r#"petaflop_reconcile_duration_seconds_sum{controller="ComputeClaim"} 60"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
