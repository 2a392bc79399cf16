//! Shared by the unit tests of this folder.

use jiff::Timestamp;
use petaflop_arbiter::claim::{ClaimSpec, Device};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::{Arch, Capacity, HostOwner, Offer, OfferId, Sale};
use petaflop_arbiter::workload::{OwnerKind, WorkloadId};

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

/// A job's claim of a machine at 3.6 $/h, 0.001 $ a second.
pub(crate) fn claim_spec(claim: &str, job: &str, decided_at: Timestamp) -> ClaimSpec {
    ClaimSpec {
        name: claim.to_owned(),
        owner: WorkloadId {
            kind: OwnerKind::TrainingJob,
            namespace: "ns".into(),
            name: job.to_owned(),
            uid: format!("job-{claim}"),
        },
        placement: 1,
        index: 0,
        offer: offer("m", "3.6"),
        device: Device::Cpu,
        reserved: Usd::ZERO,
        decided_at,
        revision: None,
        checkpoint_interval_seconds: None,
        runners_up: Vec::new(),
    }
}
