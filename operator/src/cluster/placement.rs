//! The placement pass: one at a time for the whole cluster, over all workloads that wait, in a
//! stable order: observe → [`World`] → [`decide`] → claims. It never buys; writing a claim twice is safe.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::decide::decide;
use petaflop_arbiter::decision::{Action, Decision, Outcome};
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::workload::WorkloadId;
use petaflop_arbiter::world::Recorded;
use tokio::sync::Notify;

use crate::claims::{Claims, ClaimsError, StoredClaim};
use crate::cluster::Operator;
use crate::cluster::budgets::{self};
use crate::cluster::error::Error;
use crate::cluster::lane::Lane;
use crate::cluster::moves::{self, Moves, may_move};
use crate::cluster::record;
use crate::cluster::training_job::Waits;
use crate::spot::Spot;
use crate::status::without_numbers;

mod world;

use world::{Looked, Of, world};

/// What was asked for within this time of the first is decided together.
const TOGETHER: Duration = Duration::from_millis(20);

/// What is said of a workload that waits is kept this long while only its numbers move.
const SAID_FOR: SignedDuration = SignedDuration::from_secs(300);

/// Until a watch has caught up.
const SOON: Duration = Duration::from_millis(200);

/// Claims that are written at once.
const AT_ONCE: usize = 16;

/// How long an offer is left alone that no claim can be made of.
const LEFT_ALONE: SignedDuration = SignedDuration::from_mins(10);

/// Who asks for passes, and what the last one said. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    asked: Notify,
    last: Mutex<HashMap<String, Arc<Said>>>,
    passed: Mutex<Option<Timestamp>>,
    lane: Lane,
    moves: Moves,
    spot: Spot,
}

/// What a pass said of a workload.
#[derive(Clone, Debug)]
pub struct Said {
    workload: WorkloadId,
    /// The decision, with reasons; `None` where there was nothing to decide.
    pub decision: Option<Box<Decision>>,
    /// Why there is no machine, where there is none.
    pub waits: Option<Waits>,
    /// Wherever it was placed last, its deadline may be missed.
    pub at_risk: bool,
    /// It has its machines.
    settled: bool,
    /// Generation of the workload that this was said of.
    generation: Option<i64>,
    at: Timestamp,
}

impl Said {
    /// Of a workload that cannot even be asked for.
    fn impossible(
        workload: WorkloadId,
        message: String,
        generation: Option<i64>,
        at: Timestamp,
    ) -> Self {
        let waits = Some(Waits { reason: Reason::InvalidSpec, message });
        Self { workload, decision: None, waits, at_risk: false, settled: false, generation, at }
    }

    /// What is left of it once the machine is there.
    fn settled(&self) -> Self {
        let Self { workload, at_risk, generation, at, .. } = self;
        let (at_risk, generation, at) = (*at_risk, *generation, *at);
        let workload = workload.clone();
        Self { workload, decision: None, waits: None, at_risk, settled: true, generation, at }
    }

    /// The words of before, where only their numbers moved: a status is not written for those.
    fn or_before(mut self, before: Option<&Said>) -> Said {
        // Once it has its machine nothing more is said of it.
        self.at_risk |= self.settled && before.is_some_and(|before| before.at_risk);
        let words = |said: &Said| {
            said.waits.as_ref().map(|waits| (waits.reason, without_numbers(&waits.message)))
        };
        match before {
            Some(before)
                if words(before) == words(&self)
                    && before.generation == self.generation
                    && self.at.duration_since(before.at) < SAID_FOR =>
            {
                Said { waits: before.waits.clone(), at: before.at, ..self }
            }
            _ => self,
        }
    }
}

impl Placement {
    /// Asks for a pass.
    pub fn ask(&self) {
        self.inner.lane.ask();
        self.inner.asked.notify_one();
    }

    /// Waits until one is asked for, and a moment more for whoever asks next.
    pub async fn asked(&self, operator: &Operator) {
        self.inner.asked.notified().await;
        operator.clock.sleep(TOGETHER).await;
    }

    /// What the last pass said of a workload.
    pub fn said(&self, uid: &str) -> Option<Arc<Said>> {
        self.inner.last.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// Who stands back while claims are written.
    pub fn lane(&self) -> &Lane {
        &self.inner.lane
    }

    /// Machines that are left for better places.
    pub fn moves(&self) -> &Moves {
        &self.inner.moves
    }

    /// What the spot policies keep.
    fn spot(&self) -> &Spot {
        &self.inner.spot
    }

    /// When the last pass was made, if there was one.
    pub fn passed(&self) -> Option<Timestamp> {
        *self.inner.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a pass would look at now, for `explain`. The last one's is not kept: it is as large as all
/// that is known.
pub fn recorded(operator: &Operator) -> Recorded {
    let now = operator.clock.now();
    Recorded { now, world: world(operator, now, Of::Everybody).world }
}

/// One pass. Returns when to look again though nothing happens.
pub async fn pass(operator: &Operator) -> Result<Option<Duration>, Error> {
    let passing = operator.placement.lane().begin();
    let now = operator.clock.now();
    let of = match operator.placement.moves().are_due(now) {
        true => Of::WhoeverMayMove,
        false => Of::WhoeverLacksOne,
    };
    let Looked { world, mut said, generations, revisions, settled } = world(operator, now, of);
    let rents = world.claims.iter().any(may_move);
    if of == Of::WhoeverMayMove {
        operator.placement.moves().forget_but(&world.claims);
    }
    let began = operator.clock.boottime();
    let seen = Recorded { now, world };
    let mut plan = decide(&seen.world, now);
    let took = operator.clock.boottime().saturating_sub(began);
    operator.placement.spot().take_in(&plan);
    operator
        .placement
        .spot()
        .forget_but(|uid| generations.contains_key(uid) || settled.contains(uid));
    record::keep(operator, seen, &mut plan).await;
    operator.metrics.decided(&plan.decisions, took);
    let mut writes = Vec::new();
    for action in plan.actions {
        match action {
            Action::CreateClaim(mut spec) => {
                spec.revision = revisions.get(&spec.owner.uid).cloned();
                writes.push(spec);
            }
            // A claim is ended by whoever asked for it: its controller deletes it. What moves, below.
            Action::EndClaim { .. } => {}
        }
    }
    // Accident: a job comes by its watch before the budget that was there first comes by its own.
    let unknown =
        budgets::unknown(operator, writes.iter().map(|spec| &*spec.owner.namespace)).await?;
    writes.retain(|spec| !unknown.holds(&spec.owner.namespace));
    // Reserved in the order of the plan; written side by side.
    use futures::StreamExt;
    let created: Vec<(WorkloadId, Result<Option<StoredClaim>, Error>)> =
        futures::stream::iter(writes)
            .map(|spec| async {
                let owner = spec.owner.clone();
                if !operator.leadership.leads() {
                    return (owner, Err(Error::NotLeading));
                }
                let (offer, now) = (spec.offer.id.clone(), operator.clock.now());
                let created = match operator.claims.create(spec).await {
                    // An offer that no claim can name is no reason to place nothing else.
                    Err(error @ ClaimsError::Refused { .. }) => {
                        tracing::error!(%error, %offer, "left alone");
                        let until = now.saturating_add(LEFT_ALONE).unwrap_or(Timestamp::MAX);
                        operator.providers.leave_alone(&offer, until, Reason::InvalidSpec);
                        operator.placement.ask();
                        Ok(None)
                    }
                    created => created.map_err(Error::from),
                };
                (owner, created)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
    drop(passing);
    // By uid of who may have no claim in its namespace, for now.
    let mut forbidden: HashMap<String, Waits> = HashMap::new();
    let mut failed = None;
    for (owner, created) in created {
        match created {
            Ok(Some(stored)) => {
                let spec = stored.claim.spec;
                operator.claim_changed(&(spec.owner.namespace, spec.name));
            }
            Ok(None) => {}
            Err(Error::Claims(ClaimsError::Forbidden { name: _, what })) => {
                forbidden.insert(owner.uid, not_let_in(&what));
            }
            Err(error) => failed = Some(error),
        }
    }
    operator.placement.lane().free(&operator.handle);
    if let Some(error) = failed {
        return Err(error);
    }
    for decision in &plan.decisions {
        moves::leave(operator, decision).await?;
    }
    for decision in plan.decisions {
        let waits = match &decision.outcome {
            Outcome::Waiting { reason, message } => {
                Some(Waits { reason: *reason, message: message.clone() })
            }
            Outcome::Placed { .. } => {
                let message = unknown.unreadable.get(&decision.workload.namespace).cloned();
                let unknown = message.map(|message| Waits { reason: Reason::InvalidSpec, message });
                unknown.or_else(|| forbidden.remove(&decision.workload.uid))
            }
            Outcome::Settled { .. } | Outcome::Moves { .. } => None,
        };
        let workload = decision.workload.clone();
        let uid = workload.uid.clone();
        let generation = generations.get(&uid).copied().flatten();
        let at_risk = decision.warning == Some(Reason::DeadlineAtRisk);
        let settled =
            matches!(decision.outcome, Outcome::Settled { machines: 1.. } | Outcome::Moves { .. });
        let nothing = matches!(decision.outcome, Outcome::Settled { .. });
        let decision = (!nothing).then(|| Box::new(decision));
        said.insert(uid, Said { workload, decision, waits, at_risk, settled, generation, at: now });
    }
    let changed: Vec<WorkloadId> = {
        let mut last = operator.placement.inner.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever has a machine is not asked about again; what was foreseen of its deadline stands.
        let foreseen = last.iter().filter(|(uid, before)| before.at_risk && settled.contains(*uid));
        for (uid, before) in foreseen {
            said.entry(uid.clone()).or_insert_with(|| before.settled());
        }
        let said: HashMap<String, Arc<Said>> = said
            .into_iter()
            .map(|(uid, now)| {
                let before = last.get(&uid).map(|said| &**said);
                let now = Arc::new(now.or_before(before));
                (uid, now)
            })
            .collect();
        let waits = |uid: &str| said.get(uid).and_then(|said| said.waits.as_ref());
        let new = said.iter().filter(|(uid, _)| !last.contains_key(*uid));
        let other = last.iter().filter(|(uid, before)| before.waits.as_ref() != waits(uid));
        let changed = new.chain(other).map(|(_, said)| said.workload.clone()).collect();
        *last = said;
        changed
    };
    changed.iter().for_each(|workload| operator.owner_changed(workload));
    *operator.placement.inner.passed.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    if !unknown.late.is_empty() {
        return Ok(Some(SOON));
    }
    let again =
        plan.requeue_at.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
    Ok(again.into_iter().chain(rents.then_some(moves::EVERY)).min())
}

/// What is said to whoever may have no claim where it is.
fn not_let_in(server: &str) -> Waits {
    let reason = match server.contains("exceeded quota") {
        true => Reason::QuotaExceeded,
        false => Reason::Unauthorized,
    };
    let message = format!(
        "the API server lets nobody write a ComputeClaim for it in its namespace; mend the quota, the policy or \
         the right that it names: {server}"
    );
    Waits { reason, message }
}
