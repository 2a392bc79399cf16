//! The choices after which the deadline can still be met, whatever spot does: exactly those, no fewer.
//!
//! Let *s* be the slack (time left in whole ticks − work left), *p* what a choice leaves pending at the tick's start
//! (the restart, or what is left of it), *b* = min(*p*, *g*) what the tick *g* spends on it, and *d* the shortest restart
//! of on-demand.
//!
//! **Theorem.** A state is *safe* if a policy exists that ends in time for every future of spot. It is safe iff s ≥ d,
//! or an on-demand machine is alive with s ≥ p, or the job can end on spot in this very tick. From a safe state a choice leads
//! to safe states only, iff
//!
//! * nothing: s − g ≥ d;
//! * spot: s − b ≥ d, or the job ends in this tick (work left ≤ g − b);
//! * on-demand: the same, or s ≥ p. (In one zone that is just s ≥ p; where restarts differ, a slow machine may be left for a
//!   quicker one.)
//!
//! *Proof.* On on-demand no slack is lost but p, so it ends in time iff s ≥ p: time left is whole ticks, so rounding the end up
//! to a tick's end does not pass the deadline. A tick of nothing costs g of slack, one with a machine costs b; afterwards
//! the worst future has no spot ever again, in which only on-demand helps: the machine alive, if it is that, or a new one, which
//! needs d. Where s ≥ d that new machine is itself allowed, so a safe state always has a choice. A job whose work fits into
//! what is left of the tick has no "afterwards". ∎

use super::model::{Choice, Kind, Place, Sight, View};

/// Whether every future still meets the deadline after this choice.
pub fn allows(view: &View<'_>, choice: Choice) -> bool {
    let (slack, tick) = (view.slack(), view.terms.tick);
    let fallback = view.terms.shortest_restart();
    match choice {
        Choice::Nothing => slack - tick >= fallback,
        Choice::Run(place) => {
            let pending = view.pending(place);
            let spent = pending.min(tick);
            let ends = view.work_left <= tick - spent && view.time_left() >= tick;
            let carries = place.kind == Kind::OnDemand && slack >= pending;
            carries || ends || slack - spent >= fallback
        }
    }
}

/// Whether the choice can be made at all: a zone that exists, spot not known to be gone.
fn exists(view: &View<'_>, choice: Choice) -> bool {
    match choice {
        Choice::Nothing => true,
        Choice::Run(Place { zone, kind }) => {
            zone < view.terms.zones.len()
                && (kind == Kind::OnDemand || view.zones[zone].spot != Sight::Gone)
        }
    }
}

/// The choice where it exists and is safe; else on-demand, which is then safe if anything is.
pub fn guarded(view: &View<'_>, choice: Choice) -> Choice {
    match exists(view, choice) && allows(view, choice) {
        true => choice,
        false => Choice::Run(view.on_demand()),
    }
}
