//! What a decision says: the plan, and for every offer that was not taken why not.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::claim::{ClaimSpec, Device};
use crate::money::Usd;
use crate::obstacle::Obstacle;
use crate::offer::{Offer, OfferId};
use crate::reason::Reason;
use crate::spot::shelf::Key;
use crate::watch::Watch;
use crate::workload::WorkloadId;

/// What to do now for all workloads.
///
/// Placing never buys: it writes claims, which is safe to repeat. Each claim is then bought by its
/// own sequence of [`crate::launch::next_step`], which holds at most one launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// What to write, in order.
    pub actions: Vec<Action>,
    /// One for each workload, in the order they were decided.
    pub decisions: Vec<Decision>,
    /// What jobs with a deadline have seen by now: it replaces what the world says of the same jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watched: Vec<Watch>,
    /// Tables that were not there when they were asked for: whoever makes them puts them into the next world.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<Key>,
    /// When to look again though nothing happens; `None`: only when something changes.
    pub requeue_at: Option<Timestamp>,
}

/// One thing to write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Action {
    /// Create this claim (with its finalizer); an existing one of the same name and owner is the same.
    CreateClaim(ClaimSpec),
    /// Stop wanting this claim: drain, end the machine, close its ledger.
    EndClaim {
        /// Uid of the claim.
        uid: String,
        /// Why.
        reason: Reason,
    },
}

/// What was decided for one workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// For whom.
    pub workload: WorkloadId,
    /// Hash of the world that it saw ([`crate::world::Recorded::hash`]), where that was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub world: Option<String>,
    /// What came out.
    pub outcome: Outcome,
    /// Something to warn about though a place was found (`DeadlineAtRisk`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<Reason>,
    /// What the spot policy said, where it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<Advice>,
    /// Offers that were looked at.
    pub considered: u32,
    /// How many offers each constraint stopped first, by the constraint's name, sorted.
    pub stopped: Vec<StoppedBy>,
    /// The cheapest places, the chosen one first, those that are not for sale included; at most
    /// [`RANKED_SHOWN`].
    pub ranked: Vec<Ranked>,
    /// Where nothing was found: what came nearest.
    pub misses: Vec<Miss>,
    /// Against the cheapest on-demand offer that meets the same constraints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saving: Option<Saving>,
}

/// Places that a decision shows.
pub const RANKED_SHOWN: usize = 10;

/// Nearest misses that a decision shows.
pub const MISSES_SHOWN: usize = 5;

/// What came out for one workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Outcome {
    /// It has all the machines it wants, or wants none.
    Settled {
        /// Machines that work for it.
        machines: u32,
    },
    /// New machines were planned.
    Placed {
        /// Names of the new claims.
        claims: Vec<String>,
        /// Machines that it still lacks, for want of offers.
        lacking: u32,
    },
    /// It has its machine, and leaves it: the next pass after that one is gone places it anew.
    Moves {
        /// Name of the claim that is ended.
        claim: String,
        /// The offer that is better now.
        to: OfferId,
        /// Because it is cheaper, or because of the deadline.
        reason: Reason,
        /// Dollars to the end where it is.
        stays: Usd,
        /// Dollars to the end at the other place, the move included.
        goes: Usd,
        /// Moves of this job, this one included.
        #[serde(default)]
        moves: u32,
    },
    /// Nothing could be planned.
    Waiting {
        /// The reason in the API's words.
        reason: Reason,
        /// For people, with numbers.
        message: String,
    },
}

/// What the spot policy said of a job with a deadline: [`crate::spot`] has the words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Advice {
    /// What to do now.
    pub says: Advised,
    /// `p1`; or `r1`, where no table was ready.
    pub policy: String,
    /// Places where the job could be on spot.
    pub zones: u32,
    /// Seconds that need not be worked until the deadline, by the bounds.
    pub slack_seconds: i64,
    /// Seconds that a start takes at most.
    pub restart_seconds: i64,
    /// On-demand offers that refused lately: each moves the line one launch earlier.
    pub refused: u32,
    /// When only on-demand is sure to end in time, if nothing is done until then.
    pub line: Timestamp,
    /// The on-demand offer that it would be.
    pub on_demand: OfferId,
    /// Whether it is on-demand for the money's sake: after a try on spot that comes to nothing it could not be paid.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub short_of_money: bool,
}

/// What the spot policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Advised {
    /// Have no machine: spot may come, and there is time.
    Wait,
    /// Be on spot.
    Spot,
    /// Be on on-demand.
    OnDemand,
    /// Keep the machine.
    Stay,
}

/// How many offers a constraint stopped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoppedBy {
    /// Name of the constraint, as in [`crate::obstacle::Check::name`].
    pub constraint: String,
    /// Offers.
    pub offers: u32,
}

/// A place with its price to the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ranked {
    /// The offer.
    pub offer: Offer,
    /// Which part of it computes.
    pub device: Device,
    /// What the rest of the work costs there.
    pub cost: CostBreakdown,
    /// Why it was not taken; `None` for the chosen one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<Obstacle>,
}

/// Expected time and dollars of a workload at a place. For services: of one replica for one hour.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CostBreakdown {
    /// What counts: the sum of the terms. Offers are compared by it.
    pub total: Usd,
    /// The terms, in a fixed order.
    pub terms: Vec<CostTerm>,
    /// Milliseconds from asking until the work is done; one hour for services.
    pub millis: i64,
    /// The same if everything goes well, and if it goes badly (about nine runs in ten lie between).
    pub millis_range: (i64, i64),
    /// Dollars of the same two, at today's price; `None` where the work has no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usd_range: Option<(Usd, Usd)>,
    /// Tokens a second: trained, or decoded at full load; `None` where nothing is known of the work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<Range>,
    /// Dollars for 10⁶ decoded tokens at full load, for services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usd_per_million_tokens: Option<Usd>,
}

/// An estimate and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Range {
    /// About one in twenty lies below.
    pub low: f64,
    /// The value that is planned with.
    pub expected: f64,
    /// About one in twenty lies above.
    pub high: f64,
}

/// One term of the cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CostTerm {
    /// What for.
    pub what: Term,
    /// Milliseconds of the machine, 0 where the term is not time.
    pub millis: i64,
    /// Dollars.
    pub usd: Usd,
}

/// What a part of the cost is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Term {
    /// From asking until the machine can begin.
    StartUp,
    /// Fetching the image.
    Image,
    /// Fetching data, base model or checkpoint.
    Inputs,
    /// The work itself.
    Work,
    /// Work done twice and starts repeated because machines are lost.
    Rework,
    /// Writing checkpoints and the artifact away.
    Upload,
    /// Bytes that leave the place.
    Egress,
}

/// The dollars that the choice saves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saving {
    /// The cheapest on-demand offer that meets the same constraints, for sale or not.
    pub against: OfferId,
    /// Says so where that price is dated and cannot be bought from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What the workload costs there.
    pub would_cost: Usd,
    /// What it costs at the chosen place.
    pub costs: Usd,
    /// The difference; negative where on-demand would have been cheaper but could not be had.
    pub saved: Usd,
}

/// An offer that one or two constraints stand before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Miss {
    /// The offer.
    pub offer: Offer,
    /// Everything that would have to give.
    pub obstacles: Vec<Obstacle>,
    /// What it would cost, where that can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<Usd>,
}
