//! Observe: offers, claims, jobs and their costs become one [`World`].

use std::sync::Arc;

use jiff::Timestamp;
use petaflop_arbiter::estimate::Corrections;
use petaflop_arbiter::market::Market;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::{Offer, OfferId, Sale};
use petaflop_arbiter::support::SupportTable;
use petaflop_arbiter::workload::{Workload, WorkloadId};
use petaflop_arbiter::world::{Assumptions, ModelRule, ProviderState, Switch, Unavailable, World};
use petaflop_crds::compute_provider::ProviderType;
use petaflop_providers::host::{self, Host, HostConfig};
use petaflop_providers::{Provider, ProviderError, snapshot};

use crate::accelerators::Broken;
use crate::claims::StoredClaim;
use crate::embedded::claims::FileClaims;
use crate::embedded::config::Config;
use crate::embedded::home::{self, Home, HomeError};
use crate::embedded::job::Folder;
use crate::embedded::live;
use crate::learned::Lesson;
use crate::spot::Spot;
use crate::unmet::Unmet;

/// The providers of an installation outside a cluster.
pub struct Providers {
    /// This machine.
    pub host: Host,
    /// Where machines are rented.
    pub rented: Vec<Arc<dyn Provider>>,
    /// Dated prices.
    pub snapshot: snapshot::Snapshot,
    /// Tables of the spot policy.
    pub spot: Spot,
    max_hourly: Option<UsdPerHour>,
    /// What 10⁹ bytes cost that leave AWS.
    aws_egress: Usd,
}

impl Providers {
    /// As the home is configured. `runtime` is the `petaflop-runtime` binary.
    pub fn of(
        home: &Home,
        config: &Config,
        runtime: std::path::PathBuf,
    ) -> Result<Self, HomeError> {
        let folder = home.root().join("host");
        let host = HostConfig { runtime, folder: folder.clone(), power: config.host.clone() };
        let rented = match &config.rented {
            Some(_) => live::providers(home.root(), config, |name| std::env::var(name).ok())
                .map_err(|error| HomeError::Damaged {
                    path: home.root().join("config.yaml"),
                    what: format!("it says what rented machines need, and there are none: {error}"),
                })?,
            None => Vec::new(),
        };
        let aws = config.aws.as_ref().map(|aws| aws.settings.clone()).unwrap_or_default();
        let egress = aws.egress_price_per_gb.micro_dollars();
        Ok(Self {
            host: Host::new(host).map_err(HomeError::unusable(&folder))?,
            rented,
            snapshot: snapshot::Snapshot,
            spot: Spot::default(),
            max_hourly: config.rented.as_ref().and_then(|rented| rented.max_hourly),
            // What is no amount was refused when the file was read.
            aws_egress: Usd::from_micros(egress.unwrap_or_default()),
        })
    }

    /// The provider that made an offer, where it sells.
    pub fn seller(&self, name: &str) -> &dyn Provider {
        if name == host::NAME {
            return &self.host;
        }
        // Whoever else is named is known by dated prices only, and refuses.
        self.sellers().find(|provider| provider.name() == name).unwrap_or(&self.snapshot)
    }

    /// Those that machines may have been had from.
    pub fn sellers(&self) -> impl Iterator<Item = &dyn Provider> {
        let rented = self.rented.iter().map(|provider| &**provider);
        std::iter::once(&self.host as &dyn Provider).chain(rented)
    }

    fn rents(&self, name: &str) -> bool {
        self.rented.iter().any(|provider| provider.name() == name)
    }

    /// All offers. A provider that fails is left out and named.
    pub async fn offers(&self) -> (Vec<Offer>, Vec<ProviderError>) {
        let (mut offers, mut errors) = (Vec::new(), Vec::new());
        let dated = std::iter::once(&self.snapshot as &dyn Provider);
        for provider in self.sellers().chain(dated) {
            match provider.quote().await {
                Ok(quoted) => offers.extend(quoted),
                Err(error) => errors.push(error),
            }
        }
        // What is asked itself need not be compared with what it said once.
        offers.retain(|offer| offer.sale == Sale::Buyable || !self.rents(&offer.provider));
        (offers, errors)
    }
}

/// The providers as decisions see them.
fn provider_states(providers: &Providers) -> Vec<ProviderState> {
    let state = |name: &str, type_: ProviderType, egress_usd_per_gb: Usd| ProviderState {
        name: name.to_owned(),
        state: Switch::Enabled,
        allowed_namespaces: None,
        accelerators: ModelRule::default(),
        max_hourly: providers.max_hourly.filter(|_| providers.rents(name)),
        monthly: None,
        max_machines: None,
        startup_millis: type_.startup_millis(),
        fetch_bytes_per_second: type_.fetch_bytes_per_second(),
        egress_usd_per_gb,
        // Dated prices are compared with, wherever they are.
        remote: providers.rents(name),
        // `spec.resources.ephemeralStorage` means something in a cluster alone.
        disk: None,
        quotes_stock: name == "runpod",
    };
    vec![
        state("aws", ProviderType::AWS, providers.aws_egress),
        state(host::NAME, ProviderType::Host, Usd::ZERO),
        state("runpod", ProviderType::RunPod, Usd::ZERO),
    ]
}

/// An offer that refused a launch lately, as a file remembers it.
fn unavailable(home: &Home, now: Timestamp) -> Result<Vec<Unavailable>, HomeError> {
    let mut list: Vec<Unavailable> =
        home::read_json(&home.root().join("unavailable.json"))?.unwrap_or_default();
    list.retain(|entry| entry.until > now);
    Ok(list)
}

/// Leaves an offer alone for a while.
pub fn leave_alone(
    home: &Home,
    offer: &OfferId,
    until: Timestamp,
    reason: petaflop_arbiter::reason::Reason,
) -> Result<(), HomeError> {
    let mut list = unavailable(home, Timestamp::now())?;
    list.retain(|entry| entry.offer != *offer);
    list.push(Unavailable { offer: offer.clone(), until, reason });
    home::write_json(&home.root().join("unavailable.json"), &list)
}

/// A claim's machine lacks the accelerators that it was bought for: its class of offers is left alone
/// for a while.
pub fn leave_class_alone(
    home: &Home,
    stored: &StoredClaim,
    now: Timestamp,
) -> Result<(), HomeError> {
    let path = home.root().join("broken.json");
    let mut broken: Broken = home::read_json(&path)?.unwrap_or_default();
    match broken.add(&stored.claim.uid, &stored.claim.spec.offer, now) {
        true => home::write_json(&path, &broken),
        false => Ok(()),
    }
}

/// Nobody was met on a claim's machine: its offer is left alone for a while.
pub fn leave_unmet_alone(
    home: &Home,
    stored: &StoredClaim,
    now: Timestamp,
) -> Result<(), HomeError> {
    let path = home.root().join("unmet.json");
    let mut unmet: Unmet = home::read_json(&path)?.unwrap_or_default();
    match unmet.add(&stored.claim.uid, &stored.claim.spec.offer, now) {
        true => home::write_json(&path, &unmet),
        false => Ok(()),
    }
}

/// What past runs taught.
pub fn corrections(home: &Home) -> Result<Corrections, HomeError> {
    Ok(home::read_json(&home.root().join("corrections.json"))?.unwrap_or_default())
}

/// Takes one run into account for later estimates.
pub fn learn(home: &Home, lesson: &Lesson) -> Result<(), HomeError> {
    let _lock = home::lock(&home.root().join("corrections.lock"))?;
    let mut corrections = corrections(home)?;
    lesson.teach(&mut corrections);
    home::write_json(&home.root().join("corrections.json"), &corrections)
}

/// The world as it is now, with one workload that is asked for and all others that are
/// worked for. What else has claims keeps them: they are reservations.
pub fn world(
    home: &Home,
    sellers: &Providers,
    offers: Vec<Offer>,
    asked: Workload,
    now: Timestamp,
) -> Result<World, HomeError> {
    let mut workloads = vec![asked];
    let mut watched = Vec::new();
    for folder in Folder::all(home)? {
        let Some(admission) = folder.admission()? else {
            continue;
        };
        if folder.is_operated() || admission.uid == workloads[0].id.uid {
            watched.extend(folder.watched()?);
        }
        if !folder.is_operated() {
            continue;
        }
        let status = folder.status()?;
        let same = |known: &Workload| known.id == id_of(&folder, &admission.uid);
        if status.phase.is_over() || workloads.iter().any(same) {
            continue;
        }
        // Admitted specs were translated before; one that no longer can be is left out.
        if let Ok(workload) = admission.workload(&status, folder.intent()?.suspend) {
            workloads.push(workload);
        }
    }
    let broken: Broken = home::read_json(&home.root().join("broken.json"))?.unwrap_or_default();
    let mut left_alone = unavailable(home, now)?;
    left_alone.extend(broken.among(offers.iter(), now));
    let unmet: Unmet = home::read_json(&home.root().join("unmet.json"))?.unwrap_or_default();
    left_alone.extend(unmet.among(offers.iter(), now));
    Ok(World {
        installation: home.installation().to_owned(),
        market: Arc::new(Market::new(offers)),
        providers: provider_states(sellers),
        unavailable: left_alone,
        workloads,
        claims: FileClaims::of(home).all()?.into_iter().map(|stored| stored.claim).collect(),
        budgets: Vec::new(),
        corrections: corrections(home)?,
        support: SupportTable::default(),
        assumptions: Assumptions::default(),
        watched,
        tables: sellers.spot.tables(),
    })
}

/// Who asks.
pub fn id_of(folder: &Folder, uid: &str) -> WorkloadId {
    WorkloadId {
        kind: folder.kind,
        namespace: folder.namespace.clone(),
        name: folder.name.clone(),
        uid: uid.to_owned(),
    }
}
