//! Placing one workload: the best offers, and what came nearest where none will do.
//!
//! Work is done once a class where it can be: place and fit checks, and the [`Course`]. Within a
//! class offers are looked at from the cheapest up, until none that follows can matter.

use std::collections::HashMap;

use crate::candidates::{Best, Candidate, Found, Promise};
use crate::checks::{of_class, rises_with_price};
use crate::claim::Device;
use crate::decision::{MISSES_SHOWN, Miss};
use crate::fit::{self, All, First};
use crate::market::Class;
use crate::money::Usd;
use crate::objective::Course;
use crate::obstacle::{Check, Obstacle};
use crate::offer::{Capacity, Offer};
use crate::pass::Pass;
use crate::workload::Workload;

impl<'a> Pass<'a> {
    /// Finds the best offers for one machine of a workload.
    pub(crate) fn search(&self, workload: &'a Workload) -> Found<'a> {
        let mut takeable = Best::new();
        let mut dated = Best::new();
        let mut on_demand: Option<Candidate<'a>> = None;
        let mut stopped = vec![0u32; Check::ALL.len()];
        for (class, members) in self.world.market.classes() {
            let Some(cheapest) = members.iter().next() else {
                continue;
            };
            let count = members.len() as u32;
            let mut first = First::default();
            let Some(provider) = self.check_provider(workload, class, &mut first) else {
                stopped[first.0.unwrap_or(Check::ProviderUnknown) as usize] += count;
                continue;
            };
            // An on-demand class is compared with even where another capacity type is asked for.
            let compare = class.capacity == Capacity::OnDemand;
            let other_capacity =
                workload.placement.capacity.is_some_and(|needs| needs != class.capacity);
            if other_capacity {
                stopped[Check::CapacityType as usize] += count;
                if !compare {
                    continue;
                }
            }
            let choice = self.choose_device(workload, class, provider, &mut first);
            let Some((device, course, promise)) = choice else {
                if !other_capacity {
                    stopped[first.0.unwrap_or(Check::Engine) as usize] += count;
                }
                continue;
            };
            let candidate = |offer: &'a Offer| Candidate {
                offer,
                device,
                course,
                total: course.dollars(offer.price),
                promise,
            };
            if compare
                && on_demand.as_ref().is_none_or(|best| candidate(cheapest).key() < best.key())
            {
                let found = members
                    .iter()
                    .map(candidate)
                    .take_while(|one| on_demand.as_ref().is_none_or(|best| one.key() < best.key()))
                    .find(|one| {
                        self.check_offer(workload, one.offer, one.total, &mut First::default())
                    });
                on_demand = found.or(on_demand);
            }
            if other_capacity {
                continue;
            }
            let (best, pruned) = match class.buyable {
                true => (&mut takeable, Check::Dearer),
                false => (&mut dated, Check::NotForSale),
            };
            for (seen, offer) in members.iter().enumerate() {
                let one = candidate(offer);
                let rest = count - seen as u32;
                if !best.wants(&one) {
                    stopped[pruned as usize] += rest;
                    break;
                }
                let mut first = First::default();
                if self.check_offer(workload, offer, one.total, &mut first) {
                    self.check_now(workload, offer, &one.course, one.total, &mut first);
                }
                match first.0 {
                    None => best.take(one),
                    Some(Check::NotForSale) => {
                        best.take(one);
                        stopped[Check::NotForSale as usize] += 1;
                    }
                    // What follows costs no less.
                    Some(check) if rises_with_price(check) => {
                        stopped[check as usize] += rest;
                        break;
                    }
                    Some(check) => stopped[check as usize] += 1,
                }
            }
        }
        // Each offer is counted once: the chosen one as none, what it beat as dearer.
        let others = takeable.taken.saturating_sub(1);
        stopped[Check::Dearer as usize] += others;
        Found { takeable: takeable.list, dated: dated.list, on_demand, stopped }
    }

    /// The offers that came nearest, each with everything that would have to give: fewest
    /// obstacles first, then the smallest distance. At most two of the same kind.
    pub(crate) fn misses(&self, workload: &'a Workload) -> Vec<Miss> {
        let mut seen: Vec<(usize, f64, Verdict<'a>)> = Vec::new();
        for (class, members) in self.world.market.classes() {
            let Some(view) = self.view(workload, class) else {
                continue;
            };
            let mut settled = 0;
            for offer in members.iter() {
                let verdict = self.verdict(workload, &view, offer);
                if verdict.obstacles.is_empty() {
                    continue;
                }
                // What only the class and the price stop is nearer than everything dearer of the class.
                let checks = || verdict.obstacles.iter().map(Obstacle::check);
                settled +=
                    u32::from(checks().all(|check| of_class(check) || rises_with_price(check)));
                let distance = verdict.obstacles.iter().map(Obstacle::distance).sum();
                seen.push((verdict.obstacles.len(), distance, verdict));
                if settled == SAME_KIND {
                    break;
                }
            }
        }
        seen.sort_by(|a, b| {
            (a.0, a.1)
                .partial_cmp(&(b.0, b.1))
                .unwrap_or(std::cmp::Ordering::Equal)
                .then_with(|| a.2.offer.price.cmp(&b.2.offer.price))
                .then_with(|| a.2.offer.id.cmp(&b.2.offer.id))
        });
        let mut kinds: HashMap<Vec<Check>, u32> = HashMap::new();
        seen.into_iter()
            .filter(|(_, _, verdict)| {
                let kind = verdict.obstacles.iter().map(Obstacle::check).collect();
                let count = kinds.entry(kind).or_default();
                *count += 1;
                *count <= SAME_KIND
            })
            .take(MISSES_SHOWN)
            .map(|(_, _, verdict)| Miss {
                total: verdict.course.map(|(course, _)| course.dollars(verdict.offer.price)),
                offer: verdict.offer.clone(),
                obstacles: verdict.obstacles,
            })
            .collect()
    }

    /// Every offer with everything that stands in its way. For people who ask, not for deciding.
    pub(crate) fn verdicts(&self, workload: &'a Workload) -> Vec<Verdict<'a>> {
        let mut verdicts = Vec::with_capacity(self.world.market.len());
        for (class, members) in self.world.market.classes() {
            if let Some(view) = self.view(workload, class) {
                let all = members.iter();
                verdicts.extend(all.map(|offer| self.verdict(workload, &view, offer)));
            }
        }
        verdicts
    }

    /// A class on the device that has fewest obstacles, and of two with as many the faster.
    fn view(&self, workload: &Workload, class: &Class) -> Option<View> {
        let mut of_provider = All::default();
        let provider = self.check_provider(workload, class, &mut of_provider);
        if let Some(needs) = workload.placement.capacity
            && needs != class.capacity
        {
            let has = class.capacity;
            of_provider.0.push(Obstacle::CapacityType { needs, has });
        }
        let (better, other) = fit::devices(workload, class);
        [Some(better), other]
            .into_iter()
            .flatten()
            .map(|device| {
                let mut sink = All(of_provider.0.clone());
                let course = provider.and_then(|provider| {
                    self.check_device(workload, class, provider, device, &mut sink)
                });
                View { device, course, obstacles: sink.0 }
            })
            .min_by_key(|view| {
                let millis = view.course.and_then(|(course, _)| course.millis_to_end());
                (view.obstacles.len(), millis)
            })
    }

    fn verdict(&self, workload: &Workload, view: &View, offer: &'a Offer) -> Verdict<'a> {
        let mut sink = All(view.obstacles.clone());
        match &view.course {
            Some((course, _)) => {
                let total = course.dollars(offer.price);
                self.check_offer(workload, offer, total, &mut sink);
                self.check_now(workload, offer, course, total, &mut sink);
            }
            // Without a course there are no dollars to check, but there are places and prices.
            None => {
                self.check_offer(workload, offer, Usd::ZERO, &mut sink);
                let dated = offer.not_for_sale();
                sink.0.extend(dated.map(|note| Obstacle::NotForSale { note }));
            }
        }
        sink.0.sort_by_key(Obstacle::check);
        Verdict { offer, device: view.device, course: view.course, obstacles: sink.0 }
    }
}

/// Misses of one kind that are shown.
const SAME_KIND: u32 = 2;

/// What stands in the way of a whole class.
struct View {
    device: Device,
    course: Option<(Course, Promise)>,
    obstacles: Vec<Obstacle>,
}

/// One offer and everything that stands in its way.
pub(crate) struct Verdict<'a> {
    pub(crate) offer: &'a Offer,
    pub(crate) device: Device,
    pub(crate) course: Option<(Course, Promise)>,
    pub(crate) obstacles: Vec<Obstacle>,
}
