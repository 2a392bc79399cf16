//! What a log line was about: each pass has a span with an id of its own, which all lines that are
//! written in it carry.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::Span;

use crate::cluster::table::Name;

/// What a pass may be about.
pub trait Named {
    /// Its namespace; empty for what has none.
    fn namespace(&self) -> &str;
    /// Its name.
    fn name(&self) -> &str;
}

impl Named for Name {
    fn namespace(&self) -> &str {
        &self.0
    }

    fn name(&self) -> &str {
        &self.1
    }
}

impl Named for String {
    fn namespace(&self) -> &str {
        ""
    }

    fn name(&self) -> &str {
        self
    }
}

/// The span of one pass over an object. On the level of errors, so that no filter drops it while
/// lines in it are written.
pub fn reconcile(kind: &'static str, key: &impl Named) -> Span {
    let (namespace, object) = (key.namespace(), key.name());
    tracing::error_span!("reconcile", kind, namespace, object, trace_id = trace_id())
}

/// The span of a pass that is about no object alone.
pub fn pass(of: &'static str) -> Span {
    tracing::error_span!("pass", of, trace_id = trace_id())
}

/// As the W3C has them: 32 hexadecimal digits. One half is this process's, the other counts.
fn trace_id() -> String {
    static PROCESS: LazyLock<String> = LazyLock::new(|| {
        let uid = crate::uid::random().unwrap_or_default();
        let hex: String = uid.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        format!("{hex:0>16}")
    });
    static PASSES: AtomicU64 = AtomicU64::new(1);
    format!("{}{:016x}", *PROCESS, PASSES.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_passes_have_one_id() {
        let (one, two) = (trace_id(), trace_id());
        assert_ne!(one, two);
        assert!(one.len() == 32 && one.chars().all(|c| c.is_ascii_hexdigit()), "{one}");
    }
}
