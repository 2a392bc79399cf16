//! What others make of our objects.

use serde_json::Value;

/// What kstatus computes (cli-utils, `pkg/kstatus/status`): the rules that `helm --wait` and Flux follow.
pub(crate) fn kstatus(object: &Value) -> &'static str {
    if !object["metadata"]["deletionTimestamp"].is_null() {
        return "Terminating";
    }
    let status = &object["status"];
    let observed = &status["observedGeneration"];
    if !observed.is_null() && *observed != object["metadata"]["generation"] {
        return "InProgress";
    }
    let condition = |type_: &str| {
        let conditions = status["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().find(|c| c["type"] == type_).and_then(|c| c["status"].as_str())
    };
    match (condition("Reconciling"), condition("Stalled"), condition("Ready")) {
        (Some("True"), _, _) => "InProgress",
        (_, Some("True"), _) => "Failed",
        (_, _, Some("False" | "Unknown")) => "InProgress",
        _ => "Current",
    }
}
