//! A `ComputeProvider` as decisions see it.

use jiff::Timestamp;
use kube::ResourceExt;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::world::{MonthlyLimit, ProviderState, Switch};

use super::{ComputeProvider, ComputeProviderSpec, Limits, ProviderSwitch, ProviderType};
use crate::FieldError;
use crate::field_error::Errors;
use crate::scalar::Money;
use crate::spend_budget::Period;

/// What only the operator knows of a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderFacts {
    /// Whether it can be reached, takes our credentials, and its offers are fresh.
    pub usable: bool,
    /// Dollars of the running calendar month (UTC), by the ledger.
    pub spent_this_month: Usd,
}

/// What it is like to start at a provider of a type, as providers' documents and users report it. It
/// weighs in estimates, not in bills.
impl ProviderType {
    /// Milliseconds from asking for a machine until it can begin to fetch.
    pub fn startup_millis(self) -> i64 {
        match self {
            ProviderType::Host => 1_000,
            ProviderType::Nodes => 15_000,
            ProviderType::AWS => 90_000,
            ProviderType::RunPod => 120_000,
        }
    }

    /// Bytes a second at which a fresh machine fetches; `None`: everything is there already.
    pub fn fetch_bytes_per_second(self) -> Option<u64> {
        match self {
            ProviderType::Host => None,
            ProviderType::Nodes | ProviderType::AWS => Some(100_000_000),
            ProviderType::RunPod => Some(50_000_000),
        }
    }
}

impl ComputeProviderSpec {
    /// Which of the types it is; none if the union is broken, which the CRD's rules refuse.
    pub fn type_(&self) -> Option<ProviderType> {
        match (&self.nodes, &self.host, &self.runpod, &self.aws) {
            (Some(_), None, None, None) => Some(ProviderType::Nodes),
            (None, Some(_), None, None) => Some(ProviderType::Host),
            (None, None, Some(_), None) => Some(ProviderType::RunPod),
            (None, None, None, Some(_)) => Some(ProviderType::AWS),
            _ => None,
        }
    }

    /// A price as quoted, adjusted; rounded up, so that a limit is never passed by rounding.
    pub fn adjusted(&self, price: UsdPerHour) -> UsdPerHour {
        let percent = i128::from(self.price_adjustment_percent.clamp(-99, 1000)) + 100;
        let micros = (i128::from(price.micros()) * percent + 99) / 100;
        UsdPerHour::from_micros(i64::try_from(micros).unwrap_or(i64::MAX)).unwrap_or(price)
    }
}

impl ComputeProvider {
    /// Regions in which machines were had and that the spec does not name any more.
    pub fn former_regions(&self) -> Vec<String> {
        let named = |name: &String| {
            let regions = self.spec.aws.iter().flat_map(|aws| &aws.regions);
            regions.into_iter().any(|region| region.name == *name)
        };
        let known = self.status.iter().flat_map(|status| &status.regions);
        known.filter(|name| !named(name)).cloned().collect()
    }

    /// The provider as decisions see it at `now`.
    ///
    /// # Errors
    /// Fields that do not stand for a value, most of which the CRD's schema refuses; accelerators that
    /// nobody makes.
    pub fn state(
        &self,
        facts: &ProviderFacts,
        now: Timestamp,
    ) -> Result<ProviderState, Vec<FieldError>> {
        let mut errors = Errors::default();
        let type_ = self.spec.type_().unwrap_or_else(|| {
            errors.add("spec", "exactly one of nodes, host, runpod and aws must be given");
            ProviderType::Nodes
        });
        let ComputeProviderSpec {
            nodes: _, // of the provider's module
            host: _,
            runpod,
            aws,
            allowed_namespaces,
            accelerators,
            state,
            credentials_secret_ref: _, // `facts.usable` tells
            limits,
            price_adjustment_percent: _, // in the offers, by `adjusted`
            power: _,                    // in the offers
        } = &self.spec;
        let Limits { hourly, monthly, machines } = limits;
        for (list, models) in [("allow", &accelerators.allow), ("deny", &accelerators.deny)] {
            crate::shared::known_models(&format!("spec.accelerators.{list}"), models, &mut errors);
        }
        let mut usd = |path: &str, money: &Option<Money>| {
            let money = money.as_ref()?;
            money.micro_dollars().map_err(|error| errors.add(path, error)).ok()
        };
        let max_hourly = usd("spec.limits.hourly", hourly)
            .and_then(|micros| UsdPerHour::from_micros(micros).ok());
        let monthly = usd("spec.limits.monthly", monthly).map(|micros| MonthlyLimit {
            limit: Usd::from_micros(micros),
            spent: facts.spent_this_month,
            ends_at: Period::Monthly.around(now).end,
        });
        let egress = aws.as_ref().and_then(|aws| {
            let price = aws.egress_price_per_gb.micro_dollars();
            price.map_err(|error| errors.add("spec.aws.egressPricePerGb", error)).ok()
        });
        let provider = ProviderState {
            name: self.name_any(),
            state: match (state, facts.usable) {
                (ProviderSwitch::Disabled, _) | (_, false) => Switch::Disabled,
                (ProviderSwitch::Cordoned, true) => Switch::Cordoned,
                // What ran when its object was removed goes on.
                (ProviderSwitch::Enabled, true) if self.metadata.deletion_timestamp.is_some() => {
                    Switch::Cordoned
                }
                (ProviderSwitch::Enabled, true) => Switch::Enabled,
            },
            allowed_namespaces: (!allowed_namespaces.iter().any(|name| name == "*"))
                .then(|| allowed_namespaces.clone()),
            accelerators: accelerators.rule(),
            max_hourly,
            monthly,
            max_machines: *machines,
            startup_millis: type_.startup_millis(),
            fetch_bytes_per_second: type_.fetch_bytes_per_second(),
            egress_usd_per_gb: egress.map_or(Usd::ZERO, Usd::from_micros),
            remote: runpod.is_some() || aws.is_some(),
            disk: (runpod.as_ref().map(|runpod| runpod.disk_gb))
                .or(aws.as_ref().map(|aws| aws.disk_gb))
                .map(|gb| u64::from(gb) * 1_000_000_000),
            quotes_stock: runpod.is_some(),
        };
        errors.or(provider)
    }
}
