//! `DescribeSpotPriceHistory`: a log of changes, the newest first. The last change before the time
//! that is asked for belongs to it, however old: it is the price of that time.

use jiff::Timestamp;

use super::catalog::{HISTORY, SPOT};
use super::error::Error;
use super::filter;
use super::page;
use super::world::{Ask, World, dollars, iso};
use super::xml::Xml;

const FILTERS: &[&str] = &[
    "availability-zone",
    "availability-zone-id",
    "instance-type",
    "product-description",
    "spot-price",
    "timestamp",
];

/// What runs on it, and what that costs more by the vCPU, micro-dollars an hour: made, but for Linux.
const SYSTEMS: &[(&str, i64)] = &[("Linux/UNIX", 0), ("Windows", 46_000)];

struct Row {
    at: Timestamp,
    kind: String,
    zone: String,
    zone_id: String,
    system: &'static str,
    price: i64,
}

/// `DescribeSpotPriceHistory`.
pub(crate) fn describe(world: &World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let form = ask.form;
    let zone = form.text("AvailabilityZone");
    let zone_id = form.text("AvailabilityZoneId");
    if zone.is_some() && zone_id.is_some() {
        let message = "Only one of AvailabilityZone and AvailabilityZoneId may be specified";
        return Err(Error::combination(message));
    }
    let kinds = form.list("InstanceType");
    let systems = form.list("ProductDescription");
    let filters = form.filters(FILTERS)?;
    let (start, end) = (form.time("StartTime")?, form.time("EndTime")?);
    let page = page::read(ask, 1..=1000)?;
    ask.ready()?;
    let now = world.engine.now();
    let oldest = now.saturating_sub(HISTORY).unwrap_or(now);
    let start = start.unwrap_or(oldest).max(oldest);
    let end = end.unwrap_or(now).min(now);
    let mut rows = Vec::new();
    for (_, product) in world.engine.products() {
        let (Some(series), Some(id)) = (&product.spot, &product.zone) else { continue };
        let here = product.pool == SPOT && product.region == ask.region.name;
        let place = ask.region.zones.iter().find(|zone| zone.id == *id).filter(|_| here);
        let Some(place) = place else { continue };
        let wanted = zone.as_ref().is_none_or(|zone| *zone == place.name)
            && zone_id.as_ref().is_none_or(|id| *id == place.id)
            && (kinds.is_empty() || kinds.contains(&product.kind));
        if !wanted {
            continue;
        }
        let vcpus = world.catalog.kind(&product.kind).map_or(0, |kind| i64::from(kind.vcpus));
        for (system, more) in SYSTEMS {
            if !systems.is_empty() && !systems.iter().any(|name| name == system) {
                continue;
            }
            let mut changes = series.history(start, end).to_vec();
            if changes.first().is_none_or(|(at, _)| *at > start) {
                // It never changed before: its first price is as old as is told.
                changes.insert(0, (oldest, series.at(oldest)));
            }
            rows.extend(changes.into_iter().map(|(at, price)| Row {
                at,
                kind: product.kind.clone(),
                zone: place.name.clone(),
                zone_id: place.id.clone(),
                system,
                price: price + more * vcpus,
            }));
        }
    }
    rows.retain(|row| {
        filter::all(&filters, |name| {
            vec![match name {
                "availability-zone" => row.zone.clone(),
                "availability-zone-id" => row.zone_id.clone(),
                "instance-type" => row.kind.clone(),
                "product-description" => row.system.to_owned(),
                "spot-price" => dollars(row.price),
                _ => iso(row.at),
            }]
        })
    });
    rows.sort_by_key(|row| std::cmp::Reverse(row.at));
    let (rows, next) = page.cut(ask, world.page, rows)?;
    let mut xml = Xml::default();
    xml.items("spotPriceHistorySet", rows, |xml, row| {
        xml.leaf("instanceType", row.kind)
            .leaf("productDescription", row.system)
            .leaf("spotPrice", dollars(row.price))
            .leaf("timestamp", iso(row.at))
            .leaf("availabilityZone", row.zone)
            .leaf("availabilityZoneId", row.zone_id);
    });
    // Empty, not absent, at the end.
    xml.leaf("nextToken", next.unwrap_or_default());
    Ok(xml)
}
