//! Every constraint, in the order of [`Check`]: those of the provider and the class, those of the
//! workload that an offer meets or not, and what stands in the way right now.

use crate::candidates::Promise;
use crate::claim::Device;
use crate::fit::{self, First, Sink};
use crate::limits::Limit;
use crate::market::Class;
use crate::money::Usd;
use crate::objective::Course;
use crate::obstacle::{Check, Obstacle};
use crate::offer::{Capacity, HostOwner, Offer, Share};
use crate::pass::Pass;
use crate::spread;
use crate::workload::{Work, Workload};
use crate::world::{ProviderState, Switch};

impl<'a> Pass<'a> {
    /// Checks of the provider of a class.
    pub(crate) fn check_provider(
        &self,
        workload: &Workload,
        class: &Class,
        sink: &mut impl Sink,
    ) -> Option<&'a ProviderState> {
        let Some(state) = self.provider(&class.provider) else {
            sink.hit(Check::ProviderUnknown, || Obstacle::ProviderUnknown {
                provider: class.provider.clone(),
            });
            return None;
        };
        let listed = &workload.placement.providers;
        if !listed.is_empty()
            && !listed.contains(&state.name)
            && !sink.hit(Check::ProviderNotListed, || Obstacle::ProviderNotListed {
                provider: state.name.clone(),
            })
        {
            return None;
        }
        let namespace = &workload.id.namespace;
        if state.allowed_namespaces.as_ref().is_some_and(|allowed| !allowed.contains(namespace))
            && !sink.hit(Check::NamespaceNotAllowed, || Obstacle::NamespaceNotAllowed {
                provider: state.name.clone(),
                namespace: namespace.clone(),
            })
        {
            return None;
        }
        let open = match state.state {
            Switch::Enabled => true,
            // A dated price is compared with, whatever its provider is doing now.
            Switch::Cordoned | Switch::Disabled => !class.buyable,
        };
        if !open
            && !sink
                .hit(Check::ProviderOff, || Obstacle::ProviderOff { provider: state.name.clone() })
        {
            return None;
        }
        if let Some(devices) = &class.accelerators
            && !state.accelerators.admits(devices)
            && !sink.hit(Check::AcceleratorNotAllowed, || Obstacle::AcceleratorNotAllowed {
                provider: state.name.clone(),
                model: devices.model.clone(),
            })
        {
            return None;
        }
        if class.owner == HostOwner::Unknown
            && !workload.placement.allow_untrusted_hosts
            && !sink.hit(Check::UntrustedHost, || Obstacle::UntrustedHost)
        {
            return None;
        }
        if state.remote
            && !workload.tied.is_empty()
            && !sink.hit(Check::OutOfReach, || Obstacle::OutOfReach {
                provider: state.name.clone(),
                needs: workload.tied.join(" and "),
            })
        {
            return None;
        }
        let needs = workload.resources.disk;
        if let Some(has) = state.disk.filter(|has| needs > *has)
            && !sink.hit(Check::Disk, || Obstacle::Disk { needs, has })
        {
            return None;
        }
        Some(state)
    }

    /// The part of a class's machines that would compute, and the course on it: the first that
    /// fits; of two that fit the faster.
    pub(crate) fn choose_device(
        &self,
        workload: &Workload,
        class: &Class,
        provider: &ProviderState,
        first: &mut First,
    ) -> Option<(Device, Course, Promise)> {
        let (better, other) = fit::devices(workload, class);
        let mut chosen: Option<(Device, Course, Promise)> = None;
        for device in [Some(better), other].into_iter().flatten() {
            let mut sink = First::default();
            match self.check_device(workload, class, provider, device, &mut sink) {
                Some((course, promise)) if sink.0.is_none() => {
                    let faster = chosen.is_none_or(|(_, best, _)| {
                        course.millis_to_end().unwrap_or(0) < best.millis_to_end().unwrap_or(0)
                    });
                    if faster {
                        chosen = Some((device, course, promise));
                    }
                }
                Some(_) | None => first.0 = first.0.max(sink.0),
            }
        }
        if chosen.is_some() {
            first.0 = None;
        }
        chosen
    }

    /// Everything that a class and one of its devices decide.
    pub(crate) fn check_device(
        &self,
        workload: &Workload,
        class: &Class,
        provider: &ProviderState,
        device: Device,
        sink: &mut impl Sink,
    ) -> Option<(Course, Promise)> {
        if !fit::check(workload, &self.world.support, class, device, sink) {
            return None;
        }
        let Some(course) = Course::of(self.world, workload, class, provider, device) else {
            match device {
                Device::Cpu => sink.hit(Check::Vcpus, || Obstacle::Vcpus {
                    needs: workload.resources.vcpu_milli.max(1000),
                    has: class.vcpu_milli,
                }),
                Device::Accelerators => {
                    sink.hit(Check::AcceleratorModel, || Obstacle::AcceleratorModel {
                        needs: "a known accelerator".to_owned(),
                        has: class.accelerators.as_ref().map_or_else(
                            || "no accelerator".to_owned(),
                            |devices| devices.model.clone(),
                        ),
                    })
                }
            };
            return None;
        };
        if let (Work::Serving(work), Some(millis)) = (&workload.work, course.millis_per_token)
            && let Some(limit) = work.max_millis_per_token
            && millis > f64::from(limit)
            && !sink
                .hit(Check::Latency, || Obstacle::Latency { limit, expected: millis.ceil() as u32 })
        {
            return None;
        }
        let promise = self.promise(workload, &course);
        // A promise that cannot be kept is not begun with; one that is breaking is made the best of.
        if let (Promise::Broken(late_millis), Some(finish_by)) = (promise, workload.finish_by)
            && workload.progress.placements == 0
            && !sink.hit(Check::Deadline, || Obstacle::Deadline { finish_by, late_millis })
        {
            return None;
        }
        Some((course, promise))
    }

    /// How a course stands to the workload's deadline.
    pub(crate) fn promise(&self, workload: &Workload, course: &Course) -> Promise {
        let (Some(finish_by), Some(expected), Some(late)) =
            (workload.finish_by, course.millis_to_end(), course.late_millis_to_end())
        else {
            return Promise::Kept;
        };
        let after = |millis: i64| {
            self.now_millis.saturating_add(millis).saturating_sub(finish_by.as_millisecond())
        };
        if after(expected) > 0 {
            Promise::Broken(after(expected))
        } else if after(late) > 0 {
            Promise::AtRisk(after(late))
        } else {
            Promise::Kept
        }
    }

    /// Constraints of the workload that depend on the offer: they hold for dated prices too.
    pub(crate) fn check_offer(
        &self,
        workload: &Workload,
        offer: &Offer,
        total: Usd,
        sink: &mut impl Sink,
    ) -> bool {
        let placement = &workload.placement;
        let excluded = placement.exclude_regions.contains(&offer.region);
        if (excluded
            || !(placement.regions.is_empty() || placement.regions.contains(&offer.region)))
            && !sink.hit(Check::Region, || Obstacle::Region { has: offer.region.clone(), excluded })
        {
            return false;
        }
        let elsewhere = !placement.zones.is_empty() && !placement.zones.contains(&offer.zone);
        if elsewhere && !sink.hit(Check::Zone, || Obstacle::Zone { has: offer.zone.clone() }) {
            return false;
        }
        if let Some(limit) = placement.max_hourly_price
            && offer.price > limit
            && !sink.hit(Check::HourlyPrice, || Obstacle::HourlyPrice { limit, price: offer.price })
        {
            return false;
        }
        if let Some(Limit { left, needs }) = self.own_limit(workload, total)
            && needs > left
            && !sink.hit(Check::TotalCost, || Obstacle::TotalCost { left, needs })
        {
            return false;
        }
        true
    }

    /// What stands in the way of taking the offer now.
    pub(crate) fn check_now(
        &self,
        workload: &Workload,
        offer: &Offer,
        course: &Course,
        total: Usd,
        sink: &mut impl Sink,
    ) -> bool {
        if let Some(note) = offer.not_for_sale() {
            return sink.hit(Check::NotForSale, || Obstacle::NotForSale { note });
        }
        let skew = i64::from(self.world.assumptions.clock_skew_seconds) * 1000;
        let quoted = offer.quoted_at.as_millisecond();
        if quoted.saturating_sub(self.now_millis) > skew
            && !sink
                .hit(Check::FutureQuote, || Obstacle::FutureQuote { quoted_at: offer.quoted_at })
        {
            return false;
        }
        let expires = quoted.saturating_add(i64::from(offer.ttl_seconds) * 1000);
        if expires <= self.now_millis
            && !sink.hit(Check::StaleQuote, || Obstacle::StaleQuote {
                quoted_at: offer.quoted_at,
                expired_at: offer.expires_at(),
            })
        {
            return false;
        }
        if let Some(entry) = self.unavailable.get(&offer.id)
            && entry.until > self.now
            && !sink.hit(Check::Unavailable, || Obstacle::Unavailable {
                until: entry.until,
                reason: entry.reason,
            })
        {
            return false;
        }
        if let Some(slots) = offer.slots
            && self.taken.slots.get(&offer.id).copied().unwrap_or(0) >= slots
            && !sink.hit(Check::NoSlot, || Obstacle::NoSlot { slots })
        {
            return false;
        }
        let left = |share: &Share| {
            let taken = self.taken.shares.get(&(offer.provider.as_str(), share.of.as_str()));
            share.all.saturating_sub(taken.copied().unwrap_or(0))
        };
        if let Some(short) = offer.shares.iter().find(|share| share.amount > left(share))
            && !sink.hit(Check::NoRoom, || Obstacle::NoRoom {
                of: short.of.clone(),
                needs: short.amount,
                left: left(short),
            })
        {
            return false;
        }
        if offer.capacity == Capacity::Spot
            && self.crowded.contains(&spread::place(offer))
            && !sink.hit(Check::Crowded, || Obstacle::Crowded {
                zone: if offer.zone.is_empty() { &offer.provider } else { &offer.zone }.clone(),
            })
        {
            return false;
        }
        self.check_provider_limits(offer, course, total, sink)
            && self.check_budgets(workload, offer, course, total, sink)
    }

    fn check_provider_limits(
        &self,
        offer: &Offer,
        course: &Course,
        total: Usd,
        sink: &mut impl Sink,
    ) -> bool {
        let Some(&index) = self.providers.get(offer.provider.as_str()) else {
            return true;
        };
        let state = &self.world.providers[index];
        if let Some(limit) = state.max_machines
            && self.taken.machines[index] >= limit
            && !sink.hit(Check::ProviderMachines, || Obstacle::ProviderMachines { limit })
        {
            return false;
        }
        if let Some(limit) = state.max_hourly {
            let left = limit.one_hour().saturating_sub(self.taken.hourly[index].one_hour());
            let needs = offer.price.one_hour();
            if needs > left
                && !sink.hit(Check::ProviderHourly, || Obstacle::ProviderHourly { left, needs })
            {
                return false;
            }
        }
        if let Some(Limit { left, needs }) = self.month_limit(offer, course, total)
            && needs > left
            && !sink.hit(Check::ProviderMonthly, || Obstacle::ProviderMonthly { left, needs })
        {
            return false;
        }
        true
    }

    fn check_budgets(
        &self,
        workload: &Workload,
        offer: &Offer,
        course: &Course,
        total: Usd,
        sink: &mut impl Sink,
    ) -> bool {
        for (budget, Limit { left, needs }) in self.budget_limits(workload, offer, course, total) {
            if needs > left
                && !sink.hit(Check::Budget, || Obstacle::Budget {
                    budget: budget.name.clone(),
                    left,
                    needs,
                })
            {
                return false;
            }
        }
        true
    }
}

/// Whether a check looks at class and place only: what it stops, it stops for all offers of the
/// class in that place.
pub(crate) fn of_place(check: Check) -> bool {
    check <= Check::Zone || check == Check::NotForSale
}

/// Whether what a check stopped stops everything dearer of the same class too.
pub(crate) const fn rises_with_price(check: Check) -> bool {
    matches!(
        check,
        Check::HourlyPrice
            | Check::TotalCost
            | Check::ProviderMachines
            | Check::ProviderHourly
            | Check::ProviderMonthly
            | Check::Budget
    )
}
