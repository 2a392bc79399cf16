//! Offers by id, in so many parts that changing one of them copies little of what a snapshot shares.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::offer::{Offer, OfferId};

const PARTS: u64 = 256;

/// Without a seed: the same everywhere. Who chooses offer ids sells machines; he gains nothing by slow look-ups.
pub(super) type Unseeded = BuildHasherDefault<DefaultHasher>;

/// Offers by id.
#[derive(Clone)]
pub(super) struct Ids {
    parts: Vec<Arc<HashSet<ById, Unseeded>>>,
    len: usize,
}

/// An offer that is looked for by its id.
#[derive(Clone)]
struct ById(Arc<Offer>);

impl Default for Ids {
    fn default() -> Ids {
        Ids { parts: vec![Arc::default(); PARTS as usize], len: 0 }
    }
}

impl Ids {
    fn part(id: &OfferId) -> usize {
        // The sets take the lower bits of the same hash.
        (Unseeded::default().hash_one(id) >> 32 & (PARTS - 1)) as usize
    }

    pub(super) fn get(&self, id: &OfferId) -> Option<&Offer> {
        self.parts[Ids::part(id)].get(id).map(|ById(offer)| &**offer)
    }

    /// Puts an offer in, in the place of that of the same id.
    pub(super) fn put(&mut self, offer: Arc<Offer>) {
        let part = Arc::make_mut(&mut self.parts[Ids::part(&offer.id)]);
        self.len += usize::from(part.replace(ById(offer)).is_none());
    }

    pub(super) fn take(&mut self, id: &OfferId) -> Option<Arc<Offer>> {
        let part = &mut self.parts[Ids::part(id)];
        if !part.contains(id) {
            return None;
        }
        let ById(offer) = Arc::make_mut(part).take(id)?;
        self.len -= 1;
        Some(offer)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Offer>> {
        self.parts.iter().flat_map(|part| part.iter()).map(|ById(offer)| offer)
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }
}

impl Borrow<OfferId> for ById {
    fn borrow(&self) -> &OfferId {
        &self.0.id
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &ById) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}
