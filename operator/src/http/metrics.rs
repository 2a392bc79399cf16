//! `/metrics`, in Prometheus' text format: what was counted since the start, and what is now.
//!
//! Money and machines are told by the leader alone, so that two replicas are not added up. What
//! was spent is the ledger's sum, so it goes on where it was after a restart. It leaves owners out:
//! series of every job that ever was would never end; `/api/v1/costs` has them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::response::IntoResponse;
use http::{HeaderMap, header};
use petaflop_arbiter::claim::Phase;
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::{Accelerators, Offer};
use petaflop_crds::compute_claim::OwnerKind;
use petaflop_crds::spend_budget::projected;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};

use super::auth::What;
use super::{Api, Refusal};
use crate::claims::StoredClaim;
use crate::cluster::Operator;
use crate::cluster::operate::Queues;

/// Offers shown for each kind of accelerator, the cheapest ones.
const OFFERS_SHOWN: usize = 10;

/// What machines without accelerators are told by.
const NO_ACCELERATOR: &str = "none";

/// The text format that every Prometheus reads.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

type Float = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, Default, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfMachine {
    namespace: String,
    owner_kind: &'static str,
    owner: String,
    provider: String,
    region: String,
    zone: String,
    instance_type: String,
    capacity_type: &'static str,
    provider_id: String,
    accelerator: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfSpending {
    namespace: String,
    owner_kind: &'static str,
    provider: String,
    region: String,
    zone: String,
    instance_type: String,
    capacity_type: &'static str,
    accelerator: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfClaims {
    provider: String,
    phase: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct OfOffer {
    provider: String,
    region: String,
    instance_type: String,
    capacity_type: &'static str,
    accelerator: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfProvider {
    provider: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfBudget {
    namespace: String,
    budget: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfController {
    controller: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Build {
    version: &'static str,
    revision: &'static str,
}

pub(super) async fn answer(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Refusal> {
    if !api.operator.settings.public_metrics {
        api.reviews.allow(&headers, &What::Metrics).await?;
    }
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text(&api.operator, &api.queues)))
}

fn text(operator: &Operator, queues: &Queues) -> String {
    let mut text = String::new();
    for registry in [operator.metrics.registry(), &now(operator, queues)] {
        encode_registry(&mut text, registry).expect("a String takes whatever is written to it");
    }
    plain(&text)
}

/// What is now.
fn now(operator: &Operator, queues: &Queues) -> Registry {
    let mut all = Registry::with_prefix("petaflop");
    let build = add::<Family<Build, Gauge>>(&mut all, "build_info", "The program");
    let revision = option_env!("PETAFLOP_REVISION").unwrap_or("unknown");
    build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION"), revision }).set(1);
    let leader = add::<Gauge>(&mut all, "leader", "Whether this replica is the one at work");
    leader.set(i64::from(operator.leadership.leads()));
    let depth = add::<Family<OfController, Gauge>>(
        &mut all,
        "reconcile_queue_depth",
        "Objects that wait for their turn",
    );
    for (controller, waiting) in queues.depths() {
        let controller = controller.as_str();
        depth.get_or_create(&OfController { controller }).set(waiting as i64);
    }
    if operator.health.has_begun() {
        let claims = operator.table.all();
        machines(&claims, &mut all);
        spent(operator, &mut all);
        offers(operator, &mut all);
        budgets(operator, &claims, &mut all);
    }
    all
}

/// Registers an empty one.
fn add<M: Metric + Default + Clone>(all: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    all.register(name, help, metric.clone());
    metric
}

fn machines(claims: &[StoredClaim], all: &mut Registry) {
    let hourly = add::<Family<OfMachine, Float>>(
        all,
        "compute_hourly_cost_usd",
        "Dollars an hour that each machine costs now",
    );
    let phases =
        add::<Family<OfClaims, Gauge>>(all, "compute_claims", "Claims that are not gone, by phase");
    for stored in claims {
        let claim = &stored.claim;
        let (offer, owner) = (&claim.spec.offer, &claim.spec.owner);
        let phase = phase(&claim.phase);
        phases.get_or_create(&OfClaims { provider: offer.provider.clone(), phase }).inc();
        let (Phase::Launched { instance, .. } | Phase::Ending { instance: Some(instance), .. }) =
            &claim.phase
        else {
            continue;
        };
        let labels = OfMachine {
            namespace: owner.namespace.clone(),
            owner_kind: OwnerKind::from(owner.kind).as_str(),
            owner: owner.name.clone(),
            provider: offer.provider.clone(),
            region: offer.region.clone(),
            zone: offer.zone.clone(),
            instance_type: offer.instance_type.clone(),
            capacity_type: offer.capacity.as_str(),
            provider_id: instance.clone(),
            accelerator: accelerator(offer),
        };
        hourly.get_or_create(&labels).set(offer.price.as_f64());
    }
}

fn phase(phase: &Phase) -> &'static str {
    match phase {
        Phase::Planned => "Planned",
        Phase::Attempted { .. } => "Attempted",
        Phase::Ambiguous { .. } => "Ambiguous",
        Phase::Launched { .. } => "Launched",
        Phase::Ending { .. } => "Ending",
        Phase::Ended { .. } => "Ended",
    }
}

fn accelerator(offer: &Offer) -> String {
    match &offer.accelerators {
        Some(Accelerators { model, .. }) => model.clone(),
        None => NO_ACCELERATOR.to_owned(),
    }
}

fn spent(operator: &Operator, all: &mut Registry) {
    let cost = add::<Family<OfSpending, Counter<f64, AtomicU64>>>(
        all,
        "compute_cost_usd",
        "Dollars spent on machines, by the ledger; later corrections downward are left out",
    );
    for (bought, sum) in operator.book.bought() {
        let labels = OfSpending {
            namespace: bought.namespace,
            owner_kind: OwnerKind::from(bought.owner_kind).as_str(),
            provider: bought.provider,
            region: bought.region,
            zone: bought.zone,
            instance_type: bought.instance_type,
            capacity_type: bought.capacity.as_str(),
            accelerator: match bought.accelerator {
                model if model.is_empty() => NO_ACCELERATOR.to_owned(),
                model => model,
            },
        };
        cost.get_or_create(&labels).inc_by(sum.as_f64());
    }
}

fn offers(operator: &Operator, all: &mut Registry) {
    let price = add::<Family<OfOffer, Float>>(
        all,
        "offer_price_usd",
        "Dollars an hour of the cheapest offers for each accelerator",
    );
    let age =
        add::<Family<OfProvider, Float>>(all, "offer_age_seconds", "Age of the newest offers");
    let now = operator.clock.now();
    // Offers of several zones share their labels: the cheapest of them counts.
    let mut cheapest: BTreeMap<String, BTreeMap<OfOffer, UsdPerHour>> = BTreeMap::new();
    for (name, known) in operator.providers.all() {
        if let Some(at) = known.quoted_at {
            let seconds = now.duration_since(at).as_secs_f64().max(0.0);
            age.get_or_create(&OfProvider { provider: name }).set(seconds);
        }
        for offer in known.offers.iter().filter(|offer| offer.sale.is_buyable()) {
            let labels = OfOffer {
                provider: offer.provider.clone(),
                region: offer.region.clone(),
                instance_type: offer.instance_type.clone(),
                capacity_type: offer.capacity.as_str(),
                accelerator: accelerator(offer),
            };
            let seen = cheapest.entry(labels.accelerator.clone()).or_default();
            let lowest = seen.entry(labels).or_insert(offer.price);
            *lowest = offer.price.min(*lowest);
        }
    }
    for (_, seen) in cheapest {
        let mut seen: Vec<(UsdPerHour, OfOffer)> =
            seen.into_iter().map(|(labels, price)| (price, labels)).collect();
        seen.sort();
        for (dollars, labels) in seen.into_iter().take(OFFERS_SHOWN) {
            price.get_or_create(&labels).set(dollars.as_f64());
        }
    }
}

fn budgets(operator: &Operator, claims: &[StoredClaim], all: &mut Registry) {
    let mut add = |name, help| add::<Family<OfBudget, Float>>(all, name, help);
    let limit = add("budget_limit_usd", "Dollars that a budget allows in its period");
    let spent = add("budget_spent_usd", "Dollars spent in the running period, up to now");
    let end = add("budget_projected_usd", "Dollars at the period's end if all goes on as now");
    let now = operator.clock.now();
    for budget in operator.budgets(claims, now) {
        let rate = claims
            .iter()
            .filter(|stored| {
                let owner = &stored.claim.spec.owner;
                let phase = &stored.claim.phase;
                matches!(phase, Phase::Launched { .. } | Phase::Ending { .. })
                    && budget.counts(&owner.namespace, &owner.uid)
            })
            .map(|stored| stored.claim.spec.offer.price)
            .fold(UsdPerHour::ZERO, UsdPerHour::saturating_add);
        let at_end = projected(budget.spent, rate, now, budget.period_ends_at);
        let labels = OfBudget { namespace: budget.namespace.clone(), budget: budget.name.clone() };
        limit.get_or_create(&labels).set(budget.limit.as_f64());
        spent.get_or_create(&labels).set(budget.spent.as_f64());
        end.get_or_create(&labels).set(at_end.as_f64());
    }
}

/// From OpenMetrics, which the library writes, to the older format, which every reader takes
/// without being asked: there a counter's name is the one its samples have.
fn plain(open: &str) -> String {
    let mut plain = String::with_capacity(open.len());
    let mut lines = open.lines().peekable();
    while let Some(line) = lines.next() {
        let named = |line: &str, word: &str| {
            line.strip_prefix(word)
                .and_then(|rest| rest.split_once(' '))
                .map(|(n, rest)| (n.to_owned(), rest.to_owned()))
        };
        let of_counter = |name: &str, type_line: Option<&str>| {
            type_line.is_some_and(|line| line == format!("# TYPE {name} counter"))
        };
        // Writing to a String does not fail.
        let _ = match (named(line, "# HELP "), named(line, "# TYPE ")) {
            (Some((name, help)), _) if of_counter(&name, lines.peek().copied()) => {
                writeln!(plain, "# HELP {name}_total {help}")
            }
            (_, Some((name, _))) if of_counter(&name, Some(line)) => {
                writeln!(plain, "# TYPE {name}_total counter")
            }
            _ => writeln!(plain, "{line}"),
        };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn counters_are_named_as_their_samples_in_the_older_format() {
        let open = "# HELP a Some.\n# TYPE a counter\na_total{x=\"# TYPE a counter\"} 1\n# HELP b Other.\n# TYPE b gauge\nb 2\n";
        let expected = "# HELP a_total Some.\n# TYPE a_total counter\na_total{x=\"# TYPE a counter\"} 1\n# HELP b Other.\n# TYPE b gauge\nb 2\n";
        assert_eq!(plain(open), expected);
    }
}
