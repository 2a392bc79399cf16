//! Catalogue in, offers out. Pure.
//!
//! One offer is a kind of pod: so many of one type of accelerator (or so many processors of one
//! flavour), in one of the two clouds, on demand or spot. RunPod has one price for all its data
//! centres, so they are no offers of their own.

use jiff::Timestamp;
use petaflop_arbiter::catalogue::Catalogue;
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::{Accelerators, Arch, Capacity, HostOwner, Offer, Sale};

use super::catalogue::{Cpu, Gpu};
use super::thing::{Cloud, Thing, What};
use super::{dollars, spot};

/// Seconds for which a look at the catalogue is good to buy from: two passes and a slow answer.
pub(super) const QUOTE_SECONDS: u32 = 150;

/// Bytes in what RunPod calls a GB.
const GB: u64 = 1_000_000_000;

/// What every accelerator's host has for it at the least. The catalogue does not say; these are the
/// defaults of the older API's `minVCPUPerGPU` and `minRAMPerGPU`. Machines usually have more.
const VCPUS_PER_GPU: u32 = 2;
const MEMORY_GB_PER_GPU: u64 = 8;

/// What is offered of the catalogue.
#[derive(Clone, Debug)]
pub(super) struct Terms<'a> {
    pub(super) provider: &'a str,
    /// Container disk of each pod; it is part of the price.
    pub(super) disk_gb: u32,
    /// Where pods may be; empty: anywhere.
    pub(super) data_centers: &'a [String],
}

/// What was seen in one pass.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// By cloud and size.
    pub(super) gpus: Vec<(Cloud, u32, Vec<Gpu>)>,
    /// By size.
    pub(super) cpus: Vec<(u32, Vec<Cpu>)>,
    pub(super) spot: spot::Prices,
}

/// What can be had, sorted by id. `now` is when the pass began.
pub(super) fn offers(terms: &Terms<'_>, seen: &Seen, now: Timestamp) -> Vec<Offer> {
    let mut offers = Vec::new();
    for (cloud, count, gpus) in &seen.gpus {
        for gpu in
            gpus.iter().filter(|gpu| gpu.in_stock && allowed(terms, *cloud, &gpu.data_centers))
        {
            let spot = seen.spot.get(&(*cloud, *count, gpu.id.clone()));
            // A spot pod that costs as much can still be taken away: no offer.
            let spot = spot.filter(|spot| **spot < gpu.price).map(|spot| (Capacity::Spot, *spot));
            for (capacity, price) in [(Capacity::OnDemand, gpu.price)].into_iter().chain(spot) {
                offers.push(of_gpu(terms, *cloud, *count, gpu, (capacity, price), now));
            }
        }
    }
    for (vcpus, flavours) in &seen.cpus {
        let fits = |cpu: &&Cpu| cpu.vcpus.0 <= *vcpus && *vcpus <= cpu.vcpus.1;
        let there = |cpu: &&Cpu| cpu.in_stock && allowed(terms, Cloud::Secure, &cpu.data_centers);
        for cpu in flavours.iter().filter(fits).filter(there) {
            offers.push(of_cpu(terms, *vcpus, cpu, now));
        }
    }
    // The catalogue may name a type twice.
    offers.sort_by(|a, b| (&a.id, a.price).cmp(&(&b.id, b.price)));
    offers.dedup_by(|a, b| a.id == b.id);
    offers
}

/// Types of accelerators that the arbiter's table does not know: their devices are never used.
pub(super) fn unknown(seen: &Seen) -> impl Iterator<Item = &str> {
    let all = seen.gpus.iter().flat_map(|(_, _, gpus)| gpus).map(|gpu| gpu.id.as_str());
    all.filter(|id| model(id).is_none())
}

fn allowed(terms: &Terms<'_>, cloud: Cloud, there: &[String]) -> bool {
    // Community machines are in no data centre.
    terms.data_centers.is_empty()
        || (cloud == Cloud::Secure && there.iter().any(|one| terms.data_centers.contains(one)))
}

fn model(id: &str) -> Option<&'static str> {
    let table = Catalogue::embedded();
    let row = table.by_runpod_id(id).or_else(|| table.by_device_name(id))?;
    Some(row.key.as_str())
}

fn of_gpu(
    terms: &Terms<'_>,
    cloud: Cloud,
    count: u32,
    gpu: &Gpu,
    (capacity, price): (Capacity, UsdPerHour),
    now: Timestamp,
) -> Offer {
    let thing = Thing { cloud, what: What::Gpu { id: gpu.id.clone(), count } };
    Offer {
        accelerators: Some(Accelerators {
            model: model(&gpu.id)
                .map_or_else(|| Accelerators::foreign_model(&gpu.id), str::to_owned),
            count,
            memory: gpu.memory_gb.map(|gb| u64::from(gb) * GB),
        }),
        vcpu_milli: Some(count.saturating_mul(VCPUS_PER_GPU).saturating_mul(1000)),
        memory: Some(u64::from(count) * MEMORY_GB_PER_GPU * GB),
        ..plain(terms, &thing, (capacity, dollars::times(price, count)), now)
    }
}

fn of_cpu(terms: &Terms<'_>, vcpus: u32, cpu: &Cpu, now: Timestamp) -> Offer {
    let thing = Thing { cloud: Cloud::Secure, what: What::Cpu { id: cpu.id.clone(), vcpus } };
    let memory = cpu.ram_gb_per_vcpu * f64::from(vcpus) * GB as f64;
    Offer {
        vcpu_milli: Some(vcpus.saturating_mul(1000)),
        // Positive and below 2^63: both factors are bounded where they were read.
        memory: Some(memory as u64),
        ..plain(terms, &thing, (Capacity::OnDemand, dollars::times(cpu.price_per_vcpu, vcpus)), now)
    }
}

fn plain(
    terms: &Terms<'_>,
    thing: &Thing,
    (capacity, price): (Capacity, UsdPerHour),
    now: Timestamp,
) -> Offer {
    let instance_type = thing.to_string();
    Offer {
        id: Offer::id_of(terms.provider, "", "", &instance_type, capacity),
        provider: terms.provider.to_owned(),
        region: String::new(),
        zone: String::new(),
        instance_type,
        accelerators: None,
        arch: Arch::X86_64,
        vcpu_milli: None,
        memory: None,
        capacity,
        price: price.saturating_add(dollars::disk(terms.disk_gb)),
        quoted_at: now,
        ttl_seconds: QUOTE_SECONDS,
        owner: match thing.cloud {
            Cloud::Secure => HostOwner::Known,
            Cloud::Community => HostOwner::Unknown,
        },
        sale: Sale::Buyable,
        measured: None,
        slots: None,
        shares: Vec::new(),
        interruptions_per_hour: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(micros: i64) -> UsdPerHour {
        UsdPerHour::from_micros(micros).expect("a price")
    }

    fn gpu(id: &str, micros: i64) -> Gpu {
        Gpu {
            id: id.to_owned(),
            memory_gb: Some(24),
            price: price(micros),
            in_stock: true,
            data_centers: vec!["EU-RO-1".to_owned()],
        }
    }

    fn seen() -> Seen {
        let rtx = "NVIDIA GeForce RTX 4090";
        Seen {
            gpus: vec![
                (Cloud::Secure, 1, vec![gpu(rtx, 740_000)]),
                (Cloud::Secure, 2, vec![gpu(rtx, 740_000)]),
                (Cloud::Community, 1, vec![gpu(rtx, 340_000)]),
            ],
            ..Seen::default()
        }
    }

    fn quoted(seen: &Seen, data_centers: &[String]) -> Vec<Offer> {
        let terms = Terms { provider: "rp", disk_gb: 730, data_centers };
        offers(&terms, seen, Timestamp::UNIX_EPOCH)
    }

    fn lines(offers: &[Offer]) -> Vec<String> {
        let line = |offer: &Offer| format!("{} {}", offer.instance_type, offer.price);
        let spot = |o: &Offer| if o.capacity == Capacity::Spot { " spot" } else { "" };
        offers.iter().map(|offer| format!("{}{}", line(offer), spot(offer))).collect()
    }

    #[test]
    fn the_clouds_are_different_offers_and_the_whole_pod_is_priced_with_its_disk() {
        let all = quoted(&seen(), &[]);
        assert_eq!(
            lines(&all),
            [
                "1x NVIDIA GeForce RTX 4090 COMMUNITY 0.44",
                "1x NVIDIA GeForce RTX 4090 SECURE 0.84",
                "2x NVIDIA GeForce RTX 4090 SECURE 1.58",
            ]
        );
        let owners: Vec<_> = all.iter().map(|offer| offer.owner).collect();
        assert_eq!(owners, [HostOwner::Unknown, HostOwner::Known, HostOwner::Known]);
        let devices = all[2].accelerators.as_ref().expect("accelerators");
        assert_eq!((devices.model.as_str(), devices.count), ("RTX4090", 2));
        assert_eq!(devices.memory, Some(24_000_000_000));
        assert!(all.iter().all(|offer| offer.sale.is_buyable() && offer.ttl_seconds > 0));
    }

    #[test]
    fn a_spot_offer_must_be_strictly_cheaper_than_its_twin() {
        let mut seen = seen();
        let key = |cloud, count| (cloud, count, "NVIDIA GeForce RTX 4090".to_owned());
        seen.spot.insert(key(Cloud::Secure, 1), price(740_000));
        seen.spot.insert(key(Cloud::Community, 1), price(350_000));
        assert!(quoted(&seen, &[]).iter().all(|offer| offer.capacity == Capacity::OnDemand));
        seen.spot.insert(key(Cloud::Secure, 2), price(739_999));
        let spot: Vec<_> =
            lines(&quoted(&seen, &[])).into_iter().filter(|line| line.ends_with("spot")).collect();
        assert_eq!(spot, ["2x NVIDIA GeForce RTX 4090 SECURE 1.579998 spot"]);
        // Without its twin there is nothing to compare it with.
        seen.gpus.clear();
        assert!(quoted(&seen, &[]).is_empty());
    }

    #[test]
    fn what_is_not_in_stock_or_not_where_it_may_be_is_no_offer() {
        let mut seen = seen();
        assert_eq!(quoted(&seen, &["US-TX-3".to_owned()]), []);
        assert_eq!(quoted(&seen, &["EU-RO-1".to_owned()]).len(), 2);
        for (_, _, gpus) in &mut seen.gpus {
            gpus.iter_mut().for_each(|gpu| gpu.in_stock = false);
        }
        assert_eq!(quoted(&seen, &[]), []);
    }

    #[test]
    fn a_type_that_nobody_knows_is_offered_under_its_own_name() {
        let slice = "NVIDIA RTX PRO 6000 Blackwell Server Edition MIG 1g.24gb";
        let seen = Seen {
            gpus: vec![(Cloud::Secure, 1, vec![gpu(slice, 500_000), gpu("NVIDIA X1", 1)])],
            ..Seen::default()
        };
        assert_eq!(unknown(&seen).collect::<Vec<_>>(), [slice, "NVIDIA X1"]);
        let all = quoted(&seen, &[]);
        let models: Vec<_> = all
            .iter()
            .filter_map(|offer| Some(offer.accelerators.as_ref()?.model.as_str()))
            .collect();
        let known = ["NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition-MIG-1g.24gb", "NVIDIA-X1"];
        assert_eq!(models, known, "as objects can hold it");
    }

    #[test]
    fn flavours_of_processors_are_offers_with_their_memory() {
        let cpu = Cpu {
            id: "cpu5g".to_owned(),
            vcpus: (2, 16),
            ram_gb_per_vcpu: 4.0,
            price_per_vcpu: price(46_000),
            in_stock: true,
            data_centers: Vec::new(),
        };
        let cpus = vec![(4, vec![cpu.clone()]), (32, vec![cpu])];
        let all = quoted(&Seen { cpus, ..Seen::default() }, &[]);
        assert_eq!(lines(&all), ["4 vCPU cpu5g SECURE 0.284"]);
        assert_eq!((all[0].vcpu_milli, all[0].memory), (Some(4000), Some(16_000_000_000)));
        assert_eq!(all[0].accelerators, None);
    }
}
