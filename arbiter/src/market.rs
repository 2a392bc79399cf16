//! The market: all current offers, indexed so that the cheapest that will do is found without
//! looking at the rest.
//!
//! Three levels. A [`Shelf`] holds what has provider, capacity type, owner and accelerator model in
//! common: most requests pass most shelves by after one look. On it lies a [`Stock`] for each
//! *class*, offers of equal hardware: what fits, how fast it is and how long it takes to start
//! depend on the class alone, so a decision works these out once a class. Within a stock the offers
//! lie by place, in each place from the cheapest up.
//!
//! The market is built once and changed in place as quotes arrive. A clone is a snapshot: it shares
//! everything, and what changes later is copied first, stock by stock, so who reads never waits.

mod ids;
mod stock;

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::catalogue::Catalogue;
use crate::offer::{Accelerators, Arch, Capacity, HostOwner, MeasuredRates, Offer, OfferId};

use ids::{Ids, Unseeded};
use stock::Listed;
pub(crate) use stock::{Aisle, Stock};
use stock::{ShelfKey, StockKey};

/// What the offers of one class have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// Name of the provider.
    pub provider: String,
    /// How it is held.
    pub capacity: Capacity,
    /// Devices, if any.
    pub accelerators: Option<Accelerators>,
    /// Row of the devices in the catalogue, where it has one.
    pub catalogue_row: Option<usize>,
    /// Instruction set of the processor.
    pub arch: Arch,
    /// Processors in thousandths, where known.
    pub vcpu_milli: Option<u32>,
    /// Host memory in bytes, where known.
    pub memory: Option<u64>,
    /// Whether somebody we can name owns the machine.
    pub owner: HostOwner,
    /// Measured rates of the processor.
    pub measured: Option<MeasuredRates>,
    /// Expected losses an hour, where the provider tells.
    pub interruptions_per_hour: Option<f64>,
    /// Whether the offers can be taken.
    pub buyable: bool,
}

impl Class {
    /// That of an offer, whether the market still holds it or not.
    pub fn of(offer: &Offer) -> Class {
        Class {
            provider: offer.provider.clone(),
            capacity: offer.capacity,
            catalogue_row: offer
                .accelerators
                .as_ref()
                .and_then(|devices| Catalogue::embedded().position(&devices.model)),
            accelerators: offer.accelerators.clone(),
            arch: offer.arch,
            vcpu_milli: offer.vcpu_milli,
            memory: offer.memory,
            owner: offer.owner,
            measured: offer.measured,
            interruptions_per_hour: offer.interruptions_per_hour,
            buyable: offer.sale.is_buyable(),
        }
    }
}

/// Where offers are: a region and a zone of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// As [`Offer::region`].
    pub region: String,
    /// As [`Offer::zone`].
    pub zone: String,
}

/// The classes that one look can rule out together. Never empty.
#[derive(Clone)]
pub(crate) struct Shelf {
    /// With the hash of the [`StockKey`], in the order of both.
    stocks: Vec<(u64, Arc<Stock>)>,
    offers: u32,
}

impl Shelf {
    /// One of its classes. Provider, capacity type, owner, sale and model are those of all.
    pub(crate) fn example(&self) -> Option<&Class> {
        self.stocks.first().map(|(_, stock)| stock.class())
    }

    pub(crate) fn stocks(&self) -> impl Iterator<Item = &Stock> {
        self.stocks.iter().map(|(_, stock)| &**stock)
    }

    /// Offers on it.
    pub(crate) const fn len(&self) -> u32 {
        self.offers
    }

    fn key(&self) -> Option<ShelfKey<'_>> {
        self.example().map(ShelfKey::of_class)
    }

    /// Where the stock of a key is, or would be.
    fn find(&self, hash: u64, key: StockKey) -> Result<usize, usize> {
        self.stocks
            .binary_search_by(|(known, stock)| known.cmp(&hash).then_with(|| stock.key().cmp(&key)))
    }
}

/// All current offers. Clones share what does not change.
#[derive(Clone, Default)]
pub struct Market {
    /// With the hash of the [`ShelfKey`], in the order of both: a search for one looks at no other,
    /// and no answer depends on the order in which offers came.
    shelves: Vec<(u64, Arc<Shelf>)>,
    ids: Ids,
    places: Arc<Places>,
    doubles: usize,
}

/// Places by number; a number never changes its meaning.
#[derive(Clone, Default)]
struct Places {
    list: Vec<Place>,
    /// By region, then by zone.
    numbers: HashMap<String, HashMap<String, u32>>,
}

impl Places {
    fn add(&mut self, place: Place) -> u32 {
        let next = u32::try_from(self.list.len()).expect("fewer places than 2^32");
        let zones = self.numbers.entry(place.region.clone()).or_default();
        zones.insert(place.zone.clone(), next);
        self.list.push(place);
        next
    }

    /// The number of an offer's place.
    fn find(&self, offer: &Offer) -> Option<u32> {
        self.numbers.get(&offer.region)?.get(&offer.zone).copied()
    }
}

impl Market {
    /// An index over offers. Of two with the same id the later quote counts, the first of equals;
    /// how many were left out so is in [`Market::doubles`].
    pub fn new(offers: impl IntoIterator<Item = Offer>) -> Market {
        let mut market = Market::default();
        for offer in offers {
            let known = market.ids.get(&offer.id).map(|known| known.quoted_at);
            market.doubles += usize::from(known.is_some());
            if known.is_none_or(|known| known < offer.quoted_at) {
                market.ids.put(Arc::new(offer));
            }
        }
        let offers: Vec<Arc<Offer>> = market.ids.iter().cloned().collect();
        let places = Arc::make_mut(&mut market.places);
        let mut numbers: HashMap<(&str, &str), u32> = HashMap::new();
        let mut groups: HashMap<(ShelfKey<'_>, StockKey), Vec<Listed>> = HashMap::new();
        for offer in &offers {
            let place = *numbers
                .entry((&offer.region, &offer.zone))
                .or_insert_with(|| places.add(place_of(offer)));
            let key = (ShelfKey::of(offer), StockKey::of(offer));
            groups.entry(key).or_default().push(Listed::new(place, offer.clone()));
        }
        let mut groups: Vec<_> = groups
            .into_iter()
            .map(|((shelf, stock), list)| (hash_of(shelf), shelf, hash_of(stock), stock, list))
            .collect();
        groups.sort_unstable_by(|a, b| (a.0, a.1, a.2, a.3).cmp(&(b.0, b.1, b.2, b.3)));
        for group in groups.chunk_by_mut(|a, b| a.1 == b.1) {
            let mut shelf = Shelf { stocks: Vec::with_capacity(group.len()), offers: 0 };
            for (_, _, hash, _, list) in group.iter_mut() {
                shelf.offers += list.len() as u32;
                let stock = Stock::of(std::mem::take(list));
                shelf.stocks.extend(stock.map(|stock| (*hash, Arc::new(stock))));
            }
            market.shelves.push((group[0].0, Arc::new(shelf)));
        }
        market
    }

    /// Takes a new quote in: replaces the offer of the same id. A quote that is older than the one
    /// known came late and changes nothing; says whether it was taken.
    pub fn quote(&mut self, offer: Offer) -> bool {
        if self.get(&offer.id).is_some_and(|known| offer.quoted_at < known.quoted_at) {
            return false;
        }
        self.withdraw(&offer.id);
        let place = self.place(&offer);
        let offer = Arc::new(offer);
        self.ids.put(offer.clone());
        let (shelf_key, stock_key) = (ShelfKey::of(&offer), StockKey::of(&offer));
        let hash = hash_of(shelf_key);
        let at = match self.find(hash, shelf_key) {
            Ok(at) => at,
            Err(at) => {
                let shelf = Shelf { stocks: Vec::new(), offers: 0 };
                self.shelves.insert(at, (hash, Arc::new(shelf)));
                at
            }
        };
        let shelf = Arc::make_mut(&mut self.shelves[at].1);
        shelf.offers += 1;
        let hash = hash_of(stock_key);
        let listed = Listed::new(place, offer.clone());
        match shelf.find(hash, stock_key) {
            Ok(at) => Arc::make_mut(&mut shelf.stocks[at].1).put(listed),
            Err(at) => {
                let stock = Stock::of(vec![listed]).map(|stock| (hash, Arc::new(stock)));
                shelf.stocks.splice(at..at, stock);
            }
        }
        true
    }

    /// Takes an offer out. Says whether it was there.
    pub fn withdraw(&mut self, id: &OfferId) -> bool {
        let Some(offer) = self.ids.take(id) else {
            return false;
        };
        let Some(place) = self.places.find(&offer) else {
            return false;
        };
        let key = ShelfKey::of(&offer);
        let Ok(at) = self.find(hash_of(key), key) else {
            return false;
        };
        let shelf = Arc::make_mut(&mut self.shelves[at].1);
        let key = StockKey::of(&offer);
        if let Ok(at) = shelf.find(hash_of(key), key) {
            shelf.offers -= 1;
            if shelf.stocks[at].1.len() == 1 {
                shelf.stocks.remove(at);
            } else {
                Arc::make_mut(&mut shelf.stocks[at].1).take(place, &offer);
            }
        }
        if shelf.stocks.is_empty() {
            self.shelves.remove(at);
        }
        true
    }

    /// Takes in everything that one provider offers now: what it no longer offers is withdrawn, what
    /// did not change costs nothing but the comparison. How many quotes were left out, since the id of
    /// each is that of another, as late or later.
    pub fn replace(&mut self, provider: &str, offers: &[Offer]) -> usize {
        let mut newest: HashMap<&OfferId, &Offer> = HashMap::with_capacity(offers.len());
        for offer in offers {
            let known = newest.entry(&offer.id).or_insert(offer);
            if known.quoted_at < offer.quoted_at {
                *known = offer;
            }
        }
        let mut doubles = offers.len() - newest.len();
        let known = |offer: &Offer| self.get(&offer.id) == Some(offer);
        let changed: Vec<&Offer> = newest.values().copied().filter(|offer| !known(offer)).collect();
        if changed.len() > self.len() / REBUILT_FROM {
            let others = self.offers().filter(|offer| offer.provider != provider);
            let all = others.chain(newest.into_values()).cloned().collect::<Vec<_>>();
            *self = Market::new(all);
            return doubles + self.doubles;
        }
        let of_it = self.offers().filter(|offer| offer.provider == provider);
        let gone = of_it.filter(|offer| newest.get(&offer.id).is_none_or(|now| !known(now)));
        for id in gone.map(|offer| offer.id.clone()).collect::<Vec<_>>() {
            self.withdraw(&id);
        }
        for offer in changed {
            // Another provider may have quoted the same id later.
            doubles += usize::from(!self.quote(offer.clone()));
        }
        doubles
    }

    /// How many of the quotes that it was built from were left out for another of the same id.
    pub const fn doubles(&self) -> usize {
        self.doubles
    }

    /// How many offers there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ids.len() == 0
    }

    /// The offer of an id.
    pub fn get(&self, id: &OfferId) -> Option<&Offer> {
        self.ids.get(id)
    }

    /// All offers, class by class.
    pub fn offers(&self) -> impl Iterator<Item = &Offer> {
        self.stocks().flat_map(Stock::offers)
    }

    /// How many classes there are.
    pub fn classes(&self) -> usize {
        self.shelves().map(|shelf| shelf.stocks.len()).sum()
    }

    pub(crate) fn shelves(&self) -> impl Iterator<Item = &Shelf> {
        self.shelves.iter().map(|(_, shelf)| &**shelf)
    }

    pub(crate) fn stocks(&self) -> impl Iterator<Item = &Stock> {
        self.shelves().flat_map(Shelf::stocks)
    }

    /// All places, by the numbers that stocks speak of them with.
    pub(crate) fn places(&self) -> &[Place] {
        &self.places.list
    }

    /// Where the shelf of a key is, or would be.
    fn find(&self, hash: u64, key: ShelfKey<'_>) -> Result<usize, usize> {
        self.shelves.binary_search_by(|(known, shelf)| {
            known.cmp(&hash).then_with(|| shelf.key().cmp(&Some(key)))
        })
    }

    /// The number of an offer's place.
    fn place(&mut self, offer: &Offer) -> u32 {
        if let Some(number) = self.places.find(offer) {
            return number;
        }
        // Places that nothing is at any more are forgotten all at once, before they outnumber the offers.
        if self.places.list.len() > 2 * self.len() + MOST_IDLE_PLACES {
            *self = Market::new(self.offers().cloned().collect::<Vec<_>>());
        }
        Arc::make_mut(&mut self.places).add(place_of(offer))
    }
}

fn hash_of(key: impl Hash) -> u64 {
    Unseeded::default().hash_one(key)
}

/// From one in so many changed offers on it is quicker to build the market anew.
const REBUILT_FROM: usize = 16;

/// Places without offers that are kept whatever the size of the market.
const MOST_IDLE_PLACES: usize = 1024;

fn place_of(offer: &Offer) -> Place {
    Place { region: offer.region.clone(), zone: offer.zone.clone() }
}

impl std::fmt::Debug for Market {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.offers()).finish()
    }
}

impl Market {
    /// The offers in the order of their ids: the form that is written down and compared.
    fn canonical(&self) -> Vec<&Offer> {
        let mut offers: Vec<&Offer> = self.offers().collect();
        offers.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        offers
    }
}

impl PartialEq for Market {
    /// The same offers, however they came in.
    fn eq(&self, other: &Market) -> bool {
        self.canonical() == other.canonical()
    }
}

impl Serialize for Market {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.canonical())
    }
}

impl<'de> Deserialize<'de> for Market {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Market, D::Error> {
        let market = Vec::<Offer>::deserialize(deserializer).map(Market::new)?;
        match market.doubles {
            0 => Ok(market),
            // What we write has each once: somebody else has changed it.
            doubles => Err(D::Error::custom(format_args!(
                "{doubles} of the offers have the id of another; leave one of each"
            ))),
        }
    }
}
