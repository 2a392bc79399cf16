//! Events: what people are told when something becomes different. They follow from the difference
//! between the status that was and the one that is written, and go out after that write: so each
//! is told once, and a restart repeats none. A lost one is lost; it never fails a pass.
//!
//! What happens is a closed list, [`Happened`]; what goes wrong is told with the [`Reason`] that
//! stands in the condition.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event as Published, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use petaflop_arbiter::reason::Reason;
use petaflop_crds::compute_claim::{ComputeClaimPhase, ComputeClaimStatus};
use petaflop_crds::compute_provider::ComputeProviderStatus;
use petaflop_crds::shared::CostStatus;
use petaflop_crds::{InferenceServiceStatus, SpendBudgetStatus, TrainingJobStatus};
use tokio::sync::mpsc;

use crate::cluster::status::{is_true, shortened};

/// Events that wait to be sent; more are dropped, and counted.
const WAITING: usize = 1024;

/// What happens without anything being wrong, and two things that need an eye.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// A place was chosen.
    OfferSelected,
    /// A machine is asked for.
    InstanceLaunching,
    /// Its agent has enrolled.
    InstanceReady,
    /// What was done is safe, and is gone on with from there.
    CheckpointSaved,
    /// Stopped on request.
    Suspended,
    /// No longer stopped.
    Resumed,
    /// Done.
    Completed,
    /// No replica is wanted now.
    ScaledToZero,
    /// The provider says that the machine is gone, and its ledger is closed.
    InstanceTerminated,
    /// A machine is ended that no claim knew, that its claim has beside its own, or whose owner is gone.
    OrphanTerminated,
    /// A machine was given up by hand: nobody knows whether it is gone.
    InstanceAbandoned,
}

impl Happened {
    /// As the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OfferSelected => "OfferSelected",
            Self::InstanceLaunching => "InstanceLaunching",
            Self::InstanceReady => "InstanceReady",
            Self::CheckpointSaved => "CheckpointSaved",
            Self::Suspended => "Suspended",
            Self::Resumed => "Resumed",
            Self::Completed => "Completed",
            Self::ScaledToZero => "ScaledToZero",
            Self::InstanceTerminated => "InstanceTerminated",
            Self::OrphanTerminated => "OrphanTerminated",
            Self::InstanceAbandoned => "InstanceAbandoned",
        }
    }

    const fn needs_an_eye(self) -> bool {
        matches!(self, Self::OrphanTerminated | Self::InstanceAbandoned)
    }
}

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    reason: &'static str,
    warning: bool,
    note: String,
}

impl Event {
    /// Something happened.
    pub fn happened(what: Happened, note: impl Into<String>) -> Self {
        Self { reason: what.as_str(), warning: what.needs_an_eye(), note: note.into() }
    }

    /// Nothing is wrong; this is why.
    pub fn because(reason: Reason, note: impl Into<String>) -> Self {
        Self { reason: reason.as_str(), warning: false, note: note.into() }
    }

    /// Something is wrong, or stands in the way.
    pub fn warning(reason: Reason, note: impl Into<String>) -> Self {
        Self { reason: reason.as_str(), warning: true, note: note.into() }
    }

    /// A warning in the words of a condition; `None` where its reason is none of ours.
    fn said(condition: &Condition) -> Option<Self> {
        let reason = Reason::ALL.iter().find(|reason| reason.as_str() == condition.reason)?;
        Some(Self::warning(*reason, condition.message.clone()))
    }
}

/// Where events go. Clones are the same.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<(ObjectReference, Event)>,
    lost: Arc<AtomicU64>,
}

impl Events {
    /// And the future that sends them, one after another.
    pub fn new(client: Client, replica: &str) -> (Self, impl Future<Output = ()> + use<>) {
        let (queue, waiting) = mpsc::channel(WAITING);
        let events = Self { queue, lost: Arc::default() };
        let reporter = Reporter {
            controller: petaflop_crds::MANAGED_BY.to_owned(),
            instance: Some(replica.chars().take(128).collect()),
        };
        let sending = send_all(Recorder::new(client, reporter), waiting, events.lost.clone());
        (events, sending)
    }

    /// Nobody is told.
    pub fn silent() -> Self {
        Self { queue: mpsc::channel(1).0, lost: Arc::default() }
    }

    /// Tells of an object. Never waits.
    pub fn tell<K>(&self, about: &K, events: impl IntoIterator<Item = Event>)
    where
        K: Resource<DynamicType = ()>,
    {
        for event in events {
            if self.queue.try_send((about.object_ref(&()), event)).is_err() {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Events that could not be sent since the start.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

async fn send_all(
    recorder: Recorder,
    mut waiting: mpsc::Receiver<(ObjectReference, Event)>,
    lost: Arc<AtomicU64>,
) {
    while let Some((about, Event { reason, warning, note })) = waiting.recv().await {
        let event = Published {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            // A KiB, as the API wants it.
            note: (!note.is_empty()).then(|| shortened(&note)),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &about).await {
            lost.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%error, reason, object = ?about.name, "an event is lost");
        }
    }
}

/// What there is to tell of a job whose status was `old` and is now `new`.
pub fn of_job(old: Option<&TrainingJobStatus>, new: &TrainingJobStatus) -> Vec<Event> {
    let none = TrainingJobStatus::default();
    let old = old.unwrap_or(&none);
    let TrainingJobStatus {
        observed_generation: _,
        conditions,
        phase: _,
        placement,
        cost,
        progress,
        admitted_time: _,
        resolved_recipe: _,
        key: _,
        artifact,
        cached,
        restarts: _,
        failures,
        interruptions,
        moves: _,
        start_time: _,
        completion_time: _,
    } = new;
    let change = Change { old: &old.conditions, new: conditions };
    let mut events = Vec::new();
    let claim = |of: &TrainingJobStatus| of.placement.as_ref().and_then(|p| p.claim.clone());
    if let (Some(placement), true) = (placement, claim(new) != claim(old)) {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let price = placement.hourly_price.as_ref().map_or("", |price| price.0.as_str());
        let note = format!(
            "{} at {}, {price} $/h: claim {}",
            text(&placement.instance_type),
            text(&placement.provider),
            text(&placement.claim)
        );
        events.push(Event::happened(Happened::OfferSelected, note));
    }
    if change.began("Running").is_some() {
        events.push(Event::happened(Happened::InstanceReady, "its command runs"));
    }
    let lost = (*failures, *interruptions) != (old.failures, old.interruptions);
    let saved = progress.as_ref().and_then(|progress| {
        let step = progress.checkpoint_step.filter(|step| *step > 0)?;
        Some(format!("step {step} of {}", progress.steps))
    });
    if let (Some(saved), true) = (saved, lost || change.began("Suspended").is_some()) {
        events.push(Event::happened(Happened::CheckpointSaved, saved));
    }
    let unfit = change.is("Interrupted").filter(|condition| {
        let before = change.before("Interrupted").map(|before| &before.message);
        condition.reason == Reason::AcceleratorProbeFailed.as_str()
            && before != Some(&condition.message)
    });
    if let Some(condition) = change.is("Interrupted").filter(|_| lost).or(unfit) {
        events.extend(Event::said(condition));
    }
    if let Some(condition) = change.began("Suspended") {
        events.push(match condition.reason == Reason::BudgetExceeded.as_str() {
            true => Event::warning(Reason::BudgetExceeded, condition.message.clone()),
            false => Event::happened(Happened::Suspended, "its machine is gone"),
        });
    }
    if change.ended("Suspended") {
        events.push(Event::happened(Happened::Resumed, ""));
    }
    if change.began("Complete").is_some() {
        events.push(Event::happened(Happened::Completed, result(artifact, *cached, cost)));
    }
    if let Some(condition) = change.began("Failed") {
        events.extend(Event::said(condition));
    } else if let Some(condition) = change.began("Stalled") {
        events.extend(Event::said(condition));
    } else if let Some(condition) = change.waits("OfferSelected") {
        events.extend(Event::said(condition));
    }
    if let (Some(condition), None) = (at_risk(conditions), at_risk(&old.conditions)) {
        events.extend(Event::said(condition));
    }
    events
}

/// What there is to tell of a service whose status was `old` and is now `new`.
pub fn of_service(
    old: Option<&InferenceServiceStatus>,
    new: &InferenceServiceStatus,
) -> Vec<Event> {
    let none = InferenceServiceStatus::default();
    let old = old.unwrap_or(&none);
    let change = Change { old: &old.conditions, new: &new.conditions };
    let mut events = Vec::new();
    let ready = change.began("Ready");
    if let Some(condition) = ready.filter(|c| c.reason == Reason::ScaledToZero.as_str()) {
        events.push(Event::happened(Happened::ScaledToZero, condition.message.clone()));
    }
    if let Some(condition) = change.began("Suspended") {
        events.push(match condition.reason == Reason::BudgetExceeded.as_str() {
            true => Event::warning(Reason::BudgetExceeded, condition.message.clone()),
            false => Event::happened(Happened::Suspended, "its machines are gone"),
        });
    }
    if change.ended("Suspended") {
        events.push(Event::happened(Happened::Resumed, ""));
    }
    if new.interruptions > old.interruptions {
        events.push(Event::warning(Reason::SpotInterrupted, "a replica's machine was lost"));
    }
    events.extend(change.began("Stalled").and_then(Event::said));
    events
}

/// What says that the deadline may be missed.
fn at_risk(conditions: &[Condition]) -> Option<&Condition> {
    conditions.iter().find(|c| c.status == "True" && c.reason == Reason::DeadlineAtRisk.as_str())
}

fn result(artifact: &Option<String>, cached: Option<bool>, cost: &Option<CostStatus>) -> String {
    let artifact = artifact.as_deref().unwrap_or("none");
    let total = cost.as_ref().and_then(|cost| cost.total.as_ref());
    let total = total.map_or_else(String::new, |total| format!(", {} $ by now", total.0));
    let from = if cached == Some(true) { ", from the cache" } else { "" };
    format!("artifact {artifact}{from}{total}")
}

/// What there is to tell of a claim. That its machine is gone is told when it is let go.
pub fn of_claim(
    offer: &str,
    old: Option<&ComputeClaimStatus>,
    new: &ComputeClaimStatus,
) -> Vec<Event> {
    let none = ComputeClaimStatus::default();
    let old = old.unwrap_or(&none);
    let ComputeClaimStatus {
        observed_generation: _,
        conditions,
        phase,
        attempt,
        request: _,
        attempted_at: _,
        ambiguous_since: _,
        provider_id,
        launched_at: _,
        billed_from: _,
        running_from: _,
        billed_to: _,
        reason,
        cost: _,
        endpoint: _,
        agent: _,
    } = new;
    let change = Change { old: &old.conditions, new: conditions };
    let mut events = Vec::new();
    let moved = *phase != old.phase || *attempt != old.attempt;
    let machine = provider_id.as_deref().unwrap_or("no machine");
    match phase {
        Some(ComputeClaimPhase::Attempted) if moved => {
            events.push(Event::happened(Happened::InstanceLaunching, offer));
        }
        Some(ComputeClaimPhase::Ambiguous) if moved => {
            let note = "the answer to the launch was lost; looking for the machine";
            events.push(Event::warning(Reason::LaunchAmbiguous, note));
        }
        Some(ComputeClaimPhase::Ending) if moved => {
            let known = Reason::ALL.iter().find(|known| Some(known.as_str()) == reason.as_deref());
            if let Some(reason) = known.filter(|reason| is_trouble(**reason)) {
                events.push(Event::warning(*reason, format!("{machine} is given up")));
            }
        }
        None
        | Some(
            ComputeClaimPhase::Planned
            | ComputeClaimPhase::Attempted
            | ComputeClaimPhase::Ambiguous
            | ComputeClaimPhase::Launched
            | ComputeClaimPhase::Ending
            | ComputeClaimPhase::Ended,
        ) => {}
    }
    if change.began("Registered").is_some() {
        events.push(Event::happened(Happened::InstanceReady, format!("{machine}: agent enrolled")));
    }
    let retries = |condition: &&Condition| condition.reason == Reason::TerminateRetrying.as_str();
    if let Some(condition) = change.is("Terminating").filter(retries)
        && change.before("Terminating").filter(retries).is_none()
    {
        events.extend(Event::said(condition));
    }
    // A job that moves has told so itself.
    let taken = |condition: &&Condition| condition.reason == Reason::SpotInterrupted.as_str();
    events.extend(change.began("Interrupting").filter(taken).and_then(Event::said));
    let orphan = change.began("Orphaned");
    events.extend(orphan.map(|c| Event::happened(Happened::OrphanTerminated, c.message.clone())));
    events.extend(change.began("Stalled").and_then(Event::said));
    events
}

/// Whether a claim ends because of something that its owner did not want.
fn is_trouble(reason: Reason) -> bool {
    match reason {
        Reason::InsufficientCapacity
        | Reason::QuotaExceeded
        | Reason::LaunchTimedOut
        | Reason::ImagePullFailed
        | Reason::SpotInterrupted
        | Reason::HeartbeatLost
        | Reason::InvalidSpec
        | Reason::AcceleratorProbeFailed
        | Reason::RateLimited
        | Reason::Unauthorized
        | Reason::PriceChanged
        | Reason::ProviderUnavailable
        | Reason::BalanceTooLow
        | Reason::ApiRetired => true,
        // Everything else is an end that somebody asked for.
        _ => false,
    }
}

/// What there is to tell of a budget.
pub fn of_budget(old: Option<&SpendBudgetStatus>, new: &SpendBudgetStatus) -> Vec<Event> {
    let none = SpendBudgetStatus::default();
    let old = old.unwrap_or(&none);
    let SpendBudgetStatus {
        observed_generation: _,
        conditions,
        period_start: _,
        period_end: _,
        spent: _,
        reserved: _,
        committed_hourly_rate: _,
        projected: _,
        as_of: _,
        warned_at_percent,
    } = new;
    let change = Change { old: &old.conditions, new: conditions };
    let mut events = Vec::new();
    if let Some(condition) = change.began("Exhausted") {
        events.push(Event::warning(Reason::BudgetExceeded, condition.message.clone()));
    } else if let (Some(percent), true) =
        (warned_at_percent, *warned_at_percent > old.warned_at_percent)
    {
        let note = format!("{percent} % of its limit are spent or reserved");
        events.push(Event::warning(Reason::BudgetWarning, note));
    }
    events.extend(change.began("Stalled").and_then(Event::said));
    events
}

/// What there is to tell of a provider.
pub fn of_provider(old: Option<&ComputeProviderStatus>, new: &ComputeProviderStatus) -> Vec<Event> {
    let before = old.map_or(&[][..], |old| &old.conditions);
    let change = Change { old: before, new: &new.conditions };
    let trouble = change.began("Stalled").or_else(|| change.began("Reconciling"));
    let stale = change.waits("OffersFresh");
    let stale = stale.filter(|stale| trouble.is_none_or(|trouble| trouble.reason != stale.reason));
    trouble.into_iter().chain(stale).filter_map(Event::said).collect()
}

/// The conditions of an object before and after.
struct Change<'a> {
    old: &'a [Condition],
    new: &'a [Condition],
}

impl<'a> Change<'a> {
    fn before(&self, type_: &str) -> Option<&'a Condition> {
        self.old.iter().find(|known| known.type_ == type_)
    }

    /// It is true now.
    fn is(&self, type_: &str) -> Option<&'a Condition> {
        self.new.iter().find(|known| known.type_ == type_ && known.status == "True")
    }

    /// It has become true, or is so for another reason.
    fn began(&self, type_: &str) -> Option<&'a Condition> {
        let new = self.is(type_)?;
        let old = self.before(type_).filter(|old| old.status == "True");
        let by_reason = matches!(type_, "Stalled" | "Reconciling");
        let same = old.is_some_and(|old| !by_reason || old.reason == new.reason);
        (!same).then_some(new)
    }

    fn ended(&self, type_: &str) -> bool {
        is_true(self.old, type_) && !is_true(self.new, type_)
    }

    /// It is false for a reason that it was not false for before.
    fn waits(&self, type_: &str) -> Option<&'a Condition> {
        let new = self.new.iter().find(|c| c.type_ == type_ && c.status == "False")?;
        let same = |old: &&Condition| old.status == new.status && old.reason == new.reason;
        self.before(type_).filter(same).is_none().then_some(new)
    }
}

#[cfg(test)]
mod tests;
