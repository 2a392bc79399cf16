//! Every bound and deadline of a gateway, with its default.

use std::time::Duration;

/// What a gateway allows. Sizes are bytes.
#[derive(Clone, Debug)]
pub struct Config {
    /// Connections of clients at once; further ones wait in the kernel's queue.
    pub connections: usize,
    /// Largest head of a request. Larger ones get 431.
    pub head_bytes: usize,
    /// Most header fields in a head.
    pub head_fields: usize,
    /// How long a client may take to send a head, and how long a connection may lie idle
    /// between two requests.
    pub head_timeout: Duration,
    /// Largest body of a request. Larger ones get 413.
    pub body_bytes: u64,
    /// Largest pause within a request's body. A longer one gets 408.
    pub body_timeout: Duration,
    /// Largest body that is kept so that it can be sent again. Larger ones are streamed,
    /// and fail with the replica they were streamed to.
    pub replay_bytes: u32,
    /// Bytes kept in all; when they are used up, bodies are streamed.
    pub replay_bytes_in_all: usize,
    /// Requests that may wait for a replica. Further ones get 503.
    pub hold_requests: usize,
    /// How long one may wait before it gets 503.
    pub hold_timeout: Duration,
    /// Requests at once on one replica; what is more waits here, where another replica
    /// can still take it.
    pub per_replica: usize,
    /// How often a request is tried. Never more than once on each replica and once again.
    pub tries: usize,
    /// How long connecting to a replica may take.
    pub connect_timeout: Duration,
    /// How long a replica may be silent: before its answer's head, and between two pieces of
    /// its body. Not repeated elsewhere: the next replica would take as long.
    pub idle_timeout: Duration,
    /// How long an unused connection to a replica is kept.
    pub keep_alive: Duration,
    /// Unused connections kept for each replica.
    pub idle_connections: usize,
    /// How long a replica is left alone after its first failure; doubles with each further one.
    pub backoff: Duration,
    /// Longest such pause.
    pub backoff_longest: Duration,
    /// Path that a failed replica must answer with 200 to 399 before it gets requests again.
    pub health_path: String,
    /// How long that answer may take.
    pub health_timeout: Duration,
    /// After the stop: how long new connections are still taken, until everybody has seen
    /// that `/readyz` fails.
    pub drain_delay: Duration,
    /// After that: how long requests may take to finish.
    pub drain_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connections: 8192,
            head_bytes: 32 << 10,
            head_fields: 100,
            head_timeout: Duration::from_secs(60),
            body_bytes: 64 << 20,
            body_timeout: Duration::from_secs(30),
            replay_bytes: 1 << 20,
            replay_bytes_in_all: 64 << 20,
            hold_requests: 1024,
            hold_timeout: Duration::from_secs(300),
            per_replica: 256,
            tries: 4,
            connect_timeout: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(300),
            keep_alive: Duration::from_secs(30),
            idle_connections: 64,
            backoff: Duration::from_millis(250),
            backoff_longest: Duration::from_secs(15),
            health_path: "/health/ready".to_owned(),
            health_timeout: Duration::from_secs(2),
            drain_delay: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(300),
        }
    }
}
