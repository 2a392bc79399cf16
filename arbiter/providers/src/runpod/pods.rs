//! The account's pods, and what is remembered of them: when they stopped, what they cost, which are so young
//! that RunPod may not know them yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::claim::Refusal;
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::Offer;
use petaflop_arbiter::reason::Reason;

use super::answer::{self, Answer};
use super::pod::{self, Next, Pod};
use super::quota::Purpose;
use super::{End, Ends, RunPod, dollars, request, stopped};
use crate::error::{LaunchError, ProviderError, Waste};
use crate::provider::{InstanceId, Trouble};

/// What RunPod's own rounding may add to a price: micro-dollars an hour.
const ROUNDING_MICROS: i64 = 1_000;
/// Tries to end a pod that came dearer than it was quoted. Each is harmless.
const TRIES_TO_END: u32 = 3;
/// A pod may be unknown for so long after its create was answered, and a request to end it be nothing;
/// then it is asked again, so often in between.
const UNKNOWN_AT_MOST: Duration = Duration::from_secs(90);
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A pod that runs has an address within this time, or its host is a bad one.
const ADDRESS_WITHIN: SignedDuration = SignedDuration::from_mins(2);
/// Of so many pods is remembered what they cost.
const COSTS_KEPT: usize = 10_000;
/// So many pods are remembered when they were ended, and later ones this long.
const ENDS_KEPT: usize = 10_000;
const REMEMBERED: SignedDuration = SignedDuration::from_hours(1);
/// Pages after which a list is taken for endless.
const MOST_PAGES: u32 = 1_000;

impl RunPod {
    /// When a pod stopped that we did not end: it bills nothing since then, for it has no volume. As
    /// GraphQL says; where it does not, when it was first seen so. `None`: it runs.
    pub(super) async fn stopped(&self, pod: &Pod) -> Option<Timestamp> {
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

    pub(super) fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn young(&self) -> MutexGuard<'_, BTreeMap<String, Timestamp>> {
        self.young.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn costs(&self) -> MutexGuard<'_, BTreeMap<String, UsdPerHour>> {
        self.costs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod costs this much an hour.
    pub(super) fn learn(&self, id: &str, cost: UsdPerHour) {
        let mut costs = self.costs();
        if costs.len() >= COSTS_KEPT {
            costs.pop_first();
        }
        costs.insert(id.to_owned(), cost);
    }

    /// A pod was answered: it is known, and what it costs.
    pub(super) fn saw(&self, pod: &Pod) {
        self.young().remove(&pod.id);
        if let Some(cost) = pod.cost {
            self.learn(&pod.id, cost);
        }
    }

    /// Whether it was made so lately that RunPod may not know it yet, and bills it.
    pub(super) fn is_young(&self, id: &InstanceId) -> bool {
        let now = self.api.now();
        let mut young = self.young();
        let age = |made: &Timestamp| Duration::try_from(now.duration_since(*made));
        young.retain(|_, made| age(made).is_ok_and(|age| age < UNKNOWN_AT_MOST));
        young.contains_key(&id.0)
    }

    pub(super) fn last(&self) -> MutexGuard<'_, Option<(Timestamp, Vec<Offer>)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wrong with a pod that was seen to run without an address for too long. Counted from the
    /// first look that saw it so: no field says since when a pod runs.
    pub(super) fn cut_off(&self, pod: &Pod) -> Option<Trouble> {
        let now = self.api.now();
        let mut since = self.no_address.lock().unwrap_or_else(PoisonError::into_inner);
        if !pod.has_no_address() {
            since.remove(&pod.id);
            return None;
        }
        let since = *since.entry(pod.id.clone()).or_insert(now);
        (now.duration_since(since) >= ADDRESS_WITHIN).then(|| Trouble {
            reason: Reason::LaunchTimedOut,
            message: "RUNNING for 2 minutes and without an address: its host is a bad one"
                .to_owned(),
        })
    }

    /// All pods of the account, and whether these are all.
    pub(super) async fn pods(&self) -> Result<(Vec<Pod>, bool), ProviderError> {
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

    pub(super) async fn pod(&self, id: &InstanceId) -> Result<Option<Pod>, ProviderError> {
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
    pub(super) fn judge(&self, thing: &str, answer: &Answer) -> LaunchError {
        let mut same = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        answer::of_launch(thing, answer, &mut same)
    }

    /// A pod was made. It is kept if it costs no more than was decided on, and is where pods may be.
    pub(super) async fn keep(
        &self,
        made: Made,
        most: UsdPerHour,
    ) -> Result<InstanceId, LaunchError> {
        let id = InstanceId(made.id);
        self.young().insert(id.0.clone(), made.asked);
        let places = &self.config.data_centers;
        let (mut cost, mut since, mut place) = (made.cost, made.since, made.place);
        if (cost.is_none() || (place.is_none() && !places.is_empty()))
            && let Ok(Some(pod)) = self.pod(&id).await
        {
            (cost, since) = (cost.or(pod.cost), since.or(pod.created));
            place = pod.data_center;
        }
        let elsewhere = place.filter(|place| !places.is_empty() && !places.contains(place));
        let dearer =
            |cost: &UsdPerHour| cost.micros() > most.micros().saturating_add(ROUNDING_MICROS);
        // It is given back before anything runs on it.
        let (kind, detail) = match (elsewhere, cost.filter(dearer)) {
            (Some(place), _) => {
                (Refusal::NoCapacity, format!("in {place} instead of {}", places.join(", ")))
            }
            (None, Some(cost)) => {
                (Refusal::PriceChanged, format!("{cost} $ an hour instead of {most}"))
            }
            (None, None) => {
                match cost {
                    Some(cost) => self.learn(&id.0, cost),
                    None => tracing::warn!(%id, "RunPod does not say what this pod costs"),
                }
                return Ok(id);
            }
        };
        let cost = cost.unwrap_or(most);
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
                    return Err(LaunchError::GivenBack { kind, waste, detail });
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
    pub(super) async fn delete(&self, id: &InstanceId) -> Result<(), ProviderError> {
        if !self.ask_for_end(id).await? && self.is_young(id) {
            return Err(self.unreachable("end a pod", format!("{id} is not known yet; again soon")));
        }
        self.was_ended(id);
        Ok(())
    }

    /// Asks for a pod's end. Returns whether RunPod knows it.
    pub(super) async fn ask_for_end(&self, id: &InstanceId) -> Result<bool, ProviderError> {
        let what = "end a pod";
        let answer = self.api.delete(&["pods", id.0.as_str()]).await;
        let answer = answer.map_err(|failure| self.failed(what, failure))?;
        if answer.is_unknown() {
            return Ok(false);
        }
        self.good(what, Ok(answer)).map(|_| true)
    }

    /// Remembers when a pod was ended.
    pub(super) fn was_ended(&self, id: &InstanceId) {
        let now = self.api.now();
        self.young().remove(&id.0);
        self.no_address.lock().unwrap_or_else(PoisonError::into_inner).remove(&id.0);
        let mut ends = self.ends();
        ends.entry(id.0.clone()).or_insert(End { at: now, told: true }).told = true;
        if ends.len() > ENDS_KEPT {
            ends.retain(|_, end| now.duration_since(end.at) < REMEMBERED);
        }
    }
}

/// A pod that a create answered with.
pub(super) struct Made {
    pub(super) id: String,
    /// Dollars an hour for all of it, where it was said.
    pub(super) cost: Option<UsdPerHour>,
    /// When it was made, where that was said.
    pub(super) since: Option<Timestamp>,
    /// Its data centre, where that was said.
    pub(super) place: Option<String>,
    /// When it was asked for.
    pub(super) asked: Timestamp,
}
