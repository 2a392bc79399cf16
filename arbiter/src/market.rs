//! The market: all current offers, indexed so that the cheapest that will do is found without
//! looking at the rest.
//!
//! Offers of equal hardware from one provider under one capacity type form a *class*. What fits,
//! how fast it is and how long it takes to start depend on the class alone, so a decision works
//! these out once a class; within it the offers lie sorted by (price, id), and the first that
//! meets the constraints is the best of the class whenever dollars rise with price.

use std::collections::HashMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::catalogue::Catalogue;
use crate::offer::{Accelerators, Arch, Capacity, HostOwner, MeasuredRates, Offer, OfferId, Sale};

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

/// What makes a class one class, with floats as their bits.
#[derive(Clone, PartialEq, Eq, Hash)]
struct ClassKey {
    provider: String,
    capacity: Capacity,
    accelerators: Option<Accelerators>,
    arch: Arch,
    vcpu_milli: Option<u32>,
    memory: Option<u64>,
    owner: HostOwner,
    measured: Option<(u64, u64)>,
    interruptions: Option<u64>,
    buyable: bool,
}

impl ClassKey {
    fn of(offer: &Offer) -> ClassKey {
        ClassKey {
            provider: offer.provider.clone(),
            capacity: offer.capacity,
            accelerators: offer.accelerators.clone(),
            arch: offer.arch,
            vcpu_milli: offer.vcpu_milli,
            memory: offer.memory,
            owner: offer.owner,
            measured: offer.measured.map(|m| (m.gemm_gflops.to_bits(), m.read_gb_s.to_bits())),
            interruptions: offer.interruptions_per_hour.map(f64::to_bits),
            buyable: offer.sale.is_buyable(),
        }
    }
}

/// All current offers.
#[derive(Clone, Default)]
pub struct Market {
    /// Offers; a withdrawn one leaves a hole that the next new offer fills.
    offers: Vec<Option<Offer>>,
    holes: Vec<u32>,
    by_id: HashMap<OfferId, u32>,
    class_of: Vec<u32>,
    classes: Vec<Class>,
    class_keys: HashMap<ClassKey, u32>,
    /// For each class its offers, sorted by (price, id).
    members: Vec<Vec<u32>>,
}

impl Market {
    /// An index over offers. Of two with the same id the later quote counts, the first of equals.
    pub fn new(offers: impl IntoIterator<Item = Offer>) -> Market {
        let mut market = Market::default();
        for offer in offers {
            let newer = market.get(&offer.id).is_none_or(|known| known.quoted_at < offer.quoted_at);
            if newer {
                market.place(offer);
            }
        }
        let Market { offers, members, .. } = &mut market;
        for class in members {
            class.sort_unstable_by(|a, b| order(offers, *a).cmp(&order(offers, *b)));
        }
        market
    }

    /// Stores an offer and appends it to its class, unsorted.
    fn place(&mut self, offer: Offer) -> u32 {
        self.withdraw(&offer.id.clone());
        let class = self.class_index(&offer);
        let slot = match self.holes.pop() {
            Some(slot) => slot,
            None => {
                self.offers.push(None);
                self.class_of.push(0);
                u32::try_from(self.offers.len() - 1).expect("fewer than 2^32 offers fit in memory")
            }
        };
        self.by_id.insert(offer.id.clone(), slot);
        self.class_of[slot as usize] = class;
        self.offers[slot as usize] = Some(offer);
        self.members[class as usize].push(slot);
        slot
    }

    fn class_index(&mut self, offer: &Offer) -> u32 {
        let key = ClassKey::of(offer);
        if let Some(&class) = self.class_keys.get(&key) {
            return class;
        }
        let class = u32::try_from(self.classes.len()).expect("fewer classes than offers");
        self.classes.push(Class::of(offer));
        self.members.push(Vec::new());
        self.class_keys.insert(key, class);
        class
    }

    /// Takes a new quote in: replaces the offer of the same id, in place in the order.
    pub fn quote(&mut self, offer: Offer) {
        let slot = self.place(offer);
        let class = self.class_of[slot as usize] as usize;
        let Market { offers, members, .. } = self;
        let list = &mut members[class];
        list.pop();
        let at = list.partition_point(|&other| order(offers, other) < order(offers, slot));
        list.insert(at, slot);
    }

    /// Takes an offer out. Says whether it was there.
    pub fn withdraw(&mut self, id: &OfferId) -> bool {
        let Some(slot) = self.by_id.remove(id) else {
            return false;
        };
        let class = self.class_of[slot as usize] as usize;
        // The list may be unsorted while the market is built, so the slot is looked for, not searched.
        if let Some(at) = self.members[class].iter().position(|&other| other == slot) {
            self.members[class].remove(at);
        }
        self.offers[slot as usize] = None;
        self.holes.push(slot);
        true
    }

    /// How many offers there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The offer of an id.
    pub fn get(&self, id: &OfferId) -> Option<&Offer> {
        self.by_id.get(id).and_then(|&slot| self.at(slot))
    }

    /// All offers, class by class, cheapest first in each.
    pub fn offers(&self) -> impl Iterator<Item = &Offer> {
        self.members.iter().flatten().filter_map(|&slot| self.at(slot))
    }

    /// The classes and their offers, sorted by (price, id). A class may be empty.
    pub fn classes(&self) -> impl Iterator<Item = (&Class, Members<'_>)> {
        self.classes
            .iter()
            .zip(&self.members)
            .map(|(class, slots)| (class, Members { market: self, slots }))
    }

    fn at(&self, slot: u32) -> Option<&Offer> {
        self.offers.get(slot as usize)?.as_ref()
    }
}

/// The offers of one class, cheapest first.
#[derive(Clone, Copy)]
pub struct Members<'a> {
    market: &'a Market,
    slots: &'a [u32],
}

impl<'a> Members<'a> {
    /// The offers in order.
    pub fn iter(self) -> impl Iterator<Item = &'a Offer> {
        let Members { market, slots } = self;
        slots.iter().filter_map(move |&slot| market.at(slot))
    }

    /// How many.
    pub fn len(self) -> usize {
        self.slots.len()
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.slots.is_empty()
    }
}

/// What a class is sorted by.
fn order(offers: &[Option<Offer>], slot: u32) -> Option<(i64, &OfferId)> {
    offers[slot as usize].as_ref().map(|offer| (offer.price.micros(), &offer.id))
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
        Vec::<Offer>::deserialize(deserializer).map(Market::new)
    }
}

/// Offers of which only a dated price is known.
impl Offer {
    /// The words to show beside a price that cannot be bought from.
    pub fn not_for_sale(&self) -> Option<String> {
        match self.sale {
            Sale::Buyable => None,
            Sale::Snapshot { observed_on: Some(day) } => {
                Some(format!("prices of {day}, not for sale"))
            }
            Sale::Snapshot { observed_on: None } => {
                Some("prices of unknown date, not for sale".to_owned())
            }
        }
    }
}
