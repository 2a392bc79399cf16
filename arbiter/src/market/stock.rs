//! The offers of one class, by place and price.

use std::cmp::Ordering;
use std::sync::Arc;

use super::Class;
use crate::money::UsdPerHour;
use crate::offer::{Arch, Capacity, HostOwner, Offer};

/// What the offers on one shelf have in common: provider, capacity type, owner, whether it can be
/// taken, accelerator model.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ShelfKey<'a>(&'a str, Capacity, HostOwner, bool, Option<&'a str>);

impl<'a> ShelfKey<'a> {
    pub(super) fn of(offer: &'a Offer) -> ShelfKey<'a> {
        let model = offer.accelerators.as_ref().map(|devices| devices.model.as_str());
        let buyable = offer.sale.is_buyable();
        ShelfKey(&offer.provider, offer.capacity, offer.owner, buyable, model)
    }

    pub(super) fn of_class(class: &'a Class) -> ShelfKey<'a> {
        let model = class.accelerators.as_ref().map(|devices| devices.model.as_str());
        ShelfKey(&class.provider, class.capacity, class.owner, class.buyable, model)
    }
}

/// What tells the classes of one shelf apart, floats as their bits: devices and the memory of one,
/// instruction set, processors, memory, measured rates, losses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StockKey {
    devices: Option<(u32, Option<u64>)>,
    arch: Arch,
    vcpu_milli: Option<u32>,
    memory: Option<u64>,
    measured: Option<(u64, u64)>,
    interruptions: Option<u64>,
}

impl StockKey {
    pub(super) fn of(offer: &Offer) -> StockKey {
        StockKey {
            devices: offer.accelerators.as_ref().map(|devices| (devices.count, devices.memory)),
            arch: offer.arch,
            vcpu_milli: offer.vcpu_milli,
            memory: offer.memory,
            measured: offer.measured.map(|m| (m.gemm_gflops.to_bits(), m.read_gb_s.to_bits())),
            interruptions: offer.interruptions_per_hour.map(f64::to_bits),
        }
    }
}

/// One offer in its stock, with what it is searched by.
#[derive(Clone)]
pub(super) struct Listed {
    place: u32,
    price: UsdPerHour,
    /// Milliseconds since the epoch until which the quote is good.
    good_until: i64,
    offer: Arc<Offer>,
}

impl Listed {
    pub(super) fn new(place: u32, offer: Arc<Offer>) -> Listed {
        let quoted = offer.quoted_at.as_millisecond();
        let good_until = quoted.saturating_add(i64::from(offer.ttl_seconds) * 1000);
        Listed { place, price: offer.price, good_until, offer }
    }

    /// Whether it is cheaper than another, or as cheap and before it by id.
    fn is_before(&self, other: &Listed) -> bool {
        (self.price, &self.offer.id) < (other.price, &other.offer.id)
    }

    fn order(&self, place: u32, offer: &Offer) -> Ordering {
        (self.place, self.price, &self.offer.id).cmp(&(place, offer.price, &offer.id))
    }
}

/// The offers of one class. Never empty.
#[derive(Clone)]
pub(crate) struct Stock {
    class: Class,
    key: StockKey,
    /// By place, then from the cheapest up, then by id.
    list: Vec<Listed>,
    aisles: Vec<Aisle>,
    /// Where in the list the offers are, from the cheapest up, then by id, whatever their place.
    ranks: Vec<u32>,
    /// The last time at which any of its quotes is good.
    good_until: i64,
}

/// The offers of one place: those from `start` up to the next aisle's.
#[derive(Clone, Copy)]
pub(crate) struct Aisle {
    /// Number of the place.
    pub(crate) place: u32,
    pub(crate) start: u32,
    /// Exclusive.
    pub(crate) end: u32,
}

impl Stock {
    /// A stock of offers of one class, in any order; none of none.
    pub(super) fn of(mut list: Vec<Listed>) -> Option<Stock> {
        let first = &list.first()?.offer;
        let (class, key) = (Class::of(first), StockKey::of(first));
        list.sort_unstable_by(|a, b| a.order(b.place, &b.offer));
        list.shrink_to_fit();
        let mut stock =
            Stock { class, key, list, aisles: Vec::new(), ranks: Vec::new(), good_until: i64::MIN };
        stock.ranks.extend(0..stock.list.len() as u32);
        let list = &stock.list;
        stock.ranks.sort_unstable_by(|&a, &b| {
            let (a, b) = (&list[a as usize], &list[b as usize]);
            (a.price, &a.offer.id).cmp(&(b.price, &b.offer.id))
        });
        stock.count();
        Some(stock)
    }

    pub(super) fn put(&mut self, listed: Listed) {
        let before = |other: &Listed| other.order(listed.place, &listed.offer) == Ordering::Less;
        let at = self.list.partition_point(before);
        self.ranks.iter_mut().filter(|other| **other >= at as u32).for_each(|other| *other += 1);
        self.list.insert(at, listed);
        let list = &self.list;
        let rank = self.ranks.partition_point(|&other| list[other as usize].is_before(&list[at]));
        self.ranks.insert(rank, at as u32);
        self.count();
    }

    pub(super) fn take(&mut self, place: u32, offer: &Offer) {
        if let Ok(at) = self.list.binary_search_by(|other| other.order(place, offer)) {
            self.list.remove(at);
            let at = at as u32;
            self.ranks.retain(|other| *other != at);
            self.ranks.iter_mut().filter(|other| **other > at).for_each(|other| *other -= 1);
            self.count();
        }
    }

    /// Works out anew what is known of the list as a whole.
    fn count(&mut self) {
        self.aisles.clear();
        self.good_until = i64::MIN;
        for (at, listed) in self.list.iter().enumerate() {
            let at = at as u32;
            self.good_until = self.good_until.max(listed.good_until);
            match self.aisles.last_mut() {
                Some(aisle) if aisle.place == listed.place => aisle.end = at + 1,
                _ => self.aisles.push(Aisle { place: listed.place, start: at, end: at + 1 }),
            }
        }
    }

    pub(crate) const fn class(&self) -> &Class {
        &self.class
    }

    pub(super) const fn key(&self) -> StockKey {
        self.key
    }

    pub(crate) fn len(&self) -> u32 {
        self.list.len() as u32
    }

    pub(crate) fn aisles(&self) -> &[Aisle] {
        &self.aisles
    }

    /// Where the offer of a rank is: 0 is the cheapest of all.
    pub(crate) fn ranked(&self, rank: u32) -> Option<u32> {
        self.ranks.get(rank as usize).copied()
    }

    /// Milliseconds since the epoch from which on none of its quotes is good.
    pub(crate) const fn good_until(&self) -> i64 {
        self.good_until
    }

    pub(crate) fn price(&self, at: u32) -> UsdPerHour {
        self.list[at as usize].price
    }

    pub(crate) fn offer(&self, at: u32) -> &Offer {
        &self.list[at as usize].offer
    }

    /// The offers of some places, from the cheapest up, then by id.
    pub(crate) fn by_price(&self, wanted: impl Fn(u32) -> bool) -> impl Iterator<Item = &Offer> {
        let listed = self.ranks.iter().map(|&at| &self.list[at as usize]);
        listed.filter(move |listed| wanted(listed.place)).map(|listed| &*listed.offer)
    }

    pub(crate) fn offers(&self) -> impl Iterator<Item = &Offer> {
        self.list.iter().map(|listed| &*listed.offer)
    }
}
