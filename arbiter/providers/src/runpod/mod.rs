//! RunPod as a provider: an instance is a pod, an offer so many accelerators of one type (or
//! processors of one flavour) in one of its two clouds.
//!
//! REST v2 does everything it can do; GraphQL sells spot pods, which REST v2 does not know.
//! docs/providers/runpod.md says what of its behaviour this is built on, and which test shows each.
//!
//! | module | holds |
//! |---|---|
//! | `config` | how an account is used |
//! | `thing` | a kind of pod and its name; pure |
//! | `catalogue` | RunPod's catalogue; pure |
//! | `spot` | prices and answers of GraphQL; pure |
//! | `offers` | catalogue in, offers out; pure |
//! | `request` | the purchase of a pod; pure |
//! | `entry` | how the agent gets into a pod; pure |
//! | `pod` | pods as instances, pages of lists; pure |
//! | `answer` | what answers mean; pure |
//! | `quota` | how often it may be asked; pure |
//! | `stopped` | when a stopped pod stopped; pure |
//! | `dollars` | prices as RunPod writes them; pure |
//! | `api` | the one place from which it is called |
//! | `look` | one look at what there is and what it costs |
//! | `pods` | the account's pods, and what is remembered of them |
//! | `any` | all that is read, for those who feed it anything; pure |

mod answer;
mod any;
mod api;
mod catalogue;
mod config;
mod dollars;
mod entry;
mod look;
mod offers;
mod pod;
mod pods;
mod quota;
mod request;
mod spot;
mod stopped;
mod thing;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::bill::{self, Billing, Line, Price};
use petaflop_arbiter::claim::{FrozenRequest, Identity, LaunchSafety, Refusal};
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::Offer;

use crate::error::{LaunchError, ProviderError, refused};
use crate::machine::EnrolmentToken;
use crate::price;
use crate::provider::{
    Capabilities, Instance, InstanceId, InstanceState, Listing, Order, Provider, Used, Work,
};
use answer::{Answer, SameWords};
#[doc(hidden)]
pub use any::read_any;
use api::{Api, Interface, NoAnswer};
pub use config::{ApiKey, BASE, BASE_VARIABLE, KEY_VARIABLE, RunPodConfig};
pub use entry::AgentDownload;
use offers::Terms;
use pods::Made;
use request::{Call, Frozen};

/// Between two looks at the catalogue: whoever asks sooner hears the last one again.
const PASS: SignedDuration = SignedDuration::from_secs(60);
/// What a look at a pod may take before the pod is ended without it.
const GLANCE: Duration = Duration::from_secs(5);

/// An account at RunPod.
pub struct RunPod {
    config: RunPodConfig,
    api: Api,
    /// GraphQL was switched off, or does not let us in: there are no spot offers.
    no_spot: AtomicBool,
    last: Mutex<Option<(Timestamp, Vec<Offer>)>>,
    refused: Mutex<SameWords>,
    ends: Mutex<Ends>,
    /// Pods that were made here and that no look has shown yet, and when they were.
    young: Mutex<BTreeMap<String, Timestamp>>,
    /// Pods that run and have no address, and since when they were seen so.
    no_address: Mutex<BTreeMap<String, Timestamp>>,
    /// What pods cost an hour, as they were last seen to.
    costs: Mutex<BTreeMap<String, UsdPerHour>>,
}

/// When pods stopped to bill. RunPod forgets a pod with its end, and its last second is money.
type Ends = BTreeMap<String, End>;

/// When a pod stopped to bill.
#[derive(Clone, Copy, Debug)]
struct End {
    at: Timestamp,
    /// We ended it: it is not started again.
    told: bool,
}

/// What its API can promise.
pub const CAPABILITIES: Capabilities = Capabilities {
    // Names are not unique and there is no token. Pods that were made though the call failed have
    // been seen to turn up in lists for up to a minute.
    launch_safety: LaunchSafety { idempotent: false, settle_seconds: 60 },
    // Large images are pulled in this time.
    launch_timeout: Duration::from_secs(20 * 60),
    termination_timeout: Duration::from_secs(2 * 60),
    billing: Billing::new(Duration::from_secs(1), Duration::ZERO),
    sells: true,
    own_address: false,
    rented: true,
};

impl fmt::Debug for RunPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunPod").field("config", &self.config).finish_non_exhaustive()
    }
}

impl RunPod {
    /// Calls nobody yet.
    ///
    /// # Errors
    /// When the settings make no sense.
    pub fn new(config: RunPodConfig) -> Result<Self, ProviderError> {
        let wrong = |detail| ProviderError::Misconfigured { provider: config.name.clone(), detail };
        config.check().map_err(wrong)?;
        let api = Api::new(&config.base, config.key.expose()).map_err(wrong)?;
        Ok(Self {
            config,
            api,
            no_spot: AtomicBool::new(false),
            last: Mutex::default(),
            refused: Mutex::default(),
            ends: Mutex::default(),
            young: Mutex::default(),
            no_address: Mutex::default(),
            costs: Mutex::default(),
        })
    }

    /// Quotes carry the time of this clock instead of the system's, and quotas run by it.
    #[must_use]
    pub fn by_clock(self, now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self { api: self.api.by_clock(Arc::new(now)), ..self }
    }

    fn unreachable(&self, what: &str, detail: impl fmt::Display) -> ProviderError {
        let detail = format!("{what}: {detail}");
        ProviderError::Unreachable { provider: self.config.name.clone(), detail }
    }

    fn failed(&self, what: &str, failure: NoAnswer) -> ProviderError {
        match failure {
            NoAnswer::Wait(wait) => {
                ProviderError::RateLimited { provider: self.config.name.clone(), wait }
            }
            NoAnswer::NotSent(detail) | NoAnswer::Lost(detail) => self.unreachable(what, detail),
        }
    }

    /// The answer, if it is success.
    fn good(&self, what: &str, answer: Result<Answer, NoAnswer>) -> Result<Answer, ProviderError> {
        let answer = answer.map_err(|failure| self.failed(what, failure))?;
        match answer.status {
            200..=299 => Ok(answer),
            _ => Err(answer::of_call(&self.config.name, what, &answer)),
        }
    }
}

#[async_trait]
impl Provider for RunPod {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    async fn quote(&self) -> Result<Vec<Offer>, ProviderError> {
        let now = self.api.now();
        if let Some((at, offers)) = &*self.last()
            && (SignedDuration::ZERO..PASS).contains(&now.duration_since(*at))
        {
            return Ok(offers.clone());
        }
        let seen = self.look().await?;
        let unknown: BTreeSet<&str> = offers::unknown(&seen).collect();
        if !unknown.is_empty() {
            tracing::info!(?unknown, "accelerators that are not in the table, and so never used");
        }
        let RunPodConfig { name, disk_gb, data_centers, .. } = &self.config;
        let terms = Terms { provider: name, disk_gb: *disk_gb, data_centers };
        let offers = offers::offers(&terms, &seen, now);
        *self.last() = Some((now, offers.clone()));
        Ok(offers)
    }

    async fn prepare(&self, order: Order<'_>) -> Result<FrozenRequest, LaunchError> {
        let Order { identity, offer, work } = order;
        let Work::Machine(machine) = work else {
            let detail = "RunPod runs images, not commands of this host";
            return Err(refused(Refusal::Invalid, detail));
        };
        request::freeze(&self.config, identity, offer, machine, self.api.now())
            .map_err(|detail| refused(Refusal::Invalid, detail))
    }

    async fn launch(
        &self,
        request: &FrozenRequest,
        token: &EnrolmentToken,
    ) -> Result<InstanceId, LaunchError> {
        let frozen = Frozen::read(request).map_err(|error| refused(Refusal::Invalid, error))?;
        let (most, thing) = (frozen.most, frozen.thing.clone());
        let interface = match &frozen.call {
            Call::Rest(_) => Interface::Rest,
            Call::Spot(_) => Interface::GraphQl,
        };
        let body = frozen.body(token);
        let asked = self.api.now();
        let answer = self.api.buy(interface, body, token.expose()).await;
        let answer = answer.map_err(|failure| match failure {
            NoAnswer::Wait(wait) => {
                LaunchError::Later { wait, detail: "the quota of calls is used up".to_owned() }
            }
            NoAnswer::NotSent(detail) => refused(Refusal::Transient, detail),
            NoAnswer::Lost(detail) => LaunchError::Ambiguous { detail },
        })?;
        let made = match (interface, answer.status) {
            (Interface::Rest, 200..=299) => {
                let pod = pod::one(&answer.body);
                let pod = pod.map(|pod| Made {
                    id: pod.id,
                    cost: pod.cost,
                    since: pod.created,
                    place: pod.data_center,
                    asked,
                });
                // Success in which no pod can be read: there is one.
                pod.ok_or_else(|| self.judge(&thing, &answer))
            }
            (Interface::GraphQl, 200..=299) => match spot::rented(&answer.body) {
                spot::Rented::Made { id, cost } => {
                    Ok(Made { id, cost, since: None, place: None, asked })
                }
                spot::Rented::Invalid(words) => Err(refused(Refusal::Invalid, words)),
                spot::Rented::Refused(words) => {
                    // The same words as REST's 400, and the same doubts.
                    let body = serde_json::json!({ "detail": words }).to_string().into_bytes();
                    let answer = Answer { status: 400, wait: Duration::ZERO, body };
                    Err(self.judge(&thing, &answer))
                }
                spot::Rented::Unclear => {
                    Err(LaunchError::Ambiguous { detail: "neither a pod nor an error".to_owned() })
                }
            },
            _ => Err(self.judge(&thing, &answer)),
        };
        let made = made?;
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).made();
        self.keep(made, most).await
    }

    async fn find(&self, identity: &Identity) -> Result<Listing, ProviderError> {
        let (pods, complete) = self.pods().await?;
        let ours = pods.into_iter().filter_map(|pod| {
            let identity = pod.of_claim(identity)?;
            Some(Instance { identity: Some(identity), ..pod.instance(self.config.disk_gb) })
        });
        Ok(Listing { instances: ours.collect(), complete })
    }

    async fn list(&self, installation: &str) -> Result<Listing, ProviderError> {
        let (pods, complete) = self.pods().await?;
        let ours = pods.into_iter().filter(|pod| pod.of_installation(installation));
        let instances = ours.map(|pod| pod.instance(self.config.disk_gb)).collect();
        Ok(Listing { instances, complete })
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, ProviderError> {
        if let Some(pod) = self.pod(id).await? {
            let (ended, cut_off) = (self.stopped(&pod).await, self.cut_off(&pod));
            let seen = pod.instance(self.config.disk_gb);
            return Ok(Some(Instance { ended, trouble: seen.trouble.or(cut_off), ..seen }));
        }
        let ended = self.ends().get(&id.0).map(|end| end.at);
        Ok(ended.map(|at| Instance {
            id: id.clone(),
            identity: None,
            state: InstanceState::Terminated,
            started: None,
            ended: Some(at),
            offer: None,
            hourly: None,
            running: None,
            endpoint: None,
            exit: None,
            trouble: None,
        }))
    }

    async fn terminate(&self, id: &InstanceId) -> Result<(), ProviderError> {
        // One that stopped before bills since then no longer, and once it is deleted nobody says so.
        // A look that hangs does not hold the end up.
        if !self.ends().contains_key(&id.0)
            && let Ok(Ok(Some(pod))) = tokio::time::timeout(GLANCE, self.pod(id)).await
        {
            self.stopped(&pod).await;
        }
        self.delete(id).await
    }

    /// The pod, by the second, at what it was seen to cost; and beside it its disk, while it runs.
    async fn billed(&self, used: Used<'_>) -> Result<Usd, ProviderError> {
        let disk_gb = self.config.disk_gb;
        let percent = self.config.price_adjustment_percent;
        let pod = price::quoted(used.offer.price, percent);
        let decided = pod.saturating_sub(dollars::disk(disk_gb));
        let pod = self.costs().get(&used.instance.0).copied().unwrap_or(decided);
        let line = |price| Line { price, billing: CAPABILITIES.billing };
        let lines =
            [line(Price::Hourly(pod)), line(Price::Monthly(dollars::disk_monthly(disk_gb)))];
        let bill = bill::total(&lines, &used.life(Some(used.from)), &[]);
        Ok(price::adjusted(bill, percent))
    }
}
