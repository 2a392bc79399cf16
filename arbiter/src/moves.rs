//! Leaving a place that works, for one where the rest costs less or ends in time.
//!
//! Staying costs the rest of the work at today's price here. Going costs what any placement costs
//! (start-up, image, inputs and checkpoint, the rest of the work) and writing the checkpoint here
//! first, which takes as long as the last one did. The difference must be `switchIfSavingsPercent` of what staying costs, and a place is
//! kept for `minHoldSeconds` whatever is cheaper meanwhile, twice as long after each move ([`hold_for_price`]): prices that
//! swing do not carry a job to and fro. Only where staying is expected to miss the deadline, and going is not, dollars do not
//! count; and where the spot policy says that only on-demand is sure to meet it, no time is lost either.

use jiff::SignedDuration;

use crate::candidates::{Candidate, Found, Promise};
use crate::claim::{Claim, Phase};
use crate::decision::{Advice, Outcome};
use crate::market::Class;
use crate::money::{Usd, UsdPerHour};
use crate::objective::{Course, checkpoint_millis};
use crate::offer::Capacity;
use crate::pass::Pass;
use crate::reason::Reason;
use crate::workload::{Interruption, InterruptionPolicy, Work, Workload};

impl<'a> Pass<'a> {
    /// Where a job that has this claim, and no other, should rather be: [`Outcome::Moves`]; and what the spot policy says.
    pub(crate) fn better_place(
        &mut self,
        workload: &'a Workload,
        claim: &'a Claim,
    ) -> (Option<Outcome>, Option<Advice>) {
        let mut advice = None;
        let outcome = self.move_from(workload, claim, &mut advice);
        (outcome, advice)
    }

    fn move_from(
        &mut self,
        workload: &'a Workload,
        claim: &'a Claim,
        advice: &mut Option<Advice>,
    ) -> Option<Outcome> {
        let Work::Training(work) = &workload.work else { return None };
        let Phase::Launched { at, .. } = claim.phase else { return None };
        // What one owns is paid for whether it is used or not; a move frees it for nobody in particular.
        if claim.spec.offer.capacity == Capacity::Owned {
            return None;
        }
        let interruption = &workload.interruption;
        let hold = SignedDuration::from_secs(i64::from(interruption.min_hold_seconds));
        let held = self.now.duration_since(at);
        let young = held < hold;
        if interruption.policy == InterruptionPolicy::Fail || young && workload.finish_by.is_none()
        {
            return None;
        }
        let offer = &claim.spec.offer;
        let provider = self.provider(&offer.provider)?;
        let class = Class::of(offer);
        let course = Course::of(self.world, workload, &class, provider, claim.spec.device)?;
        let here = course.under_way();
        let price = self.price_now(claim);
        let stays = here.dollars(price);
        let ends = self.promise(workload, &here);
        // What it holds here would be free.
        self.release(claim);
        let Found { takeable, guided, .. } = self.search(workload, Some(claim));
        self.hold(claim);
        let best = takeable.first().copied();
        let leaves = guided.as_ref().is_some_and(|guided| guided.leaves);
        let unasked = guided.is_none();
        self.remember(guided.as_ref());
        *advice = guided.map(|guided| guided.advice);
        if young && !leaves {
            return None;
        }
        let best: Candidate<'a> = best.filter(|best| best.offer.id != offer.id)?;
        // Where there is no way back to on-demand, or none that can be paid, it is not left for what may be taken away.
        let is_risked = workload.finish_by.is_some() && best.offer.capacity == Capacity::Spot;
        if unasked && is_risked && offer.capacity == Capacity::OnDemand {
            return None;
        }
        let leaving = price.for_millis(checkpoint_millis(work, &workload.progress, provider));
        let goes = best.total.saturating_add(leaving);
        let reason = match (ends, best.promise) {
            _ if leaves => Reason::DeadlineAtRisk,
            (Promise::Broken(_), Promise::Kept | Promise::AtRisk(_)) => Reason::DeadlineAtRisk,
            (Promise::Kept, Promise::AtRisk(_)) | (_, Promise::Broken(_)) => return None,
            // The spot policy counts its moves itself: each uses up slack ([`crate::spot::safety`]).
            _ if unasked && held < hold_for_price(interruption, workload.progress.moves) => {
                return None;
            }
            _ if saves(stays, goes, interruption.switch_if_savings_percent) => {
                Reason::CheaperOfferMigration
            }
            _ => return None,
        };
        // Others do not take it meanwhile; this pass at least.
        self.reserve(best.offer, &workload.id.namespace, &workload.id.uid, best.total);
        let claim = claim.spec.name.clone();
        let moves = workload.progress.moves.saturating_add(1);
        Some(Outcome::Moves { claim, to: best.offer.id.clone(), reason, stays, goes, moves })
    }

    /// What an hour of a claim's machine costs now: spot follows its market, all else is as bought.
    fn price_now(&self, claim: &Claim) -> UsdPerHour {
        let bought = &claim.spec.offer;
        let quoted = match bought.capacity {
            Capacity::Spot => self.world.market.get(&bought.id),
            Capacity::OnDemand | Capacity::Owned => None,
        };
        quoted.map_or(bought.price, |offer| offer.price)
    }
}

/// How long a place is kept before a move that only saves dollars: `minHoldSeconds` · 2ᵐ after m moves.
///
/// So m moves take at least minHoldSeconds · (2ᵐ − 1), and a job that has had machines for a time T moves for its price
/// at most log₂(1 + T ÷ minHoldSeconds) times, whatever prices do: 7 times in two days, 11 in a month, by the default of
/// 900 s. (0 counts as a second.)
fn hold_for_price(interruption: &Interruption, moves: u32) -> SignedDuration {
    let seconds = i64::from(interruption.min_hold_seconds.max(1));
    let doubled = 1_i64.checked_shl(moves.min(62)).and_then(|times| seconds.checked_mul(times));
    SignedDuration::from_secs(doubled.unwrap_or(i64::MAX))
}

/// Whether going saves so many percent of what staying costs, and anything at all.
fn saves(stays: Usd, goes: Usd, percent: u32) -> bool {
    let saved = i128::from(stays.micros()) - i128::from(goes.micros());
    saved > 0 && saved * 100 >= i128::from(stays.micros()) * i128::from(percent)
}
