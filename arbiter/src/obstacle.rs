//! What stands between a workload and an offer, with numbers and with what would have to give.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::decision::Advised;
use crate::money::{Usd, UsdPerHour};
use crate::offer::Capacity;
use crate::reason::Reason;
use crate::support::Level;

/// Declares [`Obstacle`] and [`Check`] together: an obstacle is a check that failed, with numbers.
/// The order is the order of the checks.
macro_rules! obstacles {
    ($($(#[doc = $doc:literal])+ $name:ident $({ $($(#[doc = $field_doc:literal])+ $field:ident: $type:ty,)+ })?,)+) => {
        /// Why an offer is not taken, with numbers. The order of the variants is the order of the checks.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "constraint")]
        pub enum Obstacle {
            $($(#[doc = $doc])+ $name $({ $($(#[doc = $field_doc])+ $field: $type,)+ })?,)+
        }

        /// One check: an [`Obstacle`] without its numbers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Check {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Check {
            /// Every check, in order.
            pub const ALL: &'static [Check] = &[$(Check::$name,)+];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Check::$name => stringify!($name),)+
                }
            }
        }

        impl Obstacle {
            /// The check that failed.
            pub const fn check(&self) -> Check {
                match self {
                    $(obstacles!(@pattern $name $({ $($field)+ })?) => Check::$name,)+
                }
            }
        }
    };
    (@pattern $name:ident) => { Obstacle::$name };
    (@pattern $name:ident { $($field:ident)+ }) => { Obstacle::$name { .. } };
}

obstacles! {
    /// Its provider is not known.
    ProviderUnknown {
        /// The provider.
        provider: String,
    },
    /// Its provider is not in `placement.providers`.
    ProviderNotListed {
        /// The provider.
        provider: String,
    },
    /// Its provider does not serve the namespace.
    NamespaceNotAllowed {
        /// The provider.
        provider: String,
        /// The namespace.
        namespace: String,
    },
    /// Its provider takes nothing new.
    ProviderOff {
        /// The provider.
        provider: String,
    },
    /// The owner of its provider does not let its accelerators be had.
    AcceleratorNotAllowed {
        /// The provider.
        provider: String,
        /// The model.
        model: String,
    },
    /// The capacity type is another.
    CapacityType {
        /// Asked for.
        needs: Capacity,
        /// Offered.
        has: Capacity,
    },
    /// Its owner is unknown, and `allowUntrustedHosts` is false.
    UntrustedHost,
    /// Its machines are elsewhere, and cannot reach what is needed.
    OutOfReach {
        /// The provider.
        provider: String,
        /// What is needed, in words.
        needs: String,
    },
    /// Its machines have too little disk.
    Disk {
        /// Bytes asked for.
        needs: u64,
        /// Bytes they have.
        has: u64,
    },
    /// Its devices are not among those asked for.
    AcceleratorModel {
        /// Asked for.
        needs: String,
        /// Offered.
        has: String,
    },
    /// Too few devices, or too many.
    AcceleratorCount {
        /// Asked for.
        needs: u32,
        /// Offered.
        has: u32,
    },
    /// Its devices have too little memory for `accelerator.minMemory`.
    AcceleratorMemory {
        /// Bytes asked for.
        needs: u64,
        /// Bytes of one device.
        has: u64,
    },
    /// Its devices are of too old a generation.
    ComputeCapability {
        /// Asked for.
        needs: (u32, u32),
        /// Offered; `None`: not an NVIDIA part.
        has: Option<(u32, u32)>,
    },
    /// The software stack that is asked for does not drive its devices.
    AcceleratorStack {
        /// Asked for.
        needs: String,
        /// Those that do.
        has: String,
    },
    /// Its devices are linked by no more than PCIe.
    Interconnect {
        /// The form they have.
        has: String,
    },
    /// Too few processors.
    Vcpus {
        /// Thousandths needed.
        needs: u32,
        /// Thousandths offered; `None`: the provider does not say.
        has: Option<u32>,
    },
    /// Too little host memory.
    Memory {
        /// Bytes needed: the floor, or what the plan says where that is more.
        needs: u64,
        /// Bytes offered; `None`: the provider does not say.
        has: Option<u64>,
    },
    /// The engine does not run there, or was never run there.
    Engine {
        /// How far it is.
        level: Level,
        /// Where: `cuda sm_90`, `cpu aarch64`.
        on: String,
    },
    /// The plan needs more device memory than there is.
    DeviceMemory {
        /// Bytes the plan needs.
        needs: u64,
        /// Bytes that a plan may count on.
        has: u64,
    },
    /// One token takes longer than the latency target.
    Latency {
        /// Milliseconds allowed.
        limit: u32,
        /// Milliseconds expected.
        expected: u32,
    },
    /// It would be done after the deadline.
    Deadline {
        /// The deadline.
        finish_by: Timestamp,
        /// Milliseconds after it.
        late_millis: i64,
    },
    /// The region is not in `placement.regions`, or is excluded.
    Region {
        /// Offered.
        has: String,
        /// It is excluded by name.
        excluded: bool,
    },
    /// The zone is not in `placement.zones`.
    Zone {
        /// Offered.
        has: String,
    },
    /// The price is above `placement.maxHourlyPrice`.
    HourlyPrice {
        /// The limit.
        limit: UsdPerHour,
        /// The price.
        price: UsdPerHour,
    },
    /// It would cost more than `maxTotalCost` leaves.
    TotalCost {
        /// What is left of the limit.
        left: Usd,
        /// What it would cost.
        needs: Usd,
    },
    /// A dated price, for comparison only.
    NotForSale {
        /// "prices of 2026-07-20, not for sale".
        note: String,
    },
    /// The quote is too old.
    StaleQuote {
        /// When it was quoted.
        quoted_at: Timestamp,
        /// When it stopped being good.
        expired_at: Timestamp,
    },
    /// The quote is from the future.
    FutureQuote {
        /// When it claims to have been quoted.
        quoted_at: Timestamp,
    },
    /// It refused a launch lately.
    Unavailable {
        /// When it is worth another try.
        until: Timestamp,
        /// What it said.
        reason: Reason,
    },
    /// All of it is taken.
    NoSlot {
        /// How many there are.
        slots: u32,
    },
    /// Other offers, which are parts of the same thing, have taken too much of it.
    NoRoom {
        /// Of what.
        of: String,
        /// How much the offer takes of it.
        needs: u64,
        /// How much is left of it.
        left: u64,
    },
    /// As many replicas of the service are on spot in its zone as may be lost together.
    Crowded {
        /// The zone, or the provider that names none.
        zone: String,
    },
    /// The provider's number of machines is reached.
    ProviderMachines {
        /// The limit.
        limit: u32,
    },
    /// The provider's hourly limit leaves too little.
    ProviderHourly {
        /// What is left of the limit.
        left: Usd,
        /// The price of an hour.
        needs: Usd,
    },
    /// The provider's monthly limit leaves too little.
    ProviderMonthly {
        /// What is left of the limit, reservations taken off.
        left: Usd,
        /// What it would cost in the month.
        needs: Usd,
    },
    /// A budget has not enough left.
    Budget {
        /// Its name.
        budget: String,
        /// What is left of it, reservations taken off.
        left: Usd,
        /// What it would cost in the period.
        needs: Usd,
    },
    /// It would do, but the spot policy says otherwise.
    SpotPolicy {
        /// What it says.
        says: Advised,
        /// When only on-demand is sure to end in time.
        line: Timestamp,
    },
    /// Nothing stands in its way; it costs more.
    Dearer {
        /// By so much.
        by: Usd,
    },
    /// Nothing stands in its way and it does not cost more; the other finishes surely, or sooner, or comes first by id.
    NotPreferred {
        /// Milliseconds after the deadline if things go badly; 0 where there is no deadline.
        late_millis: i64,
    },
}

impl Obstacle {
    /// How far away the offer is: for numbers by what factor the constraint would have to give,
    /// for names a fixed distance; what passes by itself is near, what nobody can change is far.
    pub(crate) fn distance(&self) -> f64 {
        let factor = |needs: f64, has: f64| {
            if has > 0.0 { (needs / has).max(1.0) } else { 1000.0 }
        };
        match self {
            Obstacle::Unavailable { .. }
            | Obstacle::NoSlot { .. }
            | Obstacle::NoRoom { .. }
            | Obstacle::Crowded { .. } => 0.5,
            Obstacle::StaleQuote { .. } | Obstacle::ProviderMachines { .. } => 0.6,
            Obstacle::SpotPolicy { .. }
            | Obstacle::Dearer { .. }
            | Obstacle::NotPreferred { .. } => 0.0,
            Obstacle::HourlyPrice { limit, price } => factor(price.as_f64(), limit.as_f64()),
            Obstacle::TotalCost { left, needs }
            | Obstacle::Budget { left, needs, .. }
            | Obstacle::ProviderMonthly { left, needs }
            | Obstacle::ProviderHourly { left, needs } => factor(needs.as_f64(), left.as_f64()),
            Obstacle::Vcpus { needs, has } => {
                factor(f64::from(*needs), f64::from(has.unwrap_or(0)))
            }
            Obstacle::Memory { needs, has } => factor(*needs as f64, has.unwrap_or(0) as f64),
            Obstacle::DeviceMemory { needs, has }
            | Obstacle::AcceleratorMemory { needs, has }
            | Obstacle::Disk { needs, has } => factor(*needs as f64, *has as f64),
            Obstacle::AcceleratorCount { needs, has } => {
                factor(f64::from(*needs.max(has)), f64::from(*needs.min(has)))
            }
            Obstacle::Latency { limit, expected } => {
                factor(f64::from(*expected), f64::from(*limit))
            }
            // A day late is twice as far as on time.
            Obstacle::Deadline { late_millis, .. } => 1.0 + *late_millis as f64 / 86_400_000.0,
            Obstacle::CapacityType { .. }
            | Obstacle::Region { .. }
            | Obstacle::Zone { .. }
            | Obstacle::UntrustedHost
            | Obstacle::ProviderNotListed { .. } => 2.0,
            Obstacle::Engine { level: Level::CompiledOnly | Level::Verified, .. } => 3.0,
            Obstacle::AcceleratorModel { .. }
            | Obstacle::ComputeCapability { .. }
            | Obstacle::AcceleratorStack { .. }
            | Obstacle::Interconnect { .. } => 5.0,
            Obstacle::NotForSale { .. } => 20.0,
            Obstacle::ProviderOff { .. }
            | Obstacle::FutureQuote { .. }
            | Obstacle::OutOfReach { .. } => 30.0,
            Obstacle::NamespaceNotAllowed { .. }
            | Obstacle::AcceleratorNotAllowed { .. }
            | Obstacle::ProviderUnknown { .. } => 40.0,
            Obstacle::Engine { level: Level::None, .. } => 100.0,
        }
    }

    /// The reason in the API's words.
    pub const fn reason(&self) -> Reason {
        match self {
            Obstacle::ProviderUnknown { .. } => Reason::ProviderNotFound,
            Obstacle::NamespaceNotAllowed { .. } => Reason::NamespaceNotAllowed,
            Obstacle::ProviderOff { .. } => Reason::ProviderUnavailable,
            Obstacle::HourlyPrice { .. } => Reason::PriceAboveLimit,
            Obstacle::TotalCost { .. } => Reason::CostLimitExceeded,
            Obstacle::Budget { .. } => Reason::BudgetExceeded,
            Obstacle::ProviderHourly { .. }
            | Obstacle::ProviderMonthly { .. }
            | Obstacle::ProviderMachines { .. } => Reason::QuotaExceeded,
            Obstacle::Unavailable { .. }
            | Obstacle::NoSlot { .. }
            | Obstacle::NoRoom { .. }
            | Obstacle::Crowded { .. } => Reason::InsufficientCapacity,
            Obstacle::StaleQuote { .. } | Obstacle::FutureQuote { .. } => Reason::OffersStale,
            Obstacle::Deadline { .. } => Reason::DeadlineAtRisk,
            Obstacle::ProviderNotListed { .. }
            | Obstacle::AcceleratorNotAllowed { .. }
            | Obstacle::CapacityType { .. }
            | Obstacle::Region { .. }
            | Obstacle::Zone { .. }
            | Obstacle::UntrustedHost
            | Obstacle::OutOfReach { .. }
            | Obstacle::Disk { .. }
            | Obstacle::AcceleratorModel { .. }
            | Obstacle::AcceleratorCount { .. }
            | Obstacle::AcceleratorMemory { .. }
            | Obstacle::ComputeCapability { .. }
            | Obstacle::AcceleratorStack { .. }
            | Obstacle::Interconnect { .. }
            | Obstacle::Vcpus { .. }
            | Obstacle::Memory { .. }
            | Obstacle::Engine { .. }
            | Obstacle::DeviceMemory { .. }
            | Obstacle::Latency { .. }
            | Obstacle::NotForSale { .. }
            | Obstacle::SpotPolicy { .. }
            | Obstacle::Dearer { .. }
            | Obstacle::NotPreferred { .. } => Reason::NoMatchingOffer,
        }
    }

    /// What would have to give, and by how much; `None` where the user cannot make it give.
    pub fn would_have_to_give(&self) -> Option<String> {
        let text = match self {
            Obstacle::ProviderNotListed { provider } => {
                format!("placement.providers: add {provider}")
            }
            Obstacle::CapacityType { has, .. } => format!("placement.capacityType: {has} or Auto"),
            Obstacle::Region { has, excluded: true } => {
                format!("placement.excludeRegions: take {has} out")
            }
            Obstacle::Region { has, excluded: false } => format!("placement.regions: add {has}"),
            Obstacle::Zone { has } => format!("placement.zones: add {has}"),
            Obstacle::UntrustedHost => "placement.allowUntrustedHosts: true".to_owned(),
            Obstacle::AcceleratorModel { has, .. } => {
                format!("resources.accelerator: allow {has}")
            }
            Obstacle::AcceleratorCount { needs, has } => {
                format!("resources.accelerator.count: {has} instead of {needs}")
            }
            Obstacle::AcceleratorMemory { needs, has } => format!(
                "resources.accelerator.minMemory: {} less",
                bytes(needs.saturating_sub(*has))
            ),
            Obstacle::ComputeCapability { has: Some((major, minor)), .. } => {
                format!("resources.accelerator.minComputeCapability: {major}.{minor}")
            }
            Obstacle::Vcpus { needs, has: Some(has) } => {
                format!("processors: {} fewer", milli(needs.saturating_sub(*has)))
            }
            Obstacle::Memory { needs, has: Some(has) } => {
                format!("memory: {} less", bytes(needs.saturating_sub(*has)))
            }
            Obstacle::Disk { needs, has } => format!(
                "resources.ephemeralStorage: {} less, or diskGb of the ComputeProvider: more",
                bytes(needs.saturating_sub(*has))
            ),
            Obstacle::DeviceMemory { needs, has } => format!(
                "device memory: {} less (a smaller micro-batch, context or model)",
                bytes(needs.saturating_sub(*has))
            ),
            Obstacle::Engine { level: Level::CompiledOnly, .. } => {
                "placement.allowUnverified: true".to_owned()
            }
            Obstacle::HourlyPrice { limit, price } => format!(
                "placement.maxHourlyPrice: {price}, which is {} more",
                price.one_hour().saturating_sub(limit.one_hour())
            ),
            Obstacle::Latency { limit, expected } => {
                format!("latencyTarget.tpotMs: {expected}, which is {} more", expected - limit)
            }
            Obstacle::Deadline { late_millis, .. } => {
                format!("deadline: {} later", span(*late_millis))
            }
            Obstacle::TotalCost { left, needs } => {
                format!("maxTotalCost: {} more", needs.saturating_sub(*left))
            }
            Obstacle::Budget { budget, left, needs } => {
                format!("budget {budget}: {} more", needs.saturating_sub(*left))
            }
            Obstacle::ProviderHourly { left, needs } => {
                format!("the provider's hourly limit: {} more", needs.saturating_sub(*left))
            }
            Obstacle::ProviderMonthly { left, needs } => {
                format!("the provider's monthly limit: {} more", needs.saturating_sub(*left))
            }
            Obstacle::ProviderMachines { limit } => {
                format!("the provider's machine limit: {}", u64::from(*limit) + 1)
            }
            Obstacle::NamespaceNotAllowed { provider, namespace } => {
                format!("allowedNamespaces of {provider}: add {namespace}")
            }
            Obstacle::AcceleratorNotAllowed { provider, model } => {
                format!("accelerators of the ComputeProvider {provider}: allow {model}")
            }
            Obstacle::ProviderUnknown { .. }
            | Obstacle::ProviderOff { .. }
            | Obstacle::OutOfReach { .. }
            | Obstacle::ComputeCapability { has: None, .. }
            | Obstacle::AcceleratorStack { .. }
            | Obstacle::Interconnect { .. }
            | Obstacle::Vcpus { has: None, .. }
            | Obstacle::Memory { has: None, .. }
            | Obstacle::Engine { .. }
            | Obstacle::NotForSale { .. }
            | Obstacle::StaleQuote { .. }
            | Obstacle::FutureQuote { .. }
            | Obstacle::Unavailable { .. }
            | Obstacle::NoSlot { .. }
            | Obstacle::NoRoom { .. }
            | Obstacle::Crowded { .. }
            | Obstacle::SpotPolicy { .. }
            | Obstacle::Dearer { .. }
            | Obstacle::NotPreferred { .. } => return None,
        };
        Some(text)
    }
}

/// Bytes for people, in binary units, never less than they are.
fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, size)| count >= *size) {
        Some((unit, size)) => {
            let tenths = (u128::from(count) * 10).div_ceil(u128::from(*size));
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{count} B"),
    }
}

/// Thousandths of processors for people.
fn milli(count: u32) -> String {
    if count.is_multiple_of(1000) {
        (count / 1000).to_string()
    } else {
        format!("{}.{:03}", count / 1000, count % 1000).trim_end_matches('0').to_owned()
    }
}

/// A span for people, rounded up: seconds below two minutes, minutes below two hours, else hours.
fn span(millis: i64) -> String {
    let seconds = (millis.max(0) as u64).div_ceil(1000);
    if seconds < 120 {
        format!("{seconds} s")
    } else if seconds < 7200 {
        format!("{} min", seconds.div_ceil(60))
    } else {
        format!("{} h", seconds.div_ceil(3600))
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::ProviderUnknown { provider } => write!(f, "no provider {provider}"),
            Obstacle::ProviderNotListed { provider } => {
                write!(f, "{provider} is not in placement.providers")
            }
            Obstacle::NamespaceNotAllowed { provider, namespace } => {
                write!(f, "{provider} does not serve namespace {namespace}")
            }
            Obstacle::ProviderOff { provider } => write!(f, "{provider} takes nothing new"),
            Obstacle::AcceleratorNotAllowed { provider, model } => {
                write!(f, "{provider} does not allow {model}")
            }
            Obstacle::CapacityType { needs, has } => write!(f, "is {has}, needs {needs}"),
            Obstacle::Region { has, excluded: true } => {
                write!(f, "region {} is excluded", place(has))
            }
            Obstacle::Region { has, excluded: false } => {
                write!(f, "region {} is not in placement.regions", place(has))
            }
            Obstacle::Zone { has } => write!(f, "zone {} is not in placement.zones", place(has)),
            Obstacle::UntrustedHost => f.write_str("unknown owner, allowUntrustedHosts is false"),
            Obstacle::OutOfReach { provider, needs } => {
                write!(f, "machines of {provider} cannot reach {needs}")
            }
            Obstacle::Disk { needs, has } => {
                write!(f, "needs {} of disk, has {}", bytes(*needs), bytes(*has))
            }
            Obstacle::AcceleratorModel { needs, has } => write!(f, "needs {needs}, has {has}"),
            Obstacle::AcceleratorCount { needs, has } => {
                write!(f, "needs {needs} devices, has {has}")
            }
            Obstacle::AcceleratorMemory { needs, has } => {
                write!(f, "needs {} a device, has {}", bytes(*needs), bytes(*has))
            }
            Obstacle::ComputeCapability { needs, has } => {
                write!(f, "needs compute capability {}.{}, has ", needs.0, needs.1)?;
                match has {
                    Some((major, minor)) => write!(f, "{major}.{minor}"),
                    None => f.write_str("none"),
                }
            }
            Obstacle::AcceleratorStack { needs, has } => {
                write!(f, "needs devices that {needs} drives, has such of {has}")
            }
            Obstacle::Interconnect { has } => {
                write!(f, "needs devices linked by more than PCIe, has {has}")
            }
            Obstacle::Vcpus { needs, has } => {
                write!(f, "needs {} processors, has ", milli(*needs))?;
                match has {
                    Some(has) => f.write_str(&milli(*has)),
                    None => f.write_str("an unknown number"),
                }
            }
            Obstacle::Memory { needs, has } => {
                write!(f, "needs {} of memory, has ", bytes(*needs))?;
                match has {
                    Some(has) => f.write_str(&bytes(*has)),
                    None => f.write_str("an unknown amount"),
                }
            }
            Obstacle::Engine { level, on } => match level {
                Level::None => write!(f, "the runtime does not run on {on}"),
                Level::CompiledOnly => write!(f, "the runtime was never run on {on}"),
                Level::Verified => write!(f, "the runtime cannot use that many devices on {on}"),
            },
            Obstacle::DeviceMemory { needs, has } => {
                write!(f, "needs {} of device memory, has {}", bytes(*needs), bytes(*has))
            }
            Obstacle::HourlyPrice { limit, price } => {
                write!(f, "costs {price} $/h, limit {limit} $/h")
            }
            Obstacle::Latency { limit, expected } => {
                write!(f, "{expected} ms a token, target {limit} ms")
            }
            Obstacle::Deadline { finish_by, late_millis } => {
                write!(f, "{} after the deadline {finish_by}", span(*late_millis))
            }
            Obstacle::TotalCost { left, needs } => {
                write!(f, "costs {needs} $, maxTotalCost leaves {left} $")
            }
            Obstacle::Budget { budget, left, needs } => {
                write!(f, "costs {needs} $, budget {budget} has {left} $ left")
            }
            Obstacle::ProviderHourly { left, needs } => {
                write!(f, "costs {needs} $/h, the provider's limit leaves {left} $/h")
            }
            Obstacle::ProviderMonthly { left, needs } => {
                write!(f, "costs {needs} $, the provider's monthly limit leaves {left} $")
            }
            Obstacle::ProviderMachines { limit } => {
                write!(f, "all {limit} machines of the provider's limit are taken")
            }
            Obstacle::NoSlot { slots } => write!(f, "all {slots} slots are taken"),
            Obstacle::NoRoom { of, needs, left } => {
                write!(f, "takes {needs} of {of}, and {left} are left")
            }
            Obstacle::Crowded { zone } => {
                write!(f, "half of the replicas are on spot in {zone}, and may be lost together")
            }
            Obstacle::Unavailable { until, reason } => write!(f, "{reason}; again at {until}"),
            Obstacle::StaleQuote { quoted_at, expired_at } => {
                write!(f, "quote of {quoted_at} expired at {expired_at}")
            }
            Obstacle::FutureQuote { quoted_at } => {
                write!(f, "quote is from the future: {quoted_at}")
            }
            Obstacle::NotForSale { note } => f.write_str(note),
            Obstacle::SpotPolicy { says: Advised::Wait, line } => {
                write!(f, "there is time to wait for spot, until {line}")
            }
            Obstacle::SpotPolicy { says: Advised::OnDemand, .. } => {
                f.write_str("may be taken away, and then on-demand would be too late or cost more")
            }
            Obstacle::SpotPolicy { says: Advised::Spot | Advised::Stay, .. } => {
                f.write_str("the deadline is safer where it is")
            }
            Obstacle::Dearer { by } => write!(f, "{by} $ dearer"),
            Obstacle::NotPreferred { late_millis: 0 } => {
                f.write_str("as good; the other comes first")
            }
            Obstacle::NotPreferred { late_millis } => {
                write!(f, "not dearer, but may end {} after the deadline", span(*late_millis))
            }
        }
    }
}

/// A region or zone for people.
fn place(name: &str) -> &str {
    if name.is_empty() { "(none)" } else { name }
}
