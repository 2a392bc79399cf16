//! Quotas in vCPUs, by region, market and family.

use std::collections::BTreeMap;

use super::kinds::Family;

/// How many vCPUs an account may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    everywhere: BTreeMap<(bool, Family), u32>,
    regions: BTreeMap<(String, bool, Family), u32>,
}

impl Quotas {
    /// Those of a new account: none of accelerators, neither spot nor on demand. How many vCPUs of
    /// the rest was made.
    pub fn new_account() -> Self {
        let mut quotas = Self::default();
        quotas.set(false, Family::Standard, 32);
        quotas.set(true, Family::Standard, 32);
        quotas
    }

    /// More than there is.
    pub fn generous() -> Self {
        use Family::{Dl, G, Inf, P, P5, P6, Standard, Trn};
        let mut quotas = Self::default();
        for family in [Standard, G, P, P5, P6, Dl, Inf, Trn] {
            quotas.set(false, family, 100_000);
            quotas.set(true, family, 100_000);
        }
        quotas
    }

    /// So many everywhere where no other number is set.
    pub fn set(&mut self, spot: bool, family: Family, vcpus: u32) {
        self.everywhere.insert((spot, family), vcpus);
    }

    /// So many in a region.
    pub fn set_in(&mut self, region: &str, spot: bool, family: Family, vcpus: u32) {
        self.regions.insert((region.to_owned(), spot, family), vcpus);
    }

    pub(crate) fn of(&self, region: &str, spot: bool, family: Family) -> u32 {
        let here = self.regions.get(&(region.to_owned(), spot, family));
        here.or_else(|| self.everywhere.get(&(spot, family))).copied().unwrap_or_default()
    }
}
