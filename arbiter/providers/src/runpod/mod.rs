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
//! | `any` | all that is read, for those who feed it anything; pure |

mod answer;
mod any;
mod api;
mod catalogue;
mod config;
mod dollars;
mod entry;
mod offers;
mod pod;
mod quota;
mod request;
mod spot;
mod stopped;
mod thing;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::bill::{self, Billing, Line, Price};
use petaflop_arbiter::claim::{FrozenRequest, Identity, LaunchSafety, Refusal};
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::Offer;

use crate::error::{LaunchError, ProviderError, Waste, refused};
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
use offers::{Seen, Terms};
use pod::{Next, Pod};
use quota::Purpose;
use request::{Call, Frozen};
use thing::Cloud;

/// Between two looks at the catalogue: whoever asks sooner hears the last one again.
const PASS: SignedDuration = SignedDuration::from_secs(60);
/// What RunPod's own rounding may add to a price: micro-dollars an hour.
const ROUNDING_MICROS: i64 = 1_000;
/// Tries to end a pod that came dearer than it was quoted. Each is harmless.
const TRIES_TO_END: u32 = 3;
/// A pod may be unknown for so long after its create was answered, and a request to end it be nothing;
/// then it is asked again, so often in between.
const UNKNOWN_AT_MOST: Duration = Duration::from_secs(90);
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// What a look at a pod may take before the pod is ended without it.
const GLANCE: Duration = Duration::from_secs(5);
/// Of so many pods is remembered what they cost.
const COSTS_KEPT: usize = 10_000;
/// So many pods are remembered when they were ended, and later ones this long.
const ENDS_KEPT: usize = 10_000;
const REMEMBERED: SignedDuration = SignedDuration::from_hours(1);
/// Pages after which a list is taken for endless.
const MOST_PAGES: u32 = 1_000;

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

    /// One look at the whole catalogue: a request for each cloud and size.
    async fn look(&self) -> Result<Seen, ProviderError> {
        let mut seen = Seen::default();
        let kind = [("include", "AVAILABILITY"), ("product", "POD")];
        let price = Purpose::Price;
        for cloud in Cloud::ALL {
            // Community machines are in no data centre that could be named.
            if cloud == Cloud::Community && !self.config.data_centers.is_empty() {
                continue;
            }
            for count in &self.config.counts {
                let what = format!("prices of {count} accelerators ({})", cloud.as_str());
                let size = count.to_string();
                let query = [kind[0], kind[1], ("count", size.as_str()), ("cloud", cloud.as_str())];
                let answer = self.api.get(&["catalog", "gpus"], &query, price).await;
                let answer = self.good(&what, answer)?;
                let gpus = catalogue::gpus(&answer.body, cloud, *count);
                let gpus = gpus.map_err(|detail| self.unreachable(&what, detail))?;
                seen.gpus.push((cloud, *count, gpus));
            }
        }
        for count in &self.config.vcpu_counts {
            let what = format!("prices of {count} processors");
            let size = count.to_string();
            let query = [kind[0], kind[1], ("vcpuCount", size.as_str())];
            let answer = self.api.get(&["catalog", "cpus"], &query, price).await;
            let answer = self.good(&what, answer)?;
            let cpus = catalogue::cpus(&answer.body);
            seen.cpus.push((*count, cpus.map_err(|detail| self.unreachable(&what, detail))?));
        }
        if self.config.spot && !self.no_spot.load(Ordering::Relaxed) {
            seen.spot = self.spot_prices().await;
        }
        Ok(seen)
    }

    /// Spot prices; none where they cannot be had, which takes nothing from the other offers.
    async fn spot_prices(&self) -> spot::Prices {
        let what = "spot prices";
        let counts = &self.config.counts;
        let question = serde_json::json!({ "query": spot::question(counts) });
        let answer = self.api.ask(&question, Purpose::Price).await;
        let prices = self.good(what, answer).and_then(|answer| {
            spot::prices(&answer.body, counts).map_err(|detail| self.unreachable(what, detail))
        });
        prices.unwrap_or_else(|error| {
            let over =
                matches!(error, ProviderError::Retired { .. } | ProviderError::Unauthorized { .. });
            if over {
                self.no_spot.store(true, Ordering::Relaxed);
            }
            tracing::warn!(%error, for_good = over, "no spot offers");
            spot::Prices::new()
        })
    }

    /// When a pod stopped that we did not end: it bills nothing since then, for it has no volume. As
    /// GraphQL says; where it does not, when it was first seen so. `None`: it runs.
    async fn stopped(&self, pod: &Pod) -> Option<Timestamp> {
        if !pod.has_stopped() {
            let mut ends = self.ends();
            if ends.get(&pod.id).is_some_and(|end| !end.told) {
                ends.remove(&pod.id);
            }
            return None;
        }
        let known = self.ends().get(&pod.id).map(|end| end.at);
        if known.is_some() {
            return known;
        }
        let now = self.api.now();
        let asked = self.api.ask(&stopped::question(&pod.id), Purpose::Machine).await;
        let said = asked.ok().and_then(|answer| stopped::at(&answer.body));
        let at = said
            .filter(|at| *at <= now && pod.created.is_none_or(|created| created <= *at))
            .unwrap_or(now);
        self.ends().insert(pod.id.clone(), End { at, told: false });
        Some(at)
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn young(&self) -> MutexGuard<'_, BTreeMap<String, Timestamp>> {
        self.young.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn costs(&self) -> MutexGuard<'_, BTreeMap<String, UsdPerHour>> {
        self.costs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod costs this much an hour.
    fn learn(&self, id: &str, cost: UsdPerHour) {
        let mut costs = self.costs();
        if costs.len() >= COSTS_KEPT {
            costs.pop_first();
        }
        costs.insert(id.to_owned(), cost);
    }

    /// A pod was answered: it is known, and what it costs.
    fn saw(&self, pod: &Pod) {
        self.young().remove(&pod.id);
        if let Some(cost) = pod.cost {
            self.learn(&pod.id, cost);
        }
    }

    /// Whether it was made so lately that RunPod may not know it yet, and bills it.
    fn is_young(&self, id: &InstanceId) -> bool {
        let now = self.api.now();
        let mut young = self.young();
        let age = |made: &Timestamp| Duration::try_from(now.duration_since(*made));
        young.retain(|_, made| age(made).is_ok_and(|age| age < UNKNOWN_AT_MOST));
        young.contains_key(&id.0)
    }

    fn last(&self) -> MutexGuard<'_, Option<(Timestamp, Vec<Offer>)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All pods of the account, and whether these are all.
    async fn pods(&self) -> Result<(Vec<Pod>, bool), ProviderError> {
        let what = "list pods";
        let (mut seen, mut cursors, mut complete) = (Vec::new(), BTreeSet::new(), true);
        let mut cursor: Option<String> = None;
        for _ in 0..MOST_PAGES {
            let query: Vec<(&str, &str)> =
                cursor.iter().map(|cursor| ("cursor", cursor.as_str())).collect();
            let answer = self.api.get(&["pods"], &query, Purpose::Machine).await;
            let page = self.good(what, answer).and_then(|answer| {
                pod::page(&answer.body).map_err(|detail| self.unreachable(what, detail))
            });
            let page = match page {
                Ok(page) => page,
                // What was seen is true; what was not seen may be there.
                Err(_) if cursor.is_some() => return Ok((seen, false)),
                Err(error) => return Err(error),
            };
            page.pods.iter().for_each(|pod| self.saw(pod));
            seen.extend(page.pods);
            complete &= page.readable;
            match page.next {
                Next::Nothing => return Ok((seen, complete)),
                // A cursor that repeats leads round and round.
                Next::Page(next) if cursors.insert(next.clone()) => cursor = Some(next),
                Next::Page(_) | Next::Lost => return Ok((seen, false)),
            }
        }
        Ok((seen, false))
    }

    async fn pod(&self, id: &InstanceId) -> Result<Option<Pod>, ProviderError> {
        let what = "get a pod";
        let path = ["pods", id.0.as_str()];
        let answer = self.api.get(&path, &[], Purpose::Machine).await;
        let answer = answer.map_err(|failure| self.failed(what, failure))?;
        if answer.is_unknown() {
            return Ok(None);
        }
        let answer = self.good(what, Ok(answer))?;
        match pod::one(&answer.body) {
            Some(pod) => {
                self.saw(&pod);
                Ok(Some(pod))
            }
            None => Err(self.unreachable(what, "the answer is no pod")),
        }
    }

    /// What an answer to a create means that is no pod.
    fn judge(&self, thing: &str, answer: &Answer) -> LaunchError {
        let mut same = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        answer::of_launch(thing, answer, &mut same)
    }

    /// A pod was made. It is kept if it costs no more than was decided on.
    async fn keep(&self, made: Made, most: UsdPerHour) -> Result<InstanceId, LaunchError> {
        let id = InstanceId(made.id);
        self.young().insert(id.0.clone(), made.asked);
        let (mut cost, mut since) = (made.cost, made.since);
        if cost.is_none()
            && let Ok(Some(pod)) = self.pod(&id).await
        {
            (cost, since) = (pod.cost, since.or(pod.created));
        }
        let Some(cost) = cost else {
            tracing::warn!(%id, "RunPod does not say what this pod costs");
            return Ok(id);
        };
        if cost.micros() <= most.micros().saturating_add(ROUNDING_MICROS) {
            self.learn(&id.0, cost);
            return Ok(id);
        }
        // It is given back before anything runs on it.
        let detail = format!("{cost} $ an hour instead of {most}");
        let (mut last, mut refused) = (None, 0);
        let mut left = UNKNOWN_AT_MOST.as_secs() / ASK_AGAIN.as_secs();
        while refused < TRIES_TO_END && left > 0 {
            match self.ask_for_end(&id).await {
                // It was just made: it is not gone, it is not known yet, and bills.
                Ok(false) => {
                    left -= 1;
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                Ok(true) => {
                    self.was_ended(&id);
                    let to = self.api.now();
                    let from = since.unwrap_or(made.asked);
                    // Its disk is billed beside what RunPod says that it costs.
                    let price = cost.saturating_add(dollars::disk(self.config.disk_gb));
                    let price = request::adjusted(price, self.config.price_adjustment_percent);
                    let waste = Box::new(Waste { instance: id, price, from, to });
                    return Err(LaunchError::GivenBack { waste, detail });
                }
                Err(error) => {
                    refused += 1;
                    last = Some(error);
                }
            }
        }
        let error = last.map_or_else(|| "it is not known".to_owned(), |error| error.to_string());
        Err(LaunchError::Ambiguous {
            detail: format!("{detail}; {id} could not be ended: {error}"),
        })
    }

    /// Ends a pod, whatever it was; one that is gone already is no error, and one that is not known
    /// yet is: it is there and bills.
    async fn delete(&self, id: &InstanceId) -> Result<(), ProviderError> {
        if !self.ask_for_end(id).await? && self.is_young(id) {
            return Err(self.unreachable("end a pod", format!("{id} is not known yet; again soon")));
        }
        self.was_ended(id);
        Ok(())
    }

    /// Asks for a pod's end. Returns whether RunPod knows it.
    async fn ask_for_end(&self, id: &InstanceId) -> Result<bool, ProviderError> {
        let what = "end a pod";
        let answer = self.api.delete(&["pods", id.0.as_str()]).await;
        let answer = answer.map_err(|failure| self.failed(what, failure))?;
        if answer.is_unknown() {
            return Ok(false);
        }
        self.good(what, Ok(answer)).map(|_| true)
    }

    /// Remembers when a pod was ended.
    fn was_ended(&self, id: &InstanceId) {
        let now = self.api.now();
        self.young().remove(&id.0);
        let mut ends = self.ends();
        ends.entry(id.0.clone()).or_insert(End { at: now, told: true }).told = true;
        if ends.len() > ENDS_KEPT {
            ends.retain(|_, end| now.duration_since(end.at) < REMEMBERED);
        }
    }
}

/// A pod that a create answered with.
struct Made {
    id: String,
    /// Dollars an hour for all of it, where it was said.
    cost: Option<UsdPerHour>,
    /// When it was made, where that was said.
    since: Option<Timestamp>,
    /// When it was asked for.
    asked: Timestamp,
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
                let pod =
                    pod.map(|pod| Made { id: pod.id, cost: pod.cost, since: pod.created, asked });
                // Success in which no pod can be read: there is one.
                pod.ok_or_else(|| self.judge(&thing, &answer))
            }
            (Interface::GraphQl, 200..=299) => match spot::rented(&answer.body) {
                spot::Rented::Made { id, cost } => Ok(Made { id, cost, since: None, asked }),
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
            let ended = self.stopped(&pod).await;
            return Ok(Some(Instance { ended, ..pod.instance(self.config.disk_gb) }));
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
