//! SpendBudgets: what their workloads have cost in the running period, booked and running; and
//! their controller, the part with a client (what follows from the sums is in [`spend_budget`]).
//!
//! Which limits are reached is kept in memory for whoever must stop: known before anything is
//! decided, and brought up whenever a budget is looked at.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use kube::api::{ListParams, PostParams};
use kube::core::DeserializeGuard;
use kube::{Api, Resource, ResourceExt};
use petaflop_arbiter::claim::Phase;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::workload::{OwnerKind, WorkloadId};
use petaflop_arbiter::world::Budget;
use petaflop_crds::shared::NameRef;
use petaflop_crds::spend_budget::OnExceeded;
use petaflop_crds::{FieldError, InferenceService, SpendBudget, SpendBudgetStatus, TrainingJob};

use crate::claims::StoredClaim;
use crate::cluster::error::{Error, is_forbidden, is_not_found};
use crate::cluster::queue::Again;
use crate::cluster::spend_budget::{self, Price, Seen, Sums};
use crate::cluster::table::Name;
use crate::cluster::{Operator, events};

/// Budgets a page.
const PAGE: u32 = 500;

/// What budgets look at in a workload of whatever kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Which it is.
    pub id: WorkloadId,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The budget that it names itself.
    pub budget_ref: Option<NameRef>,
}

impl Counted {
    /// A job.
    pub fn job(job: &TrainingJob) -> Self {
        Self {
            id: id_of(OwnerKind::TrainingJob, job),
            labels: job.labels().clone(),
            budget_ref: job.spec.budget_ref.clone(),
        }
    }

    /// A service.
    pub fn service(service: &InferenceService) -> Self {
        Self {
            id: id_of(OwnerKind::InferenceService, service),
            labels: service.labels().clone(),
            budget_ref: service.spec.budget_ref.clone(),
        }
    }

    fn counts_under(&self, budget: &SpendBudget) -> bool {
        budget.namespace().as_deref() == Some(self.id.namespace.as_str())
            && budget.spec.counts(&budget.name_any(), &self.labels, self.budget_ref.as_ref())
    }
}

fn id_of(kind: OwnerKind, object: &impl ResourceExt) -> WorkloadId {
    let (name, uid) = (object.name_any(), object.uid().unwrap_or_default());
    WorkloadId { kind, namespace: object.namespace().unwrap_or_default(), name, uid }
}

/// A budget asks for what runs under it to be stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Its name.
    pub budget: String,
    /// Suspended or ended; never that only new ones are blocked.
    pub how: Stopped,
}

/// How a budget stops what runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Saved, and goes on when there is money again.
    Suspended,
    /// Ended at once, for good.
    Terminated,
}

/// Budgets whose limit is reached, by namespace. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Exhausted(Arc<Mutex<HashMap<String, BTreeSet<String>>>>);

impl Exhausted {
    /// Takes over whether a budget's limit is reached. Returns whether it was otherwise before.
    fn put(&self, (namespace, name): &Name, is: bool) -> bool {
        let mut all = self.lock();
        if is {
            return all.entry(namespace.clone()).or_default().insert(name.clone());
        }
        let Some(names) = all.get_mut(namespace) else { return false };
        let was = names.remove(name);
        if names.is_empty() {
            all.remove(namespace);
        }
        was
    }

    fn within(&self, namespace: &str) -> BTreeSet<String> {
        self.lock().get(namespace).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, BTreeSet<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The workloads and claims of one namespace, looked at once for all its budgets.
struct View<'a> {
    /// Where a budget picks some by their labels; else nobody asks.
    workloads: Vec<Counted>,
    claims: Vec<&'a StoredClaim>,
}

impl<'a> View<'a> {
    fn of<'b>(
        operator: &Operator,
        namespace: &str,
        budgets: impl IntoIterator<Item = &'b SpendBudget>,
        claims: &'a [StoredClaim],
    ) -> Self {
        let picks = budgets.into_iter().any(|object| !object.spec.counts_all());
        let workloads = if picks { operator.workloads(namespace) } else { Vec::new() };
        let here = |stored: &&StoredClaim| stored.claim.spec.owner.namespace == namespace;
        Self { workloads, claims: claims.iter().filter(here).collect() }
    }

    /// Uids of the workloads that a budget counts.
    fn counted(&self, object: &SpendBudget) -> BTreeSet<String> {
        let counted = self.workloads.iter().filter(|workload| workload.counts_under(object));
        counted.map(|workload| workload.id.uid.clone()).collect()
    }

    /// The budget, with everything that was spent in the period by now.
    fn budget(
        &self,
        operator: &Operator,
        object: &SpendBudget,
        now: Timestamp,
    ) -> Result<Budget, Vec<FieldError>> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let period = object.spec.period.around(now);
        let uids = self.counted(object);
        let booked = match object.spec.counts_all() {
            true => operator.book.of_namespace(&namespace, &period),
            false => operator.book.of_budget(&namespace, &name, &uids, &period),
        };
        let budget = object.budget(Usd::ZERO, uids, now)?;
        let running = operator.book.running(self.claims_of(&budget), period.start, now);
        Ok(Budget { spent: booked.saturating_add(running), ..budget })
    }

    fn claims_of<'b>(&'b self, budget: &'b Budget) -> impl Iterator<Item = &'a StoredClaim> + 'b {
        self.claims.iter().copied().filter(|stored| {
            let owner = &stored.claim.spec.owner;
            budget.counts(&owner.namespace, &owner.uid)
        })
    }

    fn sums(&self, operator: &Operator, budget: &Budget, now: Timestamp) -> Sums {
        let mut sums = Sums { spent: budget.spent, ..Sums::default() };
        let left = budget.period_ends_at.as_millisecond().saturating_sub(now.as_millisecond());
        for stored in self.claims_of(budget).filter(|stored| stored.claim.is_unfinished()) {
            let (claim, price) = (&stored.claim, stored.claim.spec.offer.price);
            let reserved = claim.spec.reserved.saturating_sub(operator.book.of_claim(stored, now));
            let reserved = reserved.max(Usd::ZERO).min(price.for_millis(left));
            sums.reserved = sums.reserved.saturating_add(reserved);
            if matches!(claim.phase, Phase::Launched { .. } | Phase::Ending { .. }) {
                sums.rate = sums.rate.saturating_add(price);
            }
        }
        sums
    }
}

impl Operator {
    /// All in a namespace that budgets may count.
    fn workloads(&self, namespace: &str) -> Vec<Counted> {
        let jobs = self.jobs.of_namespace(namespace);
        let services = self.services.of_namespace(namespace);
        let services = services.iter().map(Counted::service);
        jobs.iter().map(Counted::job).chain(services).collect()
    }

    /// What budgets look at in the owner of a claim; `None` where it is not known any more.
    pub fn workload(&self, owner: &WorkloadId) -> Option<Counted> {
        let found = match owner.kind {
            OwnerKind::TrainingJob => {
                self.job(&owner.namespace, &owner.name).map(|job| Counted::job(&job))
            }
            OwnerKind::InferenceService => self
                .service(&owner.namespace, &owner.name)
                .map(|service| Counted::service(&service)),
        };
        found.filter(|workload| workload.id.uid == owner.uid)
    }

    /// The budgets, as decisions see them, beside all claims.
    pub fn budgets(&self, claims: &[StoredClaim], now: Timestamp) -> Vec<Budget> {
        let mut objects: BTreeMap<String, Vec<SpendBudget>> = BTreeMap::new();
        for object in self.budgets.all() {
            objects.entry(object.namespace().unwrap_or_default()).or_default().push(object);
        }
        let mut budgets = Vec::new();
        for (namespace, objects) in objects {
            let view = View::of(self, &namespace, &objects, claims);
            for object in &objects {
                let budget = view.budget(self, object, now);
                budgets.extend(budget.inspect_err(|errors| left_out(object, errors)));
            }
        }
        budgets
    }

    /// Names of the budgets that a workload counts under.
    pub fn budgets_of(&self, workload: &Counted) -> Vec<String> {
        let mut names: Vec<String> = self
            .budgets
            .of_namespace(&workload.id.namespace)
            .iter()
            .filter(|object| workload.counts_under(object))
            .map(|object| object.name_any())
            .collect();
        names.sort_unstable();
        names
    }

    /// The budget that asks for a workload to be stopped, its limit being reached; of several the
    /// one that ends it.
    pub fn stop_of(&self, workload: &Counted) -> Option<Stop> {
        let mut found = None;
        for name in self.exhausted.within(&workload.id.namespace) {
            let object = self.budgets.get(&workload.id.namespace, &name);
            let Some(object) = object.filter(|object| workload.counts_under(object)) else {
                continue;
            };
            let how = match object.spec.on_exceeded {
                OnExceeded::BlockNew => continue,
                OnExceeded::Suspend => Stopped::Suspended,
                OnExceeded::Terminate => Stopped::Terminated,
            };
            let stop = Stop { budget: name, how };
            match how {
                Stopped::Terminated => return Some(stop),
                Stopped::Suspended => found = found.or(Some(stop)),
            }
        }
        found
    }

    /// Why a workload cannot be placed whatever the offers: the budget that it names is not there.
    pub fn no_such_budget(&self, workload: &Counted) -> Option<String> {
        let name = &workload.budget_ref.as_ref()?.name;
        let namespace = &workload.id.namespace;
        match self.budgets.get(namespace, name) {
            Some(_) => None,
            None => Some(format!(
                "spec.budgetRef: there is no SpendBudget {name} in namespace {namespace}; create it, or name another"
            )),
        }
    }

    /// Learns which limits are reached, before anybody is told to stop or to go on.
    pub(crate) fn know_exhausted(&self) {
        let now = self.clock.now();
        for budget in self.budgets(&self.table.all(), now) {
            let name = (budget.namespace.clone(), budget.name.clone());
            self.exhausted.put(&name, spend_budget::is_exhausted(budget.limit, budget.spent));
        }
    }

    /// The cheapest that a namespace could buy.
    fn cheapest(&self, namespace: &str) -> Option<Price> {
        self.providers
            .all()
            .into_iter()
            .filter(|(_, known)| {
                let allowed = &known.object.spec.allowed_namespaces;
                allowed.iter().any(|name| name == "*" || name == namespace)
            })
            .filter_map(|(_, known)| known.cheapest)
            .min_by(|(a, x), (b, y)| (x, a).cmp(&(y, b)))
    }
}

fn left_out(object: &SpendBudget, errors: &[FieldError]) {
    tracing::error!(budget = %object.name_any(), ?errors, "left out");
}

/// One pass over one budget.
pub async fn reconcile(operator: &Operator, name: &Name) -> Result<Again, Error> {
    let Some(object) = operator.budgets.get(&name.0, &name.1) else {
        if operator.exhausted.put(name, false) {
            wake(operator, &operator.workloads(&name.0));
        }
        return Ok(Again::OnChange);
    };
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(Again::OnChange);
    }
    let now = operator.clock.now();
    let claims = operator.table.of_namespace(&name.0);
    let view = View::of(operator, &name.0, [&object], &claims);
    let cheapest = operator.cheapest(&name.0);
    let sums = match view.budget(operator, &object, now) {
        Ok(budget) => {
            let is = spend_budget::is_exhausted(budget.limit, budget.spent);
            if operator.exhausted.put(name, is) {
                tracing::info!(budget = %name.1, namespace = %name.0, exhausted = is, "a limit");
                let mut counted = operator.workloads(&name.0);
                counted.retain(|workload| workload.counts_under(&object));
                wake(operator, &counted);
            }
            view.sums(operator, &budget, now)
        }
        // What is wrong is said in its status.
        Err(errors) => {
            left_out(&object, &errors);
            Sums::default()
        }
    };
    let seen = Seen { object: &object, sums, cheapest: cheapest.as_ref(), now };
    let next = spend_budget::next(&seen);
    if object.status.as_ref() != Some(&next.status) {
        write(operator, &object, next.status).await?;
    }
    Ok(next.again.map_or(Again::OnChange, Again::After))
}

/// Namespaces in which nothing is bought now, for a budget there is not known.
#[derive(Debug, Default)]
pub struct Unknown {
    /// The watch has not brought it yet as it is now.
    pub late: BTreeSet<String>,
    /// Nobody can read it, nor say what it allows; in words.
    pub unreadable: BTreeMap<String, String>,
}

impl Unknown {
    /// Whether nothing is bought in a namespace.
    pub fn holds(&self, namespace: &str) -> bool {
        self.late.contains(namespace) || self.unreadable.contains_key(namespace)
    }
}

/// Budgets of these namespaces as the API server has them, compared with what the watch has brought.
pub async fn unknown<'a>(
    operator: &Operator,
    namespaces: impl Iterator<Item = &'a str>,
) -> Result<Unknown, Error> {
    let asked: BTreeSet<&str> = namespaces.collect();
    let mut unknown = Unknown::default();
    if asked.is_empty() {
        return Ok(unknown);
    }
    let client = || operator.client.clone();
    let apis: Vec<(Option<&str>, Api<DeserializeGuard<SpendBudget>>)> =
        match operator.settings.watch_namespaces.as_slice() {
            [] => vec![(None, Api::all(client()))],
            _ => asked.iter().map(|name| (Some(*name), Api::namespaced(client(), name))).collect(),
        };
    for (of, api) in apis {
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = match (api.list(&page).await, of) {
                // It holds up nobody else.
                (Err(error), Some(namespace)) if is_forbidden(&error) => {
                    let message = format!(
                        "the SpendBudgets of its namespace may not be read, so nobody knows what they allow; give the operator that right: {error}"
                    );
                    unknown.unreadable.insert(namespace.to_owned(), message);
                    break;
                }
                (list, _) => list.map_err(Error::api("listing the budgets"))?,
            };
            for found in &list.items {
                let namespace = found.namespace().unwrap_or_default();
                if !asked.contains(namespace.as_str()) {
                    continue;
                }
                if let Err(error) = &found.0 {
                    let name = found.name_any();
                    let message = format!(
                        "SpendBudget {name} cannot be read, so nobody knows what it allows; write it anew or delete it: {error}"
                    );
                    unknown.unreadable.insert(namespace, message);
                    continue;
                }
                let known =
                    operator.budgets.get(&namespace, &found.name_any()).is_some_and(|known| {
                        known.uid() == found.uid()
                            && known.metadata.generation >= found.meta().generation
                    });
                if !known {
                    unknown.late.insert(namespace);
                }
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => break,
            }
        }
    }
    Ok(unknown)
}

/// Whoever was stopped, or may have to be.
fn wake<'a>(operator: &Operator, workloads: impl IntoIterator<Item = &'a Counted>) {
    for workload in workloads {
        operator.owner_changed(&workload.id);
    }
    operator.placement.ask();
}

/// A compare-and-swap: a status is never written over one that we did not see.
async fn write(
    operator: &Operator,
    object: &SpendBudget,
    status: SpendBudgetStatus,
) -> Result<(), Error> {
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<SpendBudget> = Api::namespaced(operator.client.clone(), &namespace);
    let told = events::of_budget(object.status.as_ref(), &status);
    let mut new = object.clone();
    new.status = Some(status);
    match api.replace_status(&object.name_any(), &PostParams::default(), &new).await {
        Ok(_) => {
            operator.events.tell(&new, told);
            Ok(())
        }
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(Error::api("writing a budget's status")(error)),
    }
}

/// The cheapest of some offers.
pub fn cheapest(offers: &[petaflop_arbiter::offer::Offer]) -> Option<Price> {
    let price = |offer: &&petaflop_arbiter::offer::Offer| (offer.price, offer.id.clone());
    let least: Option<(UsdPerHour, _)> = offers.iter().map(|offer| price(&offer)).min();
    least.map(|(price, id)| (id.0, price))
}
