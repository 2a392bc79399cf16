//! Limits of money: what each leaves, and what a machine would take of it.

use jiff::Timestamp;

use crate::candidates::Candidate;
use crate::money::{Usd, UsdPerHour};
use crate::objective::Course;
use crate::offer::Offer;
use crate::pass::Pass;
use crate::workload::Workload;
use crate::world::Budget;

/// One limit, and one machine.
#[derive(Clone, Copy)]
pub(crate) struct Limit {
    /// What nobody has spent or reserved.
    pub(crate) left: Usd,
    /// What the machine is expected to cost within the limit's period.
    pub(crate) needs: Usd,
}

impl<'a> Pass<'a> {
    /// What the workload itself may cost.
    pub(crate) fn own_limit(&self, workload: &Workload, total: Usd) -> Option<Limit> {
        let limit = workload.max_total_cost?;
        let own = self.taken.workloads.get(workload.id.uid.as_str());
        let own = own.copied().unwrap_or(Usd::ZERO);
        let left = limit.saturating_sub(workload.progress.spent).saturating_sub(own);
        Some(Limit { left, needs: total })
    }

    /// What the month may cost at the offer's provider.
    pub(crate) fn month_limit(&self, offer: &Offer, course: &Course, total: Usd) -> Option<Limit> {
        let index = *self.providers.get(offer.provider.as_str())?;
        let month = self.world.providers[index].monthly.as_ref()?;
        let left =
            month.limit.saturating_sub(month.spent).saturating_sub(self.taken.outstanding[index]);
        Some(Limit { left, needs: self.cost_until(course, offer.price, total, month.ends_at) })
    }

    /// What the budgets that count the workload may cost in their periods.
    pub(crate) fn budget_limits<'b>(
        &'b self,
        workload: &'b Workload,
        offer: &'b Offer,
        course: &'b Course,
        total: Usd,
    ) -> impl Iterator<Item = (&'a Budget, Limit)> + 'b {
        let (namespace, uid) = (&workload.id.namespace, &workload.id.uid);
        self.budgets_of(namespace, uid).map(move |(index, budget)| {
            let taken = self.taken.budgets[index];
            let left = budget.limit.saturating_sub(budget.spent).saturating_sub(taken);
            let needs = self.cost_until(course, offer.price, total, budget.period_ends_at);
            (budget, Limit { left, needs })
        })
    }

    /// Whether a candidate could still be paid after so many milliseconds on another offer in which nothing got done.
    pub(crate) fn pays_after(
        &self,
        workload: &Workload,
        candidate: &Candidate<'_>,
        first: &Offer,
        millis: i64,
    ) -> bool {
        let Candidate { offer, course, total, .. } = candidate;
        let lost = first.price.for_millis(millis);
        let month = self.month_limit(offer, course, *total);
        let month = month.filter(|_| first.provider == offer.provider);
        let budgets = self.budget_limits(workload, offer, course, *total).map(|(_, limit)| limit);
        let mut limits = self.own_limit(workload, *total).into_iter().chain(month).chain(budgets);
        limits.all(|Limit { left, needs }| needs.saturating_add(lost) <= left)
    }

    /// What an offer costs until a period ends, and not more than in all.
    fn cost_until(&self, course: &Course, price: UsdPerHour, total: Usd, end: Timestamp) -> Usd {
        let millis = end.as_millisecond().saturating_sub(self.now_millis);
        course.dollars_within(price, millis.max(0)).min(total)
    }
}
