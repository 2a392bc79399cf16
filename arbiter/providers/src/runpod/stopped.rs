//! When a stopped pod stopped: REST v2 does not say, GraphQL does, in words. Pure.

use jiff::Timestamp;
use jiff::fmt::strtime;
use serde_json::{Value, json};

/// Asks for it.
pub(super) fn question(id: &str) -> Value {
    let query = "query($i:PodFilter){pod(input:$i){lastStatusChange}}";
    json!({ "query": query, "variables": { "i": { "podId": id } } })
}

/// Reads `Exited by Runpod: <time>`, whoever it was; `None` where no time can be read.
pub(super) fn at(body: &[u8]) -> Option<Timestamp> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let words = body.get("data")?.get("pod")?.get("lastStatusChange")?.as_str()?;
    let (change, time) = words.split_once(": ")?;
    let time = time.trim();
    change.starts_with("Exited").then(|| time.parse().ok().or_else(|| as_browsers_write(time)))?
}

/// `Fri Nov 20 2026 10:00:00 GMT+0000 (Coordinated Universal Time)`.
fn as_browsers_write(time: &str) -> Option<Timestamp> {
    let time = time.split(" (").next()?;
    let read = strtime::parse("%a %b %d %Y %H:%M:%S GMT%z", time).ok()?;
    read.to_timestamp().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_the_end_is_read_and_no_other() {
        let told = |words: Value| {
            at(json!({ "data": { "pod": { "lastStatusChange": words } } }).to_string().as_bytes())
        };
        let ten = "2026-11-20T10:00:00Z".parse().ok();
        assert_eq!(told(json!("Exited by Runpod: 2026-11-20T10:00:00Z")), ten);
        let browser = "Exited by user: Fri Nov 20 2026 11:00:00 GMT+0100 (Central European Time)";
        assert_eq!(told(json!(browser)), ten);
        for nothing in [
            json!("Rented by User: 2026-11-20T10:00:00Z"),
            json!("Exited by Runpod: yesterday"),
            json!("Exited"),
            json!(null),
            json!(7),
        ] {
            assert_eq!(told(nothing.clone()), None, "{nothing}");
        }
        assert_eq!(at(b"<html>"), None);
    }
}
