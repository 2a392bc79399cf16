//! AWS as a provider: an instance is an EC2 instance, an offer a type in an availability zone, spot
//! or on demand.
//!
//! docs/providers/aws.md says what of its behaviour this is built on, and which test shows each.
//!
//! | module | holds |
//! |---|---|
//! | `config` | how an account is used |
//! | `id` | names of what is ours there; pure |
//! | `hardware` | what types are made of; pure |
//! | `prices` | on-demand prices; pure |
//! | `offers` | what was seen in, offers out; pure |
//! | `class` | what shares a quota; pure |
//! | `refused` | what is left alone for a while; pure |
//! | `request` | the purchase of an instance; pure |
//! | `user_data` | the lines of shell with which it starts; pure |
//! | `tags` | what it carries; pure |
//! | `instance` | what is ours, as instances; pure |
//! | `answer` | what errors mean; pure |
//! | `pace` | how often it may be asked; pure |
//! | `dollars` | prices as AWS writes them; pure |
//! | `api` | the one place from which it is called |
//! | `look` | looking at a region and its prices |
//! | `lives` | since when instances run; pure |
//! | `ours` | looking for what is ours |

mod answer;
mod api;
mod class;
mod config;
mod dollars;
mod hardware;
mod id;
mod instance;
mod lives;
mod look;
mod offers;
mod ours;
mod pace;
mod prices;
mod refused;
mod request;
mod tags;
mod user_data;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_ec2::types::Filter;
use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::bill::{self, Begins, Billing, Line, Price};
use petaflop_arbiter::claim::{FrozenRequest, Identity, LaunchSafety, Refusal};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::{Capacity, Offer};

use crate::error::{LaunchError, ProviderError, refused};
use crate::machine::EnrolmentToken;
use crate::price;
use crate::provider::{
    Capabilities, Instance, InstanceId, InstanceState, Listing, Order, Provider, Used, Work,
};
use answer::{Failure, Meaning};
use api::Api;
pub use config::{Access, Address, AwsConfig, AwsKeys, AwsRegion, HostImages};
use id::{Id, Kind};
use lives::Lives;
use offers::Seen;
use pace::Purpose;
use prices::Prices;
use refused::{Refused, What};
use request::{Frozen, Place};

/// A new instance may be unknown to AWS itself for this long.
const SETTLE_SECONDS: u32 = 120;

/// What its API can promise.
pub const CAPABILITIES: Capabilities = Capabilities {
    launch_safety: LaunchSafety { idempotent: true, settle_seconds: SETTLE_SECONDS },
    // Large images are pulled in this time.
    launch_timeout: Duration::from_secs(20 * 60),
    // Large machines take minutes.
    termination_timeout: Duration::from_secs(15 * 60),
    // Of Linux. What comes up costs nothing, nor does what AWS takes back in its first hour.
    billing: Billing {
        granularity: Duration::from_secs(1),
        minimum: Duration::from_secs(60),
        begins: Begins::Running,
        free_if_taken_within: Duration::from_secs(3600),
    },
    sells: true,
    own_address: true,
    rented: true,
};

/// An account at AWS.
pub struct Aws {
    config: AwsConfig,
    api: Api,
    memory: Mutex<Memory>,
}

/// What is known from before. None of it is needed to be right, only to ask less.
#[derive(Default)]
struct Memory {
    /// By region, but for its spot prices.
    still: BTreeMap<String, (Timestamp, Seen)>,
    list: Option<(Timestamp, Prices)>,
    last: Option<(Timestamp, Vec<Offer>)>,
    refused: Refused,
    /// What was launched lately, and may not be visible yet.
    fresh: BTreeMap<InstanceId, Timestamp>,
    lives: Lives,
}

impl fmt::Debug for Aws {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aws").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Aws {
    /// Calls nobody yet.
    ///
    /// # Errors
    /// When the settings make no sense.
    pub fn new(config: AwsConfig) -> Result<Self, ProviderError> {
        config.check().map_err(|detail| ProviderError::Misconfigured {
            provider: config.name.clone(),
            detail,
        })?;
        Ok(Self { api: Api::new(&config), config, memory: Mutex::default() })
    }

    /// Quotes carry the time of this clock instead of the system's, and the pace runs by it.
    #[must_use]
    pub fn by_clock(self, now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self { api: self.api.by_clock(Arc::new(now)), ..self }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, what: &str, failure: Failure) -> ProviderError {
        answer::of_call(&self.config.name, what, failure)
    }

    /// The image of the host, by its public parameter.
    async fn image(&self, offer: &Offer) -> Result<String, LaunchError> {
        let name = self.config.images.parameter(offer.arch, offer.accelerators.is_some());
        let call = self.api.ssm(&offer.region).await.get_parameter().name(name);
        let parameter = self.api.call(&offer.region, Purpose::Look, "", call.send()).await;
        let parameter = parameter.map_err(|failure| looked_up(name, failure))?;
        let image =
            parameter.parameter().and_then(|it| it.value()).filter(|it| it.starts_with("ami-"));
        image.map(str::to_owned).ok_or_else(|| {
            refused(Refusal::Invalid, format!("the parameter {name} does not name an image"))
        })
    }

    /// The subnet of a zone with the most free addresses.
    async fn subnet(&self, offer: &Offer) -> Result<String, LaunchError> {
        let seen = self.still(&offer.region).await;
        let seen = seen.map_err(|failure| looked_up("subnets", failure))?;
        let now = self.api.now();
        let memory = self.memory();
        let full = |id: &str| memory.refused.holds(&What::Subnet(id.to_owned()), now);
        let there = seen.subnets.iter().filter(|subnet| subnet.zone == offer.zone);
        let best = there.filter(|subnet| !full(&subnet.id)).max_by_key(|subnet| subnet.free);
        best.map(|subnet| subnet.id.clone()).ok_or_else(|| {
            let zone = &offer.zone;
            let detail =
                format!("no subnet of {zone} has a free address; name others, or larger ones");
            refused(Refusal::NoCapacity, detail)
        })
    }

    /// Remembers a refusal, so that it is not met again at once.
    fn note(&self, frozen: &Frozen, failure: &Failure) {
        let Failure::Said(said) = failure else { return };
        let Frozen { region, zone, instance_type, subnet, .. } = frozen;
        let capacity = frozen.capacity();
        let (what, long) = match said.means() {
            Meaning::NoCapacity => {
                (What::pool(region, zone, instance_type, capacity), refused::POOL)
            }
            Meaning::Unsupported => {
                (What::pool(region, zone, instance_type, capacity), refused::UNSUPPORTED)
            }
            Meaning::Quota => (What::class(region, instance_type, capacity), refused::QUOTA),
            Meaning::NoSpotRole => (What::Spot, refused::QUOTA),
            Meaning::SubnetFull => (What::Subnet(subnet.clone()), refused::SUBNET),
            // What was quoted is history.
            Meaning::PriceRose => {
                self.memory().last = None;
                return;
            }
            _ => return,
        };
        let now = self.api.now();
        self.memory().refused.note(what, now, long);
    }

    /// Whether a thing was made so lately that AWS may not know it yet.
    fn is_fresh(&self, id: &InstanceId) -> Option<Timestamp> {
        let now = self.api.now();
        let settle = SignedDuration::from_secs(i64::from(SETTLE_SECONDS));
        let mut memory = self.memory();
        memory.fresh.retain(|_, at| is_young(*at, now, settle));
        memory.fresh.get(id).copied()
    }

    fn foreign(&self, id: &InstanceId) -> ProviderError {
        let detail = format!("{id} is nothing that is made here: region/i-…, vol-… or sir-…");
        ProviderError::Misconfigured { provider: self.config.name.clone(), detail }
    }
}

/// What a failure means before a purchase, where nothing can have been made.
fn looked_up(what: &str, failure: Failure) -> LaunchError {
    match answer::of_launch(failure) {
        LaunchError::Refused { kind, detail } => refused(kind, format!("{what}: {detail}")),
        LaunchError::Ambiguous { detail } => {
            refused(Refusal::Transient, format!("{what}: {detail}"))
        }
        later => later,
    }
}

fn is_young(at: Timestamp, now: Timestamp, age: SignedDuration) -> bool {
    (SignedDuration::ZERO..age).contains(&now.duration_since(at))
}

fn filter(name: &str, values: impl IntoIterator<Item = String>) -> Filter {
    Filter::builder().name(name).set_values(Some(values.into_iter().collect())).build()
}

/// Whether AWS knows no such thing.
fn is_unknown(failure: &Failure) -> bool {
    matches!(failure, Failure::Said(said) if said.means() == Meaning::Unknown)
}

#[async_trait]
impl Provider for Aws {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    async fn quote(&self) -> Result<Vec<Offer>, ProviderError> {
        let now = self.api.now();
        let every =
            SignedDuration::try_from(self.config.quote_every).unwrap_or(SignedDuration::MAX);
        let allowed = |offers: &[Offer], refused: &Refused| -> Vec<Offer> {
            offers.iter().filter(|offer| !refused.covers(offer, now)).cloned().collect()
        };
        {
            let memory = self.memory();
            if let Some((at, offers)) = &memory.last
                && is_young(*at, now, every)
            {
                return Ok(allowed(offers, &memory.refused));
            }
        }
        let list = self.list_prices().await?;
        let (mut offers, mut failures) = (Vec::new(), Vec::new());
        for region in &self.config.regions {
            match self.look(&region.name).await {
                Ok(seen) => offers.extend(offers::offers(&self.config, &seen, &list, now)),
                Err(failure) => {
                    failures.push(self.failed(&format!("look at {}", region.name), failure))
                }
            }
        }
        // One region that does not answer takes nothing from the others.
        if failures.len() == self.config.regions.len()
            && let Some(first) = failures.first()
        {
            return Err(first.clone());
        }
        failures.iter().for_each(|error| tracing::warn!(%error, "no offers of this region"));
        let mut memory = self.memory();
        let quoted = allowed(&offers, &memory.refused);
        memory.last = Some((now, offers));
        Ok(quoted)
    }

    async fn prepare(&self, order: Order<'_>) -> Result<FrozenRequest, LaunchError> {
        let Order { identity, offer, work } = order;
        let Work::Machine(machine) = work else {
            let detail = "AWS runs images, not commands of this host";
            return Err(refused(Refusal::Invalid, detail));
        };
        let invalid = |detail| refused(Refusal::Invalid, detail);
        request::fits(&self.config, offer, machine).map_err(invalid)?;
        let region = self.config.region(&offer.region).ok_or_else(|| {
            invalid(format!("{} is in no region of {}", offer.id, self.config.name))
        })?;
        let (subnet, image) = (self.subnet(offer).await?, self.image(offer).await?);
        let place = Place { region, subnet: &subnet, image: &image };
        request::freeze(&self.config, identity, offer, machine, &place).map_err(invalid)
    }

    async fn launch(
        &self,
        request: &FrozenRequest,
        token: &EnrolmentToken,
    ) -> Result<InstanceId, LaunchError> {
        let invalid = |detail| refused(Refusal::Invalid, detail);
        let frozen = Frozen::read(request).map_err(invalid)?;
        let input = frozen.input(token).map_err(invalid)?;
        let ec2 = self.api.ec2(&frozen.region).await;
        let bought = input.send_with(&ec2);
        let secret = token.expose();
        let bought = self.api.call(&frozen.region, Purpose::Change, secret, bought).await;
        let bought = bought.map_err(|failure| {
            self.note(&frozen, &failure);
            answer::of_launch(failure)
        })?;
        let made = bought.instances().first().and_then(|one| one.instance_id());
        let Some(made) = made else {
            let detail = "success without an instance".to_owned();
            return Err(LaunchError::Ambiguous { detail });
        };
        let id = id::name(&frozen.region, made);
        let now = self.api.now();
        let mut memory = self.memory();
        memory.fresh.insert(id.clone(), now);
        memory.lives.launched(&id, now);
        Ok(id)
    }

    async fn find(&self, identity: &Identity) -> Result<Listing, ProviderError> {
        self.everywhere("find instances", |region| self.of_claim(region, identity)).await
    }

    async fn list(&self, installation: &str) -> Result<Listing, ProviderError> {
        self.everywhere("list instances", |region| self.of_installation(region, installation)).await
    }

    async fn get(&self, name: &InstanceId) -> Result<Option<Instance>, ProviderError> {
        let what = "get an instance";
        let id = Id::read(name).ok_or_else(|| self.foreign(name))?;
        let (ec2, look, at) = (self.api.ec2(&id.region).await, Purpose::Look, self.at(&id.region));
        let region = id.region.as_str();
        let asked = self.api.now();
        let seen = match id.kind {
            Kind::Instance => {
                let call = ec2.describe_instances().instance_ids(&id.id).send();
                match self.api.call(region, look, "", call).await {
                    Ok(answer) => {
                        let mut all = answer.reservations().iter().flat_map(|one| one.instances());
                        let told = all.next().and_then(|one| {
                            Some((instance::instance(at, one)?, one.spot_instance_request_id()))
                        });
                        match told {
                            Some((one, Some(request))) => {
                                Ok(Some(self.dated(region, one, request).await))
                            }
                            told => Ok(told.map(|(one, _)| one)),
                        }
                    }
                    Err(failure) => Err(failure),
                }
            }
            Kind::Volume => {
                let call = ec2.describe_volumes().volume_ids(&id.id).send();
                let seen = self.api.call(region, look, "", call).await;
                seen.map(|answer| {
                    answer.volumes().first().and_then(|one| instance::volume(at, one))
                })
            }
            Kind::SpotRequest => {
                let call = ec2.describe_spot_instance_requests().spot_instance_request_ids(&id.id);
                let seen = self.api.call(region, look, "", call.send()).await;
                seen.map(|answer| {
                    let one = answer.spot_instance_requests().first();
                    one.and_then(|one| instance::spot_request(at, one))
                })
            }
        };
        let seen = match seen {
            Err(failure) if is_unknown(&failure) => None,
            Err(failure) => return Err(self.failed(what, failure)),
            Ok(seen) => seen,
        };
        // Not yet visible is not gone.
        let seen = seen.or_else(|| self.is_fresh(name).map(|at| coming(name, at)));
        Ok(seen.map(|one| {
            let mut memory = self.memory();
            memory.lives.saw(name, one.started, one.state, asked);
            Instance { running: memory.lives.since(name), ..one }
        }))
    }

    async fn terminate(&self, name: &InstanceId) -> Result<(), ProviderError> {
        let what = "end an instance";
        let id = Id::read(name).ok_or_else(|| self.foreign(name))?;
        let (ec2, change) = (self.api.ec2(&id.region).await, Purpose::Change);
        let region = id.region.as_str();
        let ended = match id.kind {
            // One at a time: an id that is unknown would fail the whole call.
            Kind::Instance => {
                let call = ec2.terminate_instances().instance_ids(&id.id).send();
                self.api.call(region, change, "", call).await.map(drop)
            }
            Kind::Volume => {
                let call = ec2.delete_volume().volume_id(&id.id).send();
                self.api.call(region, change, "", call).await.map(drop)
            }
            Kind::SpotRequest => {
                let call = ec2.cancel_spot_instance_requests().spot_instance_request_ids(&id.id);
                self.api.call(region, change, "", call.send()).await.map(drop)
            }
        };
        match ended {
            Ok(()) => Ok(()),
            Err(failure) if is_unknown(&failure) && self.is_fresh(name).is_none() => Ok(()),
            Err(failure) if is_unknown(&failure) => Err(ProviderError::Unreachable {
                provider: self.config.name.clone(),
                detail: format!("{what}: {name} was just made and is not visible yet"),
            }),
            Err(failure) => Err(self.failed(what, failure)),
        }
    }

    /// The instance, once it runs: spot by the market's price at the beginning of each of its hours.
    /// Beside it, from its launch on, its disk and its public address.
    async fn billed(&self, used: Used<'_>) -> Result<Usd, ProviderError> {
        let known = || self.memory().lives.running(used.instance, used.from);
        let mut running = used.running.map(|since| since.max(used.from)).or_else(known);
        if running.is_none() {
            // It came up since it was last looked at, perhaps.
            self.get(used.instance).await?;
            running = known();
        }
        // What ended as it was seen coming up never ran.
        let running = running.filter(|since| *since < used.until);
        let percent = self.config.price_adjustment_percent;
        let price = price::quoted(used.offer.price, percent);
        let price = dollars::less(price, self.config.extras());
        let spot = used.offer.capacity == Capacity::Spot;
        let billing = CAPABILITIES.billing;
        let beside = Billing::new(billing.granularity, billing.minimum);
        let (machine, market) = match (spot, running) {
            (true, Some(since)) => (Price::Market(price), self.market(&used, since).await?),
            (true, None) => (Price::Market(price), Vec::new()),
            (false, _) => (Price::Hourly(price), Vec::new()),
        };
        let kept = match spot {
            true => billing,
            false => Billing { free_if_taken_within: Duration::ZERO, ..billing },
        };
        let lines = [
            Line { price: machine, billing: kept },
            Line { price: Price::Monthly(self.config.disk_monthly()), billing: beside },
            Line { price: Price::Hourly(self.config.address_hourly()), billing: beside },
        ];
        Ok(price::adjusted(bill::total(&lines, &used.life(running), &market), percent))
    }
}

/// An instance that was just made, before AWS shows it.
fn coming(id: &InstanceId, made: Timestamp) -> Instance {
    Instance {
        id: id.clone(),
        identity: None,
        state: InstanceState::Pending,
        started: Some(made),
        ended: None,
        offer: None,
        hourly: None,
        running: None,
        endpoint: None,
        exit: None,
        trouble: None,
    }
}
