//! On-demand prices: those that are shipped, and what the Pricing API answers. Pure.

use std::collections::BTreeMap;

use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::Capacity;
use serde_json::Value;

use super::dollars;
use crate::error::ProviderError;
use crate::snapshot;

/// Dollars an hour, by region and type.
pub(super) type Prices = BTreeMap<(String, String), UsdPerHour>;

/// The shipped prices.
///
/// # Errors
/// When the shipped table is damaged.
pub(super) fn shipped() -> Result<Prices, ProviderError> {
    let offers = snapshot::offers()?.into_iter();
    let ours =
        offers.filter(|offer| offer.provider == "aws" && offer.capacity == Capacity::OnDemand);
    // A list price is one for all zones of its region.
    Ok(ours.map(|offer| ((offer.region, offer.instance_type), offer.price)).collect())
}

/// One product of an answer: its type and its price an hour; `None` for what is neither.
pub(super) fn product(text: &str) -> Option<(String, UsdPerHour)> {
    let product: Value = serde_json::from_str(text).ok()?;
    let instance_type = product.pointer("/product/attributes/instanceType")?.as_str()?.to_owned();
    let terms = product.pointer("/terms/OnDemand")?.as_object()?;
    let dimensions = terms
        .values()
        .filter_map(|term| term.get("priceDimensions")?.as_object())
        .flat_map(|dimensions| dimensions.values());
    let price = |dimension: &Value| {
        let hours = dimension.get("unit").and_then(Value::as_str) == Some("Hrs");
        let usd = dimension.pointer("/pricePerUnit/USD")?.as_str()?;
        dollars::hourly(usd).filter(|_| hours)
    };
    Some((instance_type, dimensions.filter_map(price).min()?))
}

/// The filters that leave on-demand Linux on shared hosts of one region, and nothing twice.
pub(super) fn filters(region: &str) -> [(&'static str, String); 7] {
    [
        ("regionCode", region.to_owned()),
        ("operatingSystem", "Linux".to_owned()),
        ("tenancy", "Shared".to_owned()),
        ("preInstalledSw", "NA".to_owned()),
        ("capacitystatus", "Used".to_owned()),
        ("marketoption", "OnDemand".to_owned()),
        ("productFamily", "Compute Instance".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_prices_are_of_on_demand() {
        let all = shipped().expect("the shipped table is well-formed");
        let price = |name: &str| {
            all.get(&("us-east-1".to_owned(), name.to_owned())).map(|price| price.micros())
        };
        assert_eq!(price("g6.xlarge"), Some(804_800));
        assert_eq!(price("p5.48xlarge"), Some(55_040_000));
    }

    #[test]
    fn a_product_is_a_text_of_json_with_its_price_deep_inside() {
        let with = |unit: &str, usd: &str| {
            serde_json::json!({
                "product": { "attributes": { "instanceType": "c7a.xlarge" } },
                "terms": { "OnDemand": { "SKU.JRTCKXETXF": { "priceDimensions": {
                    "SKU.JRTCKXETXF.6YS6EN2CT7": { "unit": unit, "pricePerUnit": { "USD": usd } },
                } } } },
            })
            .to_string()
        };
        let (name, price) = product(&with("Hrs", "0.2052800000")).expect("a price");
        assert_eq!((name.as_str(), price.micros()), ("c7a.xlarge", 205_280));
        assert_eq!(product(&with("Hrs", "0.0000000000")), None, "reserved or dedicated, not free");
        assert_eq!(product(&with("GB", "0.1")), None);
        for odd in ["", "{}", "[]", "null", "<html>"] {
            assert_eq!(product(odd), None, "{odd}");
        }
    }
}
