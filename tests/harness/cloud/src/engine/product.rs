//! What is sold: a type at a place, in units.

use super::series::Series;

/// Which product of an engine: its place in the list that the engine was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProductId(pub usize);

/// A type at a place. A unit is what its price is for: one accelerator of a RunPod pod, one vCPU of
/// a CPU pod, a whole AWS instance.
#[derive(Clone, Debug)]
pub struct Product {
    /// The type, by the provider's own id.
    pub kind: String,
    /// Which of the provider's surfaces sells it: `SECURE`, `COMMUNITY`.
    pub pool: String,
    /// Country or region.
    pub region: String,
    /// Data centre or zone, where it is told.
    pub zone: Option<String>,
    /// Units there are, rented ones included.
    pub capacity: u32,
    /// Units of the largest machine.
    pub largest: u32,
    /// Micro-dollars an hour and unit.
    pub on_demand: i64,
    /// What a unit costs when it can be taken away; `None`: that is not sold.
    pub spot: Option<Series>,
}

/// How it is bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sale {
    /// For as long as one pays.
    OnDemand,
    /// Until the provider wants it back; the bid is in micro-dollars an hour and unit.
    Spot {
        /// The most that is paid, micro-dollars an hour and unit.
        bid: i64,
    },
}
