//! What was seen in a region in, offers out. Pure.
//!
//! One offer is an instance type in an availability zone, spot or on demand. Zones go by their ids:
//! their names are another for each account. A zone without a subnet of ours has no offers, and
//! Local and Wavelength Zones, which need a subnet and a consent of their own, only where named.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::primitives::DateTime;
use aws_sdk_ec2::types::{AvailabilityZone, AvailabilityZoneState, SpotPrice, Subnet as AwsSubnet};
use jiff::Timestamp;
use petaflop_arbiter::bill::Step;
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::{Arch, Capacity, HostOwner, Offer, Sale};

use super::config::AwsConfig;
use super::dollars;
use super::hardware::Hardware;
use super::prices::Prices;

/// Accelerators whose driver is in no image of AWS's: they would be paid for, and not be found.
const WITHOUT_IMAGE: &str = "g4ad.";

/// Names of Linux in the price history; the second is that of old accounts.
pub(super) const LINUX: [&str; 2] = ["Linux/UNIX", "Linux/UNIX (Amazon VPC)"];

/// A zone in which instances may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Zone {
    pub(super) id: String,
    /// As this account calls it.
    pub(super) name: String,
}

/// A subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subnet {
    pub(super) id: String,
    pub(super) zone: String,
    /// Addresses that are free in it.
    pub(super) free: i32,
}

/// What was seen of a region.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) region: String,
    pub(super) zones: Vec<Zone>,
    pub(super) subnets: Vec<Subnet>,
    pub(super) types: BTreeMap<String, Hardware>,
    /// Type and zone of what can be had at all.
    pub(super) offered: BTreeSet<(String, String)>,
    /// The price now, by type and zone.
    pub(super) spot: BTreeMap<(String, String), UsdPerHour>,
}

/// The zones in which instances may be.
pub(super) fn zones(config: &AwsConfig, zones: &[AvailabilityZone]) -> Vec<Zone> {
    let usable = |zone: &&AvailabilityZone| {
        let named = |id: Option<&str>| config.edge_zones.iter().any(|edge| id == Some(edge));
        zone.state() == Some(&AvailabilityZoneState::Available)
            && (zone.zone_type() == Some("availability-zone")
                || named(zone.zone_id())
                || named(zone.zone_name()))
    };
    let read = |zone: &AvailabilityZone| {
        Some(Zone { id: zone.zone_id()?.to_owned(), name: zone.zone_name()?.to_owned() })
    };
    zones.iter().filter(usable).filter_map(read).collect()
}

/// Subnets, by the zones that they are in.
pub(super) fn subnets(subnets: &[AwsSubnet], zones: &[Zone]) -> Vec<Subnet> {
    let read = |subnet: &AwsSubnet| {
        let zone = zone_id(zones, subnet.availability_zone_id(), subnet.availability_zone())?;
        let free = subnet.available_ip_address_count().unwrap_or_default();
        Some(Subnet { id: subnet.subnet_id()?.to_owned(), zone, free })
    };
    subnets.iter().filter_map(read).collect()
}

/// A zone of ours by its id or, where that is not told, by its name.
fn zone_id(zones: &[Zone], id: Option<&str>, name: Option<&str>) -> Option<String> {
    let known = |zone: &&Zone| match id {
        Some(id) => zone.id == id,
        None => Some(zone.name.as_str()) == name,
    };
    zones.iter().find(known).map(|zone| zone.id.clone())
}

/// The price now of each pool. The history is a log of changes: the latest one holds, however long
/// ago it was.
pub(super) fn spot(
    history: &[SpotPrice],
    zones: &[Zone],
) -> BTreeMap<(String, String), UsdPerHour> {
    let mut latest: BTreeMap<(String, String), (DateTime, UsdPerHour)> = BTreeMap::new();
    for row in history {
        let product = row.product_description().map(|product| product.as_str());
        let zone = zone_id(zones, row.availability_zone_id(), row.availability_zone());
        let (Some(name), Some(zone), Some(price), Some(at)) = (
            row.instance_type(),
            zone,
            row.spot_price().and_then(dollars::hourly),
            row.timestamp(),
        ) else {
            continue;
        };
        if !product.is_some_and(|product| LINUX.contains(&product)) {
            continue;
        }
        latest
            .entry((name.as_str().to_owned(), zone))
            .and_modify(|known| {
                if *at > known.0 {
                    *known = (*at, price);
                }
            })
            .or_insert((*at, price));
    }
    latest.into_iter().map(|(pool, (_, price))| (pool, price)).collect()
}

/// How a pool's price went, in order of time.
pub(super) fn steps(history: &[SpotPrice], zones: &[Zone], zone: &str) -> Vec<Step> {
    let read = |row: &SpotPrice| {
        let product = row.product_description().is_some_and(|it| LINUX.contains(&it.as_str()));
        let here = zone_id(zones, row.availability_zone_id(), row.availability_zone());
        let at = row.timestamp().filter(|_| product && here.as_deref() == Some(zone))?;
        let price = row.spot_price().and_then(dollars::hourly)?;
        let nanos = i32::try_from(at.subsec_nanos()).ok()?;
        Some(Step { at: Timestamp::new(at.secs(), nanos).ok()?, price })
    };
    let mut steps: Vec<Step> = history.iter().filter_map(read).collect();
    steps.sort_by_key(|step| step.at);
    steps
}

/// What can be had in a region, sorted by id. `now` is when the prices were asked for.
pub(super) fn offers(
    config: &AwsConfig,
    seen: &Seen,
    prices: &Prices,
    now: Timestamp,
) -> Vec<Offer> {
    let mut offers = Vec::new();
    let reached = |zone: &&Zone| seen.subnets.iter().any(|subnet| subnet.zone == zone.id);
    for zone in seen.zones.iter().filter(reached) {
        for hardware in seen.types.values() {
            let no_agent = hardware.arch == Arch::Aarch64 && config.agent_arm.is_none();
            if no_agent || hardware.name.starts_with(WITHOUT_IMAGE) {
                continue;
            }
            let pool = (hardware.name.clone(), zone.id.clone());
            let list = prices.get(&(seen.region.clone(), hardware.name.clone()));
            let list = list.filter(|_| hardware.on_demand && seen.offered.contains(&pool));
            if let Some(price) = list.filter(|_| config.on_demand) {
                offers.push(offer(config, seen, zone, hardware, (Capacity::OnDemand, *price), now));
            }
            let spot = seen.spot.get(&pool).filter(|_| config.spot && hardware.spot);
            // A pool without a discount can still be taken away: no offer.
            if let Some(price) = spot.filter(|spot| list.is_none_or(|list| *spot < list)) {
                offers.push(offer(config, seen, zone, hardware, (Capacity::Spot, *price), now));
            }
        }
    }
    offers.sort_by(|a, b| a.id.cmp(&b.id));
    offers
}

fn offer(
    config: &AwsConfig,
    seen: &Seen,
    zone: &Zone,
    hardware: &Hardware,
    (capacity, price): (Capacity, UsdPerHour),
    now: Timestamp,
) -> Offer {
    let Hardware { name, vcpus, memory, arch, accelerators, spot: _, on_demand: _ } = hardware;
    // Two passes and a slow answer.
    let ttl = config.quote_every.as_secs().saturating_mul(2).saturating_add(60);
    Offer {
        id: Offer::id_of(&config.name, &seen.region, &zone.id, name, capacity),
        provider: config.name.clone(),
        region: seen.region.clone(),
        zone: zone.id.clone(),
        instance_type: name.clone(),
        accelerators: accelerators.clone(),
        arch: *arch,
        vcpu_milli: Some(vcpus.saturating_mul(1000)),
        memory: Some(*memory),
        capacity,
        price: dollars::plus(price, config.extras()),
        quoted_at: now,
        ttl_seconds: u32::try_from(ttl).unwrap_or(u32::MAX),
        owner: HostOwner::Known,
        sale: Sale::Buyable,
        measured: None,
        slots: None,
        shares: Vec::new(),
        interruptions_per_hour: None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use aws_sdk_ec2::types::{InstanceType, RiProductDescription};
    use petaflop_arbiter::offer::Accelerators;

    use super::super::config::Access;
    use super::*;
    use crate::machine::AgentDownload;

    pub(in super::super) fn config() -> AwsConfig {
        let agent =
            AgentDownload { url: "https://example.org/agent".into(), sha256: "ab".repeat(32) };
        AwsConfig {
            disk_gb: 73,
            disk_micros_per_gb_month: 100_000,
            address_micros_per_hour: 0,
            agent: Some(agent),
            ..AwsConfig::new("aws", Access::Role, &["us-east-1"])
        }
    }

    fn price(text: &str) -> UsdPerHour {
        text.parse().expect("a price")
    }

    fn hardware(name: &str, arch: Arch) -> Hardware {
        let accelerators = Some(Accelerators { model: "L4".into(), count: 1, memory: None });
        let (spot, on_demand) = (true, true);
        let name = name.to_owned();
        Hardware { name, vcpus: 4, memory: 16 << 30, arch, accelerators, spot, on_demand }
    }

    fn zone(id: &str, name: &str) -> Zone {
        Zone { id: id.into(), name: name.into() }
    }

    fn seen() -> Seen {
        let pool = |zone: &str| ("g6.xlarge".to_owned(), zone.to_owned());
        Seen {
            region: "us-east-1".into(),
            zones: vec![zone("use1-az1", "us-east-1c"), zone("use1-az2", "us-east-1a")],
            subnets: vec![Subnet { id: "subnet-1".into(), zone: "use1-az1".into(), free: 10 }],
            types: [("g6.xlarge".into(), hardware("g6.xlarge", Arch::X86_64))].into(),
            offered: [pool("use1-az1"), pool("use1-az2")].into(),
            spot: [(pool("use1-az1"), price("0.4")), (pool("use1-az2"), price("0.1"))].into(),
        }
    }

    fn list() -> Prices {
        [(("us-east-1".to_owned(), "g6.xlarge".to_owned()), price("0.8"))].into()
    }

    fn lines(config: &AwsConfig, seen: &Seen, prices: &Prices) -> Vec<String> {
        offers(config, seen, prices, Timestamp::UNIX_EPOCH)
            .iter()
            .map(|offer| format!("{} {}", offer.id, offer.price))
            .collect()
    }

    #[test]
    fn an_offer_is_a_type_in_a_zone_with_a_subnet_spot_or_on_demand() {
        assert_eq!(
            lines(&config(), &seen(), &list()),
            [
                "aws/us-east-1/use1-az1/g6.xlarge/on-demand 0.81",
                "aws/us-east-1/use1-az1/g6.xlarge/spot 0.41",
            ]
        );
        let without = AwsConfig { spot: false, ..config() };
        assert_eq!(lines(&without, &seen(), &list()).len(), 1);
        assert!(lines(&config(), &Seen { subnets: Vec::new(), ..seen() }, &list()).is_empty());
    }

    #[test]
    fn without_a_list_price_only_spot_is_offered_and_none_without_a_discount() {
        let spot = "aws/us-east-1/use1-az1/g6.xlarge/spot 0.41";
        assert_eq!(lines(&config(), &seen(), &Prices::new()), [spot]);
        let mut dear = seen();
        dear.spot.values_mut().for_each(|spot| *spot = price("0.8"));
        assert_eq!(
            lines(&config(), &dear, &list()),
            ["aws/us-east-1/use1-az1/g6.xlarge/on-demand 0.81"]
        );
        let mut nowhere = seen();
        nowhere.offered.clear();
        assert_eq!(
            lines(&config(), &nowhere, &list()),
            [spot],
            "the history says that it is there"
        );
    }

    #[test]
    fn accelerators_whose_driver_is_in_no_image_are_not_offered() {
        for (name, count) in [("g4ad.xlarge", 0), ("g4dn.xlarge", 1)] {
            let mut seen = seen();
            seen.types = [(name.to_owned(), hardware(name, Arch::X86_64))].into();
            seen.spot = [((name.to_owned(), "use1-az1".to_owned()), price("0.1"))].into();
            assert_eq!(lines(&config(), &seen, &Prices::new()).len(), count, "{name}");
        }
    }

    #[test]
    fn hosts_with_arm_need_an_agent_for_arm() {
        let mut arm = seen();
        arm.types.values_mut().for_each(|hardware| hardware.arch = Arch::Aarch64);
        assert!(lines(&config(), &arm, &list()).is_empty());
        let agent_arm = config().agent;
        assert_eq!(lines(&AwsConfig { agent_arm, ..config() }, &arm, &list()).len(), 2);
    }

    #[test]
    fn the_history_is_a_log_of_changes_of_which_the_latest_holds() {
        let row = |zone: Option<&str>, name: &str, product: &str, spot: &str, second: i64| {
            SpotPrice::builder()
                .set_availability_zone_id(zone.map(str::to_owned))
                .availability_zone(name)
                .instance_type(InstanceType::from("g6.xlarge"))
                .product_description(RiProductDescription::from(product))
                .spot_price(spot)
                .timestamp(DateTime::from_secs(second))
                .build()
        };
        let az1 = Some("use1-az1");
        let history = [
            row(az1, "us-east-1c", "Linux/UNIX", "0.5000000", 200),
            row(az1, "us-east-1c", "Linux/UNIX", "0.4000000", 300),
            row(az1, "us-east-1c", "Linux/UNIX", "0.6000000", 100),
            row(az1, "us-east-1c", "Windows", "0.1", 999),
            // Weeks old, and the price now; without an id, as some endpoints answer.
            row(None, "us-east-1a", "Linux/UNIX (Amazon VPC)", "0.00001", 1),
            row(Some("use1-atl2-az1"), "us-east-1-atl-2a", "Linux/UNIX", "0.1", 300),
            row(az1, "us-east-1c", "Linux/UNIX", "odd", 999),
        ];
        let now = spot(&history, &seen().zones);
        let now: Vec<_> = now.iter().map(|((_, zone), p)| (zone.as_str(), p.micros())).collect();
        assert_eq!(now, [("use1-az1", 400_000), ("use1-az2", 10)]);
    }

    #[test]
    fn local_zones_are_left_out_unless_they_are_named() {
        let zone = |id: &str, kind: &str, state| {
            AvailabilityZone::builder()
                .zone_id(id)
                .zone_name(id)
                .zone_type(kind)
                .state(state)
                .build()
        };
        let open = AvailabilityZoneState::Available;
        let all = [
            zone("use1-az1", "availability-zone", open.clone()),
            zone("use1-az3", "availability-zone", AvailabilityZoneState::Impaired),
            zone("use1-atl2-az1", "local-zone", open.clone()),
            zone("use1-wl1-az1", "wavelength-zone", open),
        ];
        let ids = |config: &AwsConfig| -> Vec<String> {
            zones(config, &all).into_iter().map(|zone| zone.id).collect()
        };
        assert_eq!(ids(&config()), ["use1-az1"]);
        let named = AwsConfig { edge_zones: vec!["use1-atl2-az1".into()], ..config() };
        assert_eq!(ids(&named), ["use1-az1", "use1-atl2-az1"]);
    }
}
