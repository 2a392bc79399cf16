//! What `/metrics` tells, in the text form that Prometheus reads (OpenMetrics).
//! Names begin with `petaflop_serve_`.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The content type of [`Metrics::text`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds to the first token: from one step of a small model to a full queue.
const FIRST_TOKEN_BUCKETS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0];
/// Seconds between two tokens.
const OUTPUT_TOKEN_BUCKETS: [f64; 13] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0];

/// Every metric of one server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Answered requests, by path and status code.
    requests: Family<RequestLabels, Counter>,
    /// Requests that wait for admission.
    pub(crate) queue_depth: Gauge,
    /// Sequences in the batch.
    pub(crate) running: Gauge,
    /// Key/value blocks promised to running sequences.
    pub(crate) kv_blocks_used: Gauge,
    /// Prompt tokens read.
    pub(crate) prompt_tokens: Counter,
    /// Tokens generated.
    pub(crate) generated_tokens: Counter,
    /// Clients that went away before their answer was complete.
    pub(crate) abandoned: Counter,
    first_token: Histogram,
    output_token: Histogram,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    path: String,
    code: u32,
}

impl Metrics {
    /// All at zero; `kv_blocks` exist in all, and the plan takes `planned_bytes` of memory.
    pub(crate) fn new(kv_blocks: usize, planned_bytes: u64) -> Self {
        let mut all = Registry::with_prefix("petaflop_serve");
        let requests = Family::default();
        all.register("requests", "Requests answered, by path and status code", requests.clone());
        let queue_depth = Gauge::default();
        all.register("queue_depth", "Requests that wait for admission", queue_depth.clone());
        let running = Gauge::default();
        all.register("running_sequences", "Sequences in the batch", running.clone());
        let kv_blocks_used = Gauge::default();
        all.register(
            "kv_blocks_used",
            "Key/value cache blocks promised to running sequences",
            kv_blocks_used.clone(),
        );
        let kv_blocks_total: Gauge = Gauge::default();
        kv_blocks_total.set(i64::try_from(kv_blocks).unwrap_or(i64::MAX));
        all.register("kv_blocks_total", "Key/value cache blocks in all", kv_blocks_total);
        let planned: Gauge<u64, AtomicU64> = Gauge::default();
        planned.set(planned_bytes);
        all.register_with_unit(
            "planned",
            "Memory that the plan takes: weights, key/value cache, activations",
            Unit::Bytes,
            planned,
        );
        let prompt_tokens = Counter::default();
        all.register("prompt_tokens", "Prompt tokens read", prompt_tokens.clone());
        let generated_tokens = Counter::default();
        all.register("generated_tokens", "Tokens generated", generated_tokens.clone());
        let abandoned = Counter::default();
        all.register(
            "abandoned_requests",
            "Requests whose client went away before the answer was complete",
            abandoned.clone(),
        );
        let first_token = Histogram::new(FIRST_TOKEN_BUCKETS);
        all.register_with_unit(
            "time_to_first_token",
            "From the request's arrival to its first token",
            Unit::Seconds,
            first_token.clone(),
        );
        let output_token = Histogram::new(OUTPUT_TOKEN_BUCKETS);
        all.register_with_unit(
            "time_per_output_token",
            "Between two tokens of one answer",
            Unit::Seconds,
            output_token.clone(),
        );
        Metrics {
            registry: all,
            requests,
            queue_depth,
            running,
            kv_blocks_used,
            prompt_tokens,
            generated_tokens,
            abandoned,
            first_token,
            output_token,
        }
    }

    /// A request was answered with `code`.
    pub(crate) fn answered(&self, path: String, code: u16) {
        let labels = RequestLabels { path, code: code.into() };
        self.requests.get_or_create(&labels).inc();
    }

    /// A request's first token came `after` its arrival.
    pub(crate) fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    /// A further token came `after` the one before it.
    pub(crate) fn output_token(&self, after: Duration) {
        self.output_token.observe(after.as_secs_f64());
    }

    /// The text form.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes whatever is written to it");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_is_the_committed_one() {
        let metrics = Metrics::new(64, 1_048_576);
        metrics.answered("/v1/completions".into(), 200);
        metrics.answered("/v1/completions".into(), 200);
        metrics.queue_depth.set(3);
        metrics.running.set(2);
        metrics.kv_blocks_used.set(10);
        metrics.prompt_tokens.inc_by(7);
        metrics.generated_tokens.inc_by(5);
        metrics.first_token(Duration::from_millis(30));
        metrics.output_token(Duration::from_millis(4));
        insta::assert_snapshot!(metrics.text());
    }
}
