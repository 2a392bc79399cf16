//! The providers of a cluster, one for each ComputeProvider object, and their newest offers.
//!
//! A provider whose object is gone stays as long as there are claims on it (its finalizer sees to
//! that): machines that bill can always be ended.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::estimate::{Correction, Corrections};
use petaflop_arbiter::market::Market;
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::{Offer, OfferId};
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::world::Unavailable;
use petaflop_crds::ComputeProvider;
use petaflop_crds::compute_provider::{BrokenOffers, LearnedRate, ProviderFacts};
use petaflop_providers::{Provider, ProviderError};

use crate::accelerators::Broken;
use crate::claims::StoredClaim;
use crate::cluster::Handle;
use crate::cluster::metrics::Metrics;
use crate::learned::Lesson;
use crate::unmet::Unmet;

/// Kinds of machines of one provider whose rates are remembered: its status has room for no more.
const MOST_RATES: usize = 64;

/// Makes providers from their objects. Tests make fakes.
pub trait MakeProvider: Send + Sync {
    /// Whom to tell that a claim's machine may be gone, where that is learned before anybody asks.
    /// Said once, before the first provider is made.
    fn tells(&self, _whom: &Handle) {}

    /// The provider of an object.
    ///
    /// # Errors
    /// Why there can be none: no such Secret, a type that is not built.
    fn make(&self, object: &ComputeProvider) -> Result<Arc<dyn Provider>, ProviderError>;
}

/// One provider.
#[derive(Clone)]
pub struct Known {
    /// The object, as last seen.
    pub object: Arc<ComputeProvider>,
    /// What it is asked through; `Err`: why it cannot be asked.
    pub provider: Result<Arc<dyn Provider>, ProviderError>,
    /// What it offered last, without the accelerators that its owner does not let be had.
    pub offers: Arc<Vec<Offer>>,
    /// The cheapest of them.
    pub cheapest: Option<crate::cluster::spend_budget::Price>,
    /// When it did.
    pub quoted_at: Option<Timestamp>,
    /// Why it did not, the last time it was asked.
    pub trouble: Option<ProviderError>,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known")
            .field("offers", &self.offers.len())
            .field("trouble", &self.trouble)
            .finish_non_exhaustive()
    }
}

/// All of them. Clones are the same registry.
#[derive(Clone)]
pub struct Registry {
    make: Arc<dyn MakeProvider>,
    metrics: Metrics,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    known: BTreeMap<String, Known>,
    /// What all of them offer; changed as they are asked, and lent as it is.
    market: Arc<Market>,
    /// When sums and prices of a provider were written last.
    figures: BTreeMap<String, Timestamp>,
    unavailable: Vec<Unavailable>,
    broken: Broken,
    unmet: Unmet,
    /// What runs on machines of each taught.
    learned: BTreeMap<String, Corrections>,
    /// By claim's uid, until when it is not bought for.
    rests: BTreeMap<String, Timestamp>,
    /// Since when no claim is on it.
    unneeded: BTreeMap<String, Timestamp>,
}

impl Registry {
    /// An empty one.
    pub fn new(make: Arc<dyn MakeProvider>, metrics: Metrics) -> Self {
        Self { make, metrics, inner: Arc::default() }
    }

    /// Takes an object over. A changed spec makes a new provider, and so does another list of regions
    /// to look through beside it; what it offered before is void.
    pub fn put(&self, name: &str, object: Arc<ComputeProvider>) {
        let mut inner = self.lock();
        if let Some(status) = &object.status {
            let rates: Vec<_> = status.rates.iter().cloned().map(Correction::from).collect();
            inner.learned.entry(name.to_owned()).or_default().catch_up(&rates);
        }
        if let Some(known) = inner.known.get_mut(name)
            && known.object.spec == object.spec
            && known.object.former_regions() == object.former_regions()
        {
            known.object = object;
            return;
        }
        let provider = self.make.make(&object).map(|provider| self.metrics.counted(provider));
        let known = Known {
            object,
            trouble: provider.as_ref().err().cloned(),
            provider,
            offers: Arc::default(),
            cheapest: None,
            quoted_at: None,
        };
        // Of before a restart, where this is the first that is seen of it.
        if let Some(status) = &known.object.status {
            inner.broken.remember(name, &status.broken);
        }
        inner.known.insert(name.to_owned(), known);
        Arc::make_mut(&mut inner.market).replace(name, &[]);
    }

    /// An object is gone, and no claim needs its provider.
    pub fn remove(&self, name: &str) {
        let mut inner = self.lock();
        inner.known.remove(name);
        inner.unneeded.remove(name);
        Arc::make_mut(&mut inner.market).replace(name, &[]);
    }

    /// Since when no claim is on a provider, as far as is known: not before this was asked first, nor
    /// before the last one went.
    pub fn unneeded_since(&self, name: &str, now: Timestamp, left: bool) -> Timestamp {
        let mut inner = self.lock();
        let since = inner.unneeded.entry(name.to_owned()).or_insert(now);
        if left {
            *since = now;
        }
        *since
    }

    /// Whoever led meanwhile may have had claims.
    pub fn forget_unneeded(&self) {
        self.lock().unneeded.clear();
    }

    /// What all of them offer now. What is quoted later does not change it.
    pub fn market(&self) -> Arc<Market> {
        self.lock().market.clone()
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<Known> {
        self.lock().known.get(name).cloned()
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.lock().known.keys().cloned().collect()
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<(String, Known)> {
        self.lock().known.iter().map(|(name, known)| (name.clone(), known.clone())).collect()
    }

    /// Asks a provider what it offers. Returns whether that differs from what it offered before in
    /// more than the time of the quote.
    pub async fn refresh(&self, name: &str, now: Timestamp) -> bool {
        let Some(known) = self.get(name) else { return false };
        let quote = match &known.provider {
            Ok(provider) => provider.quote().await,
            Err(error) => Err(error.clone()),
        };
        let mut inner = self.lock();
        let Inner { known, market, .. } = &mut *inner;
        let Some(entry) = known.get_mut(name) else { return false };
        match quote {
            Ok(mut offers) => {
                for offer in &mut offers {
                    offer.price = entry.object.spec.adjusted(offer.price);
                }
                let doubles = Arc::make_mut(market).replace(name, &offers);
                self.metrics.doubled(name, doubles as u64);
                // Decisions know the others too, and say why they are not taken.
                let rule = entry.object.spec.accelerators.rule();
                let admitted = |offer: &Offer| {
                    offer.accelerators.as_ref().is_none_or(|devices| rule.admits(devices))
                };
                offers.retain(admitted);
                let same = entry.trouble.is_none() && same_offers(&entry.offers, &offers);
                entry.cheapest = crate::cluster::budgets::cheapest(&offers);
                entry.offers = Arc::new(offers);
                entry.quoted_at = Some(now);
                entry.trouble = None;
                !same
            }
            // Its last offers stay; they grow too old to buy from by themselves.
            Err(error) => {
                let same = entry.trouble.as_ref() == Some(&error);
                entry.trouble = Some(error);
                !same
            }
        }
    }

    /// Whether sums and prices may be written to its status for their own sake.
    pub fn figures_are_due(&self, name: &str, now: Timestamp) -> bool {
        let written = self.lock().figures.get(name).copied();
        written.is_none_or(|at| now.duration_since(at) >= crate::cluster::spend_budget::REFRESH)
    }

    /// They were.
    pub fn figures_written(&self, name: &str, now: Timestamp) {
        self.lock().figures.insert(name.to_owned(), now);
    }

    /// Leaves an offer alone for a while.
    pub fn leave_alone(&self, offer: &OfferId, until: Timestamp, reason: Reason) {
        let mut inner = self.lock();
        inner.unavailable.retain(|entry| entry.offer != *offer);
        inner.unavailable.push(Unavailable { offer: offer.clone(), until, reason });
    }

    /// Leaves everything that a provider offers alone for a while.
    pub fn leave_all_alone(&self, name: &str, until: Timestamp, reason: Reason) {
        let offers = self.get(name).map(|known| known.offers).unwrap_or_default();
        let all: HashSet<&OfferId> = offers.iter().map(|offer| &offer.id).collect();
        let mut inner = self.lock();
        inner.unavailable.retain(|entry| !all.contains(&entry.offer));
        let refused = |offer: &OfferId| Unavailable { offer: offer.clone(), until, reason };
        inner.unavailable.extend(all.into_iter().map(refused));
    }

    /// A claim's machine lacks the accelerators that it was bought for: its class of offers is left alone
    /// for a while. Counted once a claim. Returns whether that is new.
    pub fn leave_class_alone(&self, stored: &StoredClaim, now: Timestamp) -> bool {
        let offer = &stored.claim.spec.offer;
        let new = self.lock().broken.add(&stored.claim.uid, offer, now);
        if new {
            self.metrics.unfit(&offer.provider, Reason::AcceleratorProbeFailed);
        }
        new
    }

    /// Nobody was met on a claim's machine: its offer is left alone for a while. Returns whether that is
    /// new.
    pub fn leave_unmet_alone(&self, stored: &StoredClaim, now: Timestamp) -> bool {
        self.lock().unmet.add(&stored.claim.uid, &stored.claim.spec.offer, now)
    }

    /// What of a provider's offers is left alone for that now.
    pub fn broken(&self, name: &str, now: Timestamp) -> Vec<BrokenOffers> {
        self.lock().broken.of_provider(name, now)
    }

    /// A claim's purchase was refused for now.
    pub fn rest(&self, claim_uid: &str, until: Timestamp, now: Timestamp) {
        let mut inner = self.lock();
        inner.rests.retain(|_, until| *until > now);
        inner.rests.insert(claim_uid.to_owned(), until);
    }

    /// How long a claim is not to be bought for yet.
    pub fn rests_for(&self, claim_uid: &str, now: Timestamp) -> Option<SignedDuration> {
        let until = self.lock().rests.get(claim_uid).copied()?;
        Some(until.duration_since(now)).filter(SignedDuration::is_positive)
    }

    /// Offers that are left alone now.
    pub fn unavailable(&self, now: Timestamp) -> Vec<Unavailable> {
        let mut inner = self.lock();
        inner.unavailable.retain(|entry| entry.until > now);
        let offers = || inner.known.values().flat_map(|known| known.offers.iter());
        let broken = inner.broken.among(offers().filter(|_| !inner.broken.is_empty()), now);
        let unmet = inner.unmet.among(offers().filter(|_| !inner.unmet.is_empty()), now);
        inner.unavailable.iter().cloned().chain(broken).chain(unmet).collect()
    }

    /// A run on a claim's machine has ended well: its rate counts from now on.
    pub fn learn(&self, provider: &str, lesson: &Lesson) {
        let mut inner = self.lock();
        let learned = inner.learned.entry(provider.to_owned()).or_default();
        // A provider's own status has room for so many kinds of machines.
        let before = learned.clone();
        lesson.teach(learned);
        if learned.entries.len() > MOST_RATES {
            *learned = before;
        }
    }

    /// What runs on machines of a provider taught, for its status.
    pub fn rates(&self, name: &str) -> Vec<LearnedRate> {
        let inner = self.lock();
        let learned = inner.learned.get(name).into_iter().flat_map(|learned| &learned.entries);
        learned.cloned().map(LearnedRate::from).collect()
    }

    /// What runs taught, wherever they were.
    pub fn corrections(&self) -> Corrections {
        let mut all = Corrections::default();
        self.lock().learned.values().for_each(|learned| all.take_in(&learned.entries));
        all
    }

    /// What decisions need to know of a provider beside its object.
    pub fn facts(known: &Known, spent_this_month: Usd) -> ProviderFacts {
        ProviderFacts {
            // One that never said anything sells nothing for now.
            usable: known.provider.is_ok() && known.quoted_at.is_some(),
            spent_this_month,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn same_offers(old: &[Offer], new: &[Offer]) -> bool {
    old.len() == new.len()
        && old.iter().zip(new).all(|(old, new)| {
            let dated = Offer { quoted_at: old.quoted_at, ..new.clone() };
            *old == dated
        })
}
