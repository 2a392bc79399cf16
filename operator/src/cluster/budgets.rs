//! SpendBudgets: what their workloads have cost in the running period, booked and running.

use jiff::Timestamp;
use kube::ResourceExt;
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::world::Budget;
use petaflop_crds::{FieldError, SpendBudget};

use crate::cluster::Operator;

/// A budget as decisions see it: what is booked in the period. Reservations and running rates are
/// in the claims, which the arbiter adds itself.
pub fn of(
    operator: &Operator,
    object: &SpendBudget,
    now: Timestamp,
) -> Result<Budget, Vec<FieldError>> {
    let uids = counted(operator, object);
    let period = object.spec.period.around(now);
    let namespace = object.namespace().unwrap_or_default();
    let all = object.spec.counts_all();
    let spent = operator.book.spent_in(&period, |row| {
        row.namespace == namespace && (all || uids.contains(&row.job_uid))
    });
    object.budget(spent, uids, now)
}

/// What is booked in the period, and what ran up since the last rows.
pub fn with_running(operator: &Operator, budget: &Budget, now: Timestamp) -> Usd {
    let claims: Vec<_> = operator
        .table
        .all()
        .into_iter()
        .filter(|stored| {
            let owner = &stored.claim.spec.owner;
            budget.counts(&owner.namespace, &owner.uid)
        })
        .collect();
    budget.spent.saturating_add(operator.book.running(&claims, now))
}

/// Uids of the workloads that a budget counts.
fn counted(operator: &Operator, object: &SpendBudget) -> Vec<String> {
    let name = object.name_any();
    operator
        .jobs()
        .iter()
        .filter(|job| job.namespace() == object.namespace())
        .filter(|job| object.spec.counts(&name, job.labels(), job.spec.budget_ref.as_ref()))
        .filter_map(|job| job.uid())
        .collect()
}
