//! Shared by the unit tests of this folder.

use petaflop_arbiter::offer::{Arch, Capacity, HostOwner, Offer, OfferId, Sale};

/// A plain offer at a price.
pub(crate) fn offer(id: &str, price: &str) -> Offer {
    Offer {
        id: OfferId(id.to_owned()),
        provider: "fake".to_owned(),
        region: String::new(),
        zone: String::new(),
        instance_type: "m".to_owned(),
        accelerators: None,
        arch: Arch::X86_64,
        vcpu_milli: Some(2000),
        memory: Some(4 << 30),
        capacity: Capacity::OnDemand,
        price: price.parse().expect("a price"),
        quoted_at: jiff::Timestamp::UNIX_EPOCH,
        ttl_seconds: 600,
        owner: HostOwner::Known,
        measured: None,
        slots: None,
        shares: Vec::new(),
        interruptions_per_hour: None,
        sale: Sale::Buyable,
    }
}
