//! How much of a node a Pod takes, as the scheduler counts it, and Kubernetes
//! quantities as numbers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts by resource name: processors in thousandths, everything else in units
/// (bytes, devices, Pods).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Amounts(BTreeMap<String, u64>);

impl<const N: usize> From<[(&str, u64); N]> for Amounts {
    fn from(amounts: [(&str, u64); N]) -> Self {
        Self(amounts.into_iter().map(|(name, amount)| (name.to_owned(), amount)).collect())
    }
}

impl Amounts {
    /// From a resource list of the API. What cannot be read counts as nothing here
    /// and as all there is where it is asked for; the API server lets no such list in.
    pub(super) fn of(list: &BTreeMap<String, Quantity>) -> Self {
        let amount = |(name, quantity): (&String, &Quantity)| {
            let scale = if name == "cpu" { 1000 } else { 1 };
            parse(&quantity.0, scale).map(|amount| (name.clone(), amount))
        };
        Self(list.iter().filter_map(amount).collect())
    }

    /// How much of a resource.
    pub(super) fn get(&self, resource: &str) -> u64 {
        self.0.get(resource).copied().unwrap_or(0)
    }

    /// The resources there are more than none of.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0
            .iter()
            .filter(|(_, amount)| **amount > 0)
            .map(|(name, amount)| (name.as_str(), *amount))
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let sum = self.0.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    /// At least the other's, resource by resource.
    fn raise(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let most = self.0.entry(name.clone()).or_default();
            *most = (*most).max(*amount);
        }
    }

    /// What is left when the other is taken away.
    pub(super) fn less(mut self, other: &Self) -> Self {
        for (name, amount) in &mut self.0 {
            *amount = amount.saturating_sub(other.get(name));
        }
        self
    }
}

/// What a Pod takes: the larger of its containers together and of any moment of its
/// start, sidecars included, plus its overhead; a request for the Pod as a whole
/// counts instead where there is one.
pub(super) fn of_pod(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else {
        return Amounts::default();
    };
    let mut sum = Amounts::default();
    for container in &spec.containers {
        sum.add(&of_container(container));
    }
    let mut most_at_start = Amounts::default();
    let mut sidecars = Amounts::default();
    for container in spec.init_containers.iter().flatten() {
        let own = of_container(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&own);
            most_at_start.raise(&sidecars);
        } else {
            let mut now = sidecars.clone();
            now.add(&own);
            most_at_start.raise(&now);
        }
    }
    sum.add(&sidecars);
    sum.raise(&most_at_start);
    for (name, amount) in of_whole(spec).0 {
        sum.0.insert(name, amount);
    }
    if let Some(overhead) = &spec.overhead {
        sum.add(&Amounts::of(overhead));
    }
    sum.0.insert("pods".to_owned(), 1);
    sum
}

fn of_container(container: &Container) -> Amounts {
    let Some(resources) = &container.resources else {
        return Amounts::default();
    };
    // A limit without a request is a request, as the API server fills it in.
    let mut amounts = resources.limits.as_ref().map(Amounts::of).unwrap_or_default();
    if let Some(requests) = &resources.requests {
        amounts.0.extend(Amounts::of(requests).0);
    }
    amounts
}

fn of_whole(spec: &PodSpec) -> Amounts {
    let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    requests.map(Amounts::of).unwrap_or_default()
}

/// A quantity times `scale`, rounded up: `1500m`, `2`, `1.5Gi`, `3e2`. `None` where it is
/// no quantity, is negative or does not fit.
fn parse(text: &str, scale: u64) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    // Numerator and denominator of what the suffix stands for.
    let (by, over): (u128, u128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let ten = 10_u128.checked_pow(power.unsigned_abs())?;
            if power < 0 { (1, ten) } else { (ten, 1) }
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mantissa: u128 = format!("{whole}{fraction}").parse().ok()?;
    let over = over.checked_mul(10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    let scaled = mantissa.checked_mul(by)?.checked_mul(u128::from(scale))?;
    u64::try_from(scaled.div_ceil(over)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, scale, value) in [
            ("2", 1000, Some(2000)),
            ("1500m", 1000, Some(1500)),
            ("0.1", 1000, Some(100)),
            ("100u", 1000, Some(1)),
            ("1.5Gi", 1, Some(3 << 29)),
            ("128974848", 1, Some(128_974_848)),
            ("129e6", 1, Some(129_000_000)),
            ("129M", 1, Some(129_000_000)),
            ("12E", 1, Some(12_000_000_000_000_000_000)),
            ("1e-1", 1000, Some(100)),
            ("40E", 1, None),
            ("-1", 1, None),
            ("", 1, None),
            ("Gi", 1, None),
            ("1.2.3", 1, None),
            ("one", 1, None),
            ("1e999999999", 1, None),
        ] {
            assert_eq!(parse(text, scale), value, "{text}");
        }
    }

    #[test]
    fn a_pod_takes_what_its_hungriest_moment_takes() {
        let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let sidecar = |cpu: &str| json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
        for (what, spec, cpu) in [
            ("sum of containers", json!({"containers": [container("1"), container("2")]}), 3000),
            (
                "an init container that needs more than the rest",
                json!({"containers": [container("1")], "initContainers": [container("4"), container("2")]}),
                4000,
            ),
            (
                "a sidecar runs beside the containers",
                json!({"containers": [container("1")], "initContainers": [sidecar("500m")]}),
                1500,
            ),
            (
                "and beside the init containers after it, not those before",
                json!({"containers": [container("1")], "initContainers": [container("4"), sidecar("1"), container("3500m")]}),
                4500,
            ),
            (
                "overhead comes on top",
                json!({"containers": [container("1")], "overhead": {"cpu": "250m"}}),
                1250,
            ),
            (
                "the Pod's own request counts instead of its containers'",
                json!({"containers": [container("1")], "resources": {"requests": {"cpu": "3"}}}),
                3000,
            ),
            (
                "a limit alone is a request",
                json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": "2"}}}]}),
                2000,
            ),
            ("nothing asked, nothing taken", json!({"containers": [{"name": "c"}]}), 0),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).expect("a Pod");
            assert_eq!(of_pod(&pod).get("cpu"), cpu, "{what}");
            assert_eq!(of_pod(&pod).get("pods"), 1);
        }
    }
}
