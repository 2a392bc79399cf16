//! What accelerators a node has: resources of device plugins, named by the labels
//! that their vendors' discovery puts on nodes.
//!
//! A share of a device (time slices, MIG, an AMD partition) goes by a name of its
//! own that is not in the catalogue: the catalogue's rates and memory are not true
//! of it, so nothing is planned on it unless somebody asks for it by that name.

use std::collections::BTreeMap;

use petaflop_arbiter::catalogue::{Accelerator, Catalogue};

use super::requests::Amounts;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The devices behind one resource name of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Devices {
    /// Name of the extended resource.
    pub(super) resource: String,
    /// Key in the catalogue, or a name of their own.
    pub(super) model: String,
    /// Bytes of memory of one, where the labels say.
    pub(super) memory: Option<u64>,
    /// Power of one under load, in watts, where the catalogue knows the card.
    pub(super) watts: u64,
    /// Whether each is a whole device, so that several can work together.
    pub(super) whole: bool,
    /// How many the node has.
    pub(super) count: u64,
}

/// The accelerators of a node, one entry a resource. Resources of other kinds are none.
pub(super) fn of(labels: &BTreeMap<String, String>, allocatable: &Amounts) -> Vec<Devices> {
    allocatable
        .iter()
        .filter_map(|(resource, count)| {
            let (vendor, kind) = resource.split_once('/')?;
            match vendor {
                "nvidia.com" => nvidia(labels, resource, kind, count),
                "amd.com" => amd(labels, resource, kind, count),
                _ => None,
            }
        })
        .collect()
}

fn nvidia(
    labels: &BTreeMap<String, String>,
    resource: &str,
    kind: &str,
    count: u64,
) -> Option<Devices> {
    let text = |name: &str| labels.get(&format!("nvidia.com/{name}")).map(String::as_str);
    let number = |name: &str| text(name).and_then(|value| value.parse::<u64>().ok());
    let product = text("gpu.product").unwrap_or("unknown");
    let card = Catalogue::embedded().by_device_name(before_mig(product));
    if let Some(profile) = kind.strip_prefix("mig-") {
        let memory = number(&format!("{kind}.memory")).map(|mib| mib.saturating_mul(MIB));
        let name = text(&format!("{kind}.product")).unwrap_or(product);
        let name = format!("{} (MIG {profile})", named(card, before_mig(name)));
        return Some(share(resource, name, memory, card, count, None));
    }
    if kind != "gpu" && kind != "gpu.shared" {
        return None;
    }
    let memory = number("gpu.memory").map(|mib| mib.saturating_mul(MIB));
    if let Some((_, profile)) = product.split_once("-MIG-") {
        let profile = profile.trim_end_matches("-SHARED");
        let name = format!("{} (MIG {profile})", named(card, before_mig(product)));
        return Some(share(resource, name, memory, card, count, None));
    }
    let replicas = number("gpu.replicas").unwrap_or(1).max(1);
    let is_shared = kind == "gpu.shared"
        || replicas > 1
        || product.ends_with("-SHARED")
        || text("gpu.sharing-strategy").is_some_and(|strategy| strategy != "none");
    if is_shared {
        let name = format!("{} (shared by {replicas})", named(card, product));
        let memory = memory.map(|bytes| bytes / replicas);
        return Some(share(resource, name, memory, card, count, Some(replicas)));
    }
    Some(whole(resource, named(card, product), memory, card, count))
}

fn amd(
    labels: &BTreeMap<String, String>,
    resource: &str,
    kind: &str,
    count: u64,
) -> Option<Devices> {
    // The node labeller writes each label under two prefixes; which, is a matter of its version.
    let text = |name: &str| {
        ["amd.com", "beta.amd.com"]
            .iter()
            .find_map(|prefix| labels.get(&format!("{prefix}/{name}")))
            .map(String::as_str)
    };
    let is_partition = |name: &str| name.contains("_nps");
    let partition = if is_partition(kind) {
        Some(kind)
    } else if kind == "gpu" {
        text("compute-memory-partition")
    } else {
        return None;
    };
    // Product names are often missing or say nothing; the device id is always true.
    let product = text("gpu.product-name");
    let card = text("gpu.device-id")
        .and_then(|id| Catalogue::embedded().by_amd_device_id(id))
        .or_else(|| Catalogue::embedded().by_device_name(product?));
    let name = named(card, product.or(text("gpu.device-id")).unwrap_or("unknown"));
    let memory = text("gpu.vram").and_then(gigabytes);
    match partition {
        // SPX: the whole card is one device.
        Some(mode) if !mode.to_ascii_lowercase().starts_with("spx") => {
            let name = format!("{name} ({})", mode.to_ascii_lowercase());
            Some(share(resource, name, memory, card, count, None))
        }
        Some(_) | None => Some(whole(resource, name, memory, card, count)),
    }
}

fn whole(
    resource: &str,
    model: String,
    memory: Option<u64>,
    card: Option<&Accelerator>,
    count: u64,
) -> Devices {
    // An MI250X is two devices of half its memory: each draws its part of the card's power.
    let watts = watts(card, memory, None);
    Devices { resource: resource.to_owned(), model, memory, watts, whole: true, count }
}

fn share(
    resource: &str,
    model: String,
    memory: Option<u64>,
    card: Option<&Accelerator>,
    count: u64,
    of: Option<u64>,
) -> Devices {
    let watts = watts(card, memory, of);
    Devices { resource: resource.to_owned(), model, memory, watts, whole: false, count }
}

/// Power of one: the card's, by the part of it that the device is (of its memory, where
/// nothing else says). Rounded up.
fn watts(card: Option<&Accelerator>, memory: Option<u64>, of: Option<u64>) -> u64 {
    let Some((card, watts)) = card.and_then(|card| Some((card, card.watts?))) else {
        return 0;
    };
    let part = match (of, memory) {
        (Some(replicas), _) => 1.0 / replicas as f64,
        // Cards report a little less than their nominal memory.
        (None, Some(bytes)) if bytes < card.nominal_bytes() / 10 * 9 => {
            bytes as f64 / card.nominal_bytes() as f64
        }
        (None, _) => 1.0,
    };
    // Float to integer saturates.
    (watts * part).ceil() as u64
}

fn named(card: Option<&Accelerator>, label: &str) -> String {
    match card {
        Some(card) => card.key.clone(),
        None => label.trim_end_matches("-SHARED").to_owned(),
    }
}

fn before_mig(product: &str) -> &str {
    product.split_once("-MIG-").map_or(product, |(card, _)| card)
}

/// `192G`, as AMD's labeller writes whole gibibytes.
fn gigabytes(text: &str) -> Option<u64> {
    text.trim_end_matches(['G', 'g']).parse::<u64>().ok()?.checked_mul(GIB)
}
