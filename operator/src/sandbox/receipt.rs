//! What the clouds of a sandbox billed, machine by machine, and what the same machines cost in the
//! same hours where nobody may take them away.

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::money::Usd;
use petaflop_cloud_box::engine::Engine;
use petaflop_cloud_box::engine::bill::Item;
use petaflop_cloud_box::engine::machine::{Machine, Why};
use petaflop_cloud_box::engine::product::Sale;
use serde::Serialize;

use super::clouds::Clouds;

/// A machine on the receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rented {
    /// The ComputeProvider.
    pub provider: String,
    /// The provider's id.
    pub machine: String,
    /// The type, by the provider's own id, and how much of it.
    pub kind: String,
    /// Zone, data centre, or country.
    pub place: String,
    /// It could be taken away.
    pub spot: bool,
    /// When it was bought.
    pub since: Timestamp,
    /// When it stopped; `None`: it runs.
    pub until: Option<Timestamp>,
    /// Why it stopped.
    pub end: String,
    /// What it was billed, with its disks.
    pub billed_usd: Usd,
    /// What the same seconds cost on demand.
    pub on_demand_usd: Usd,
    /// It is still billed.
    pub bills: bool,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// Oldest first.
    pub machines: Vec<Rented>,
    /// What was billed.
    pub billed_usd: Usd,
    /// What the same seconds cost on demand.
    pub on_demand_usd: Usd,
}

impl Receipt {
    /// As of now.
    pub fn of(clouds: &Clouds) -> Self {
        let mut machines = Vec::new();
        for (cloud, machine) in clouds.rented() {
            cloud.engine(&mut |engine| machines.push(line(cloud.name(), engine, &machine)));
        }
        let sum = |of: fn(&Rented) -> Usd| {
            machines.iter().fold(Usd::ZERO, |sum, machine| sum.saturating_add(of(machine)))
        };
        let (billed_usd, on_demand_usd) = (sum(|m| m.billed_usd), sum(|m| m.on_demand_usd));
        Self { machines, billed_usd, on_demand_usd }
    }

    /// Whether nothing has run, nor been billed, for so long.
    pub fn is_settled(&self, quiet: SignedDuration, now: Timestamp) -> bool {
        let is_over = |machine: &Rented| {
            !machine.bills && machine.until.is_some_and(|until| now.duration_since(until) >= quiet)
        };
        self.machines.iter().all(is_over)
    }
}

fn line(provider: &str, engine: &Engine, machine: &Machine) -> Rented {
    let product = engine.product(machine.order.product);
    let invoice = engine.invoice();
    let disks = engine.disks().iter().filter(|disk| disk.made_with == machine.id);
    let disks: Vec<&str> = disks.map(|disk| disk.id.as_str()).collect();
    let is_own = |id: &str| id == machine.id || disks.contains(&id);
    let own = || invoice.lines().iter().filter(|line| is_own(&line.machine));
    let (mut billed, mut on_demand) = (0, 0);
    for line in own() {
        let micros = line.micros(engine.now());
        billed += micros;
        on_demand += match line.item {
            Item::Compute => {
                let hourly = product.on_demand * i64::from(machine.order.units);
                hourly.saturating_mul(line.billed_seconds(engine.now())) / 3600
            }
            Item::Disk | Item::Volume | Item::VolumeStopped => micros,
        };
    }
    let stopped = machine.stopped.or(machine.leaving);
    Rented {
        provider: provider.to_owned(),
        machine: machine.id.clone(),
        kind: match machine.order.units {
            1 => product.kind.clone(),
            units => format!("{} ×{units}", product.kind),
        },
        place: product.zone.clone().unwrap_or_else(|| product.region.clone()),
        spot: matches!(machine.order.sale, Sale::Spot { .. }),
        since: machine.created,
        until: stopped.map(|(at, _)| at),
        end: stopped.map(|(_, why)| words(why).to_owned()).unwrap_or_default(),
        billed_usd: Usd::from_micros(billed),
        on_demand_usd: Usd::from_micros(on_demand),
        bills: own().any(|line| line.until.is_none()),
    }
}

fn words(why: Why) -> &'static str {
    match why {
        Why::User => "given back",
        Why::Process => "its program ended",
        Why::Evicted => "taken away",
        Why::Price => "the price passed the bid",
        Why::Balance => "no money was left",
        Why::Deadline => "its own deadline",
    }
}
