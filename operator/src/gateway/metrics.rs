//! What `/metrics` tells (OpenMetrics). Names begin with `petaflop_gateway_`.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The content type of [`Metrics::text`].
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds: from a model list to a service that wakes from zero.
const FIRST_BYTE_BUCKETS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 100.0, 300.0];

/// Every metric of one gateway.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Code, Counter>,
    retries: Family<Reason, Counter>,
    /// Requests that arrived and whose answers are not complete.
    pub(super) in_flight: Gauge,
    /// Of these, the ones that wait for a replica.
    pub(super) held: Gauge,
    /// Answers that broke off after their first byte.
    pub(super) cut: Counter,
    /// Requests whose client left before the answer was complete.
    pub(super) abandoned: Counter,
    replica_in_flight: Family<OfReplica, Gauge>,
    replica_failures: Family<OfReplica, Counter>,
    first_byte: Histogram,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Code {
    code: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfReplica {
    replica: String,
}

impl Metrics {
    /// All at zero.
    pub(super) fn new() -> Self {
        let mut all = Registry::with_prefix("petaflop_gateway");
        let metrics = Self {
            requests: Family::default(),
            retries: Family::default(),
            in_flight: Gauge::default(),
            held: Gauge::default(),
            cut: Counter::default(),
            abandoned: Counter::default(),
            replica_in_flight: Family::default(),
            replica_failures: Family::default(),
            first_byte: Histogram::new(FIRST_BYTE_BUCKETS),
            registry: Registry::default(),
        };
        all.register("requests", "Answers begun, by status code", metrics.requests.clone());
        all.register(
            "retries",
            "Requests sent once more before the first byte, by why",
            metrics.retries.clone(),
        );
        all.register(
            "in_flight_requests",
            "Requests whose answers are not complete",
            metrics.in_flight.clone(),
        );
        all.register("held_requests", "Requests that wait for a replica", metrics.held.clone());
        all.register(
            "cut_answers",
            "Answers that broke off on the replica's side after their first byte",
            metrics.cut.clone(),
        );
        all.register(
            "abandoned_requests",
            "Requests whose client left before the answer was complete",
            metrics.abandoned.clone(),
        );
        all.register(
            "replica_in_flight_requests",
            "Requests sent to a replica whose answers are not complete",
            metrics.replica_in_flight.clone(),
        );
        all.register(
            "replica_failures",
            "Times that a replica failed and was left alone for a while",
            metrics.replica_failures.clone(),
        );
        all.register_with_unit(
            "time_to_first_byte",
            "From a request's arrival to its answer's head, waiting included",
            Unit::Seconds,
            metrics.first_byte.clone(),
        );
        Self { registry: all, ..metrics }
    }

    /// An answer with `code` began `after` the request's arrival.
    pub(super) fn answered(&self, code: u16, after: Duration) {
        self.requests.get_or_create(&Code { code: code.into() }).inc();
        self.first_byte.observe(after.as_secs_f64());
    }

    /// A request is sent once more.
    pub(super) fn retried(&self, reason: &'static str) {
        self.retries.get_or_create(&Reason { reason }).inc();
    }

    /// The gauge of a replica that appeared.
    pub(super) fn replica(&self, name: &str) -> Gauge {
        self.replica_in_flight.get_or_create_owned(&OfReplica { replica: name.to_owned() })
    }

    /// A replica failed.
    pub(super) fn replica_failed(&self, name: &str) {
        self.replica_failures.get_or_create(&OfReplica { replica: name.to_owned() }).inc();
    }

    /// A replica is gone, and its series with it: names are never used again.
    pub(super) fn forget(&self, name: &str) {
        let labels = OfReplica { replica: name.to_owned() };
        self.replica_in_flight.remove(&labels);
        self.replica_failures.remove(&labels);
    }

    /// The text form.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes whatever is written to it");
        text
    }
}
