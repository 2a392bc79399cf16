//! The one thing that REST v2 cannot do: spot pods, by GraphQL, which is to go early in 2027.
//! Bytes in, prices and answers out. Pure.
//!
//! One pays one's **bid**, for each accelerator, and not the price at which the market clears: the
//! least bid that is taken is bid.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use petaflop_arbiter::money::UsdPerHour;
use serde_json::Value;

use super::answer::shorten;
use super::dollars;
use super::thing::Cloud;

/// Price of one accelerator, by cloud, size of the machine and type.
pub(super) type Prices = BTreeMap<(Cloud, u32, String), UsdPerHour>;

/// The purchase.
pub(super) const RENT: &str = "mutation($i:PodRentInterruptableInput!){podRentInterruptable(input:$i)\
                               {id costPerHr}}";

/// Asks for all prices at all sizes in one request. Community's `lowestPrice` is one country's, and
/// null where none is named: there the type's own spot price is the least bid that is known.
pub(super) fn question(counts: &[u32], min_cuda: Option<&str>) -> String {
    let cuda = min_cuda.map(|version| format!(",minCudaVersion:\"{version}\"")).unwrap_or_default();
    let mut query =
        "query{gpuTypes{id secureCloud communityCloud secureSpotPrice communitySpotPrice"
            .to_owned();
    for count in counts {
        // Writing to a string cannot fail.
        let _ = write!(
            query,
            " s{count}:lowestPrice(input:{{gpuCount:{count},secureCloud:true{cuda}}}){{minimumBidPrice}}"
        );
    }
    query.push_str("}}");
    query
}

/// What it answered.
///
/// # Errors
/// When this is no price list, in words.
pub(super) fn prices(body: &[u8], counts: &[u32]) -> Result<Prices, String> {
    let body: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if let Some(errors) = errors(&body) {
        return Err(errors);
    }
    let types = body.get("data").and_then(|data| data.get("gpuTypes")).and_then(Value::as_array);
    let types = types.ok_or("no list of accelerators in the answer")?;
    let mut prices = Prices::new();
    for entry in types {
        let Some(id) = entry.get("id").and_then(Value::as_str) else { continue };
        for (cloud, flag, usual) in [
            (Cloud::Secure, "secureCloud", "secureSpotPrice"),
            (Cloud::Community, "communityCloud", "communitySpotPrice"),
        ] {
            // A price may be there for a cloud that does not have the type.
            if entry.get(flag).and_then(Value::as_bool) != Some(true) {
                continue;
            }
            let usual = entry.get(usual).and_then(dollars::hourly);
            for count in counts {
                let lowest = match cloud {
                    Cloud::Secure => entry.get(format!("s{count}")),
                    Cloud::Community => None,
                };
                let bid = lowest.and_then(|lowest| lowest.get("minimumBidPrice"));
                // Null at this size means that nothing is quoted, not that it is delisted.
                if let Some(price) = bid.and_then(dollars::hourly).or(usual) {
                    prices.insert((cloud, *count, id.to_owned()), price);
                }
            }
        }
    }
    Ok(prices)
}

/// How a purchase was answered with status 200.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rented {
    /// It is there, at this price an hour for the whole pod, where that was said.
    Made { id: String, cost: Option<UsdPerHour> },
    /// It is not, in these words.
    Refused(String),
    /// The request itself was not understood.
    Invalid(String),
    /// Nothing was said: it may be there.
    Unclear,
}

/// Reads the answer to [`RENT`]. Errors come with status 200 too.
pub(super) fn rented(body: &[u8]) -> Rented {
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return Rented::Unclear };
    let pod = body.get("data").and_then(|data| data.get("podRentInterruptable"));
    let id = pod.and_then(|pod| pod.get("id")).and_then(Value::as_str);
    if let Some(id) = id.filter(|id| !id.is_empty()) {
        let cost = pod.and_then(|pod| pod.get("costPerHr")).and_then(dollars::hourly);
        return Rented::Made { id: id.to_owned(), cost };
    }
    match errors(&body) {
        Some(words) if words.contains("GRAPHQL_VALIDATION_FAILED") => Rented::Invalid(words),
        Some(words) => Rented::Refused(words),
        None => Rented::Unclear,
    }
}

fn errors(body: &Value) -> Option<String> {
    let errors = body.get("errors")?.as_array().filter(|errors| !errors.is_empty())?;
    let words = errors.iter().map(|error| {
        let message = error.get("message").and_then(Value::as_str).unwrap_or("(no message)");
        let code = error.get("extensions").and_then(|more| more.get("code"));
        match code.and_then(Value::as_str) {
            Some(code) => format!("{message} ({code})"),
            None => message.to_owned(),
        }
    });
    Some(shorten(&words.collect::<Vec<_>>().join("; "), 600))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_sizes_are_asked_for_at_once() {
        let with = question(&[8], Some("12.8"));
        assert!(with.contains(
            "s8:lowestPrice(input:{gpuCount:8,secureCloud:true,minCudaVersion:\"12.8\"})"
        ));
        let question = question(&[1, 8], None);
        assert!(question.contains("s1:lowestPrice(input:{gpuCount:1,secureCloud:true})"));
        assert!(question.contains("s8:lowestPrice(input:{gpuCount:8,secureCloud:true})"));
        assert!(!question.contains("secureCloud:false"), "nothing is said without a country");
        assert_eq!(question.matches('{').count(), question.matches('}').count());
    }

    #[test]
    fn a_spot_price_is_the_least_bid_for_one_accelerator_where_the_cloud_has_it() {
        let body = json!({ "data": { "gpuTypes": [
            { "id": "L40S", "secureCloud": true, "communityCloud": false, "secureSpotPrice": 0.5,
              "communitySpotPrice": 0.1, "s1": { "minimumBidPrice": 0.4 },
              "s8": { "minimumBidPrice": null }, "c1": { "minimumBidPrice": 0.1 } },
            { "id": "A40", "secureCloud": false, "communityCloud": true, "secureSpotPrice": 0.2,
              "communitySpotPrice": 0.3, "s1": { "minimumBidPrice": 0.1 } },
            { "id": "gone", "secureCloud": true, "communityCloud": true, "secureSpotPrice": 0,
              "communitySpotPrice": null, "s1": null },
            null, { "id": 7 },
        ] } });
        let prices = prices(body.to_string().as_bytes(), &[1, 8]).expect("prices");
        let of = |cloud, count, id: &str| {
            prices.get(&(cloud, count, id.to_owned())).map(|price| price.micros())
        };
        assert_eq!(of(Cloud::Secure, 1, "L40S"), Some(400_000));
        assert_eq!(of(Cloud::Secure, 8, "L40S"), Some(500_000));
        assert_eq!(of(Cloud::Community, 1, "L40S"), None);
        assert_eq!(of(Cloud::Community, 1, "A40"), Some(300_000));
        assert_eq!(of(Cloud::Community, 8, "A40"), Some(300_000));
        assert_eq!(prices.len(), 4);
    }

    #[test]
    fn errors_come_with_status_200() {
        let none = "There are no longer any instances available with the request specifications.";
        for (body, expected) in [
            (
                json!({ "data": { "podRentInterruptable": { "id": "p", "costPerHr": 0.4 } } }),
                Rented::Made { id: "p".into(), cost: UsdPerHour::from_micros(400_000).ok() },
            ),
            (
                json!({ "data": { "podRentInterruptable": { "id": "p" } } }),
                Rented::Made { id: "p".into(), cost: None },
            ),
            (
                json!({ "errors": [{ "message": none }], "data": { "podRentInterruptable": null } }),
                Rented::Refused(none.into()),
            ),
            (
                json!({ "errors": [{ "message": "no field x",
                        "extensions": { "code": "GRAPHQL_VALIDATION_FAILED" } }] }),
                Rented::Invalid("no field x (GRAPHQL_VALIDATION_FAILED)".into()),
            ),
            (json!({ "data": { "podRentInterruptable": null } }), Rented::Unclear),
            (json!({ "errors": [] }), Rented::Unclear),
            (json!(null), Rented::Unclear),
        ] {
            assert_eq!(rented(body.to_string().as_bytes()), expected, "{body}");
        }
        assert_eq!(rented(b"<html>"), Rented::Unclear);
    }
}
