//! What speaks JSON 1.1: the image parameters of SSM, the list prices of Pricing.

use serde::Deserialize;
use serde_json::{Value, json};

use super::catalog::ON_DEMAND;
use super::error::Error;
use super::world::{Ask, World, dollars};

/// Regions that Pricing is in.
const PRICED_FROM: [&str; 3] = ["us-east-1", "eu-central-1", "ap-south-1"];
/// Rows of the longest page.
const LONGEST_PAGE: usize = 100;

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::client("SerializationException", error))
}

fn unknown(action: &str) -> Error {
    Error::client("UnknownOperationException", format!("{action} is not served"))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct GetParameter {
    name: String,
    #[serde(default)]
    #[expect(dead_code, reason = "public parameters are not encrypted")]
    with_decryption: bool,
}

/// SSM `GetParameter`.
pub(crate) fn parameter(ask: &Ask<'_>, action: &str, body: &[u8]) -> Result<Value, Error> {
    if action != "GetParameter" {
        return Err(unknown(action));
    }
    let GetParameter { name, .. } = read(body)?;
    let Some(value) = ask.region.parameters.get(&name) else {
        return Err(Error::client("ParameterNotFound", ""));
    };
    let region = &ask.region.name;
    Ok(json!({ "Parameter": {
        "ARN": format!("arn:aws:ssm:{region}::parameter{name}"),
        "DataType": "text",
        "LastModifiedDate": 1_763_000_000.0,
        "Name": name,
        "Type": "String",
        "Value": value,
        "Version": 1,
    } }))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct GetProducts {
    service_code: String,
    #[serde(default)]
    filters: Vec<Match>,
    #[serde(default)]
    format_version: Option<String>,
    #[serde(default)]
    next_token: Option<String>,
    #[serde(default)]
    max_results: Option<usize>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Match {
    r#type: String,
    field: String,
    value: String,
}

/// Pricing `GetProducts`: rows that are JSON in a text each.
pub(crate) fn products(
    world: &World,
    ask: &Ask<'_>,
    action: &str,
    body: &[u8],
) -> Result<Value, Error> {
    if action != "GetProducts" {
        return Err(unknown(action));
    }
    if !PRICED_FROM.contains(&ask.region.name.as_str()) {
        return Err(Error::not_served("Pricing in a region that it is not in"));
    }
    let asked: GetProducts = read(body)?;
    if asked.service_code != "AmazonEC2" {
        return Err(Error::client("NotFoundException", "Unknown service code"));
    }
    if asked.format_version.as_deref().is_some_and(|version| version != "aws_v1") {
        return Err(Error::client("InvalidParameterException", "FormatVersion must be aws_v1"));
    }
    if asked.filters.iter().any(|filter| filter.r#type != "TERM_MATCH") {
        return Err(Error::not_served("filters of Pricing other than TERM_MATCH"));
    }
    let most = asked.max_results.unwrap_or(LONGEST_PAGE);
    if !(1..=LONGEST_PAGE).contains(&most) {
        return Err(Error::client("InvalidParameterException", "MaxResults must be 1 to 100"));
    }
    let from = match asked.next_token.filter(|token| !token.is_empty()) {
        None => 0,
        Some(token) => token.parse::<usize>().map_err(|_| {
            Error::client("InvalidNextTokenException", "The pagination token is invalid")
        })?,
    };
    let rows: Vec<String> = rows(world, &asked.filters);
    let next = Some(from.saturating_add(most)).filter(|next| *next < rows.len());
    let page: Vec<String> = rows.into_iter().skip(from).take(most).collect();
    let mut answer = json!({ "FormatVersion": "aws_v1", "PriceList": page });
    if let Some(next) = next {
        answer["NextToken"] = json!(next.to_string());
    }
    Ok(answer)
}

fn rows(world: &World, filters: &[Match]) -> Vec<String> {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    let mut rows = Vec::new();
    for (_, product) in world.engine.products() {
        let own = (product.region.as_str(), product.kind.as_str());
        if product.pool != ON_DEMAND || seen.contains(&own) {
            continue;
        }
        seen.push(own);
        let Some(kind) = world.catalog.kind(&product.kind) else { continue };
        let metal = product.kind.ends_with(".metal");
        let family = if metal { "Compute Instance (bare metal)" } else { "Compute Instance" };
        for (system, factor) in [("Linux", 1), ("Windows", 2)] {
            let attributes = [
                ("instanceType", product.kind.as_str()),
                ("regionCode", product.region.as_str()),
                ("operatingSystem", system),
                ("tenancy", "Shared"),
                ("preInstalledSw", "NA"),
                ("capacitystatus", "Used"),
                ("marketoption", "OnDemand"),
                ("servicecode", "AmazonEC2"),
            ];
            let fits = filters.iter().all(|Match { field, value, .. }| {
                let family = ("productFamily", family);
                attributes
                    .iter()
                    .chain([&family])
                    .any(|(name, found)| name == field && found == value)
            });
            if !fits {
                continue;
            }
            let sku = format!("{}.{}.{system}", product.region, product.kind);
            let mut attributes: serde_json::Map<String, Value> =
                attributes.iter().map(|(name, text)| ((*name).to_owned(), json!(text))).collect();
            attributes.insert("vcpu".to_owned(), json!(kind.vcpus.to_string()));
            attributes.insert("memory".to_owned(), json!(format!("{} GiB", kind.memory)));
            let price = dollars(product.on_demand * factor);
            let term = format!("{sku}.JRTCKXETXF");
            let dimension = format!("{term}.6YS6EN2CT7");
            let row = json!({
                "product": { "productFamily": family, "attributes": attributes, "sku": sku },
                "serviceCode": "AmazonEC2",
                "terms": { "OnDemand": { term: { "priceDimensions": { dimension: {
                    "unit": "Hrs",
                    "beginRange": "0",
                    "endRange": "Inf",
                    "pricePerUnit": { "USD": price },
                } } } } },
            });
            rows.push(row.to_string());
        }
    }
    rows
}
