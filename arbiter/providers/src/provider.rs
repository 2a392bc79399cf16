//! The trait behind which every place stands that sells or owns compute, shaped
//! for buying without leaking: the whole request is fixed before the purchase,
//! the purchase is one call that is never repeated in here, and an instance is
//! found by the identity it carries, whoever lost the answer.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use petaflop_arbiter::bill::{self, Begins, Billing, Life, Line, Price};
use petaflop_arbiter::claim::{FrozenRequest, Identity, LaunchSafety};
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::Offer;
use petaflop_arbiter::reason::Reason;
use serde::{Deserialize, Serialize};

use crate::error::{LaunchError, ProviderError};
use crate::machine::{EnrolmentToken, Machine};

/// An identity as instances carry it: `installation/namespace/claim/claim uid/attempt`.
pub fn identity_text(identity: &Identity) -> String {
    let Identity { installation, namespace, claim, claim_uid, attempt } = identity;
    format!("{installation}/{namespace}/{claim}/{claim_uid}/{attempt}")
}

/// Reads what [`identity_text`] writes.
pub fn parse_identity(text: &str) -> Option<Identity> {
    let mut parts = text.split('/').map(str::to_owned);
    let identity = Identity {
        installation: parts.next()?,
        namespace: parts.next()?,
        claim: parts.next()?,
        claim_uid: parts.next()?,
        attempt: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some(identity)
}

/// What a provider's API can promise, and how it bills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// What launching twice does, and for how long a new instance may be in no list.
    pub launch_safety: LaunchSafety,
    /// From launch to the first sign of life.
    pub launch_timeout: Duration,
    /// How long an instance may take to end when told to.
    pub termination_timeout: Duration,
    /// How time becomes money.
    pub billing: Billing,
    /// Whether [`Provider::launch`] can ever succeed.
    pub sells: bool,
    /// Whether each machine has an address of its own, so that every port is free on it.
    pub own_address: bool,
    /// Whether somebody sends a bill for its machines, so that one that nobody knows of costs money.
    pub rented: bool,
}

/// A child process of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Program and arguments; never a secret.
    pub argv: Vec<String>,
    /// Environment beyond the provider's own; never a secret.
    pub env: BTreeMap<String, String>,
    /// Working folder on the machine.
    pub dir: String,
    /// Where standard output and error are appended to, on the machine.
    pub log: String,
    /// Bytes of memory it is expected to use.
    pub memory: u64,
    /// Seconds from the request to end until it is forced.
    pub grace_seconds: u64,
}

/// One machine to be bought.
#[derive(Clone, Debug)]
pub struct Order<'a> {
    /// Carried by the instance.
    pub identity: &'a Identity,
    /// What is bought, and at what price it was quoted.
    pub offer: &'a Offer,
    /// What it is to do.
    pub work: Work<'a>,
}

/// What is to be done there.
#[derive(Clone, Copy, Debug)]
pub enum Work<'a> {
    /// A supervised child process of this host.
    Process(&'a Command),
    /// Everywhere else: a machine whose agent is told what to run.
    Machine(&'a Machine),
}

/// A provider's name of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub String);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An instance as the provider sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// The provider's name of it.
    pub id: InstanceId,
    /// What it carries; absent where it could not be read.
    pub identity: Option<Identity>,
    /// Where it is in its life.
    pub state: InstanceState,
    /// When it began to bill.
    pub started: Option<Timestamp>,
    /// When it stopped billing, as far as is known.
    pub ended: Option<Timestamp>,
    /// What was bought, where that is remembered.
    pub offer: Option<Offer>,
    /// What an hour of it costs now, where the provider tells: as a quote of it would say, without what
    /// the owner adds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hourly: Option<UsdPerHour>,
    /// Since when it runs, where its bill begins then ([`Begins::Running`]) and that was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Timestamp>,
    /// Where its agent is reached, `host:port`, as far as is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// How its work ended, where the provider knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// What keeps it from running, or what took it away, where the provider says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
}

/// How an instance's work ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status; 128 + the signal's number where a signal ended it.
    pub code: i32,
    /// The provider's words.
    pub message: String,
}

/// What is wrong with an instance, in the words of the API and in those of the provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// What kind of trouble.
    pub reason: Reason,
    /// The provider's words.
    pub message: String,
}

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InstanceState {
    /// Bills, or soon will; not yet ours to use.
    Pending,
    /// Bills and runs.
    Running,
    /// Told to end; may still bill.
    Terminating,
    /// Bills nothing any more.
    Terminated,
}

impl InstanceState {
    /// Whether money may still be spent on it.
    pub fn may_bill(self) -> bool {
        match self {
            Self::Pending | Self::Running | Self::Terminating => true,
            Self::Terminated => false,
        }
    }
}

/// All instances of one installation.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing {
    /// What was seen.
    pub instances: Vec<Instance>,
    /// Whether that is all. What is missing from an incomplete listing is not gone.
    pub complete: bool,
}

/// A machine that was paid for, and until when.
#[derive(Clone, Copy, Debug)]
pub struct Used<'a> {
    /// The provider's name of it.
    pub instance: &'a InstanceId,
    /// What was bought, at the price that was decided on.
    pub offer: &'a Offer,
    /// When it was bought.
    pub from: Timestamp,
    /// Since when it runs, if that was written down when it was seen ([`Instance::running`]).
    pub running: Option<Timestamp>,
    /// Until when.
    pub until: Timestamp,
    /// The provider took it away then.
    pub taken: bool,
    /// It is over. What is asked of a machine that still runs may be put right later.
    pub over: bool,
}

impl Used<'_> {
    /// What that comes to where nothing but the decided price is billed, from the purchase on.
    pub fn at_its_price(&self, billing: Billing) -> Usd {
        let billing = Billing { begins: Begins::Bought, ..billing };
        let line = Line { price: Price::Hourly(self.offer.price), billing };
        bill::total(&[line], &self.life(Some(self.from)), &[])
    }

    /// Its life, if it began to run then.
    pub fn life(&self, running: Option<Timestamp>) -> Life {
        Life { bought: self.from, running, until: self.until, taken: self.taken }
    }
}

/// A place that sells or owns compute.
#[async_trait]
pub trait Provider: Send + Sync {
    /// The name in offers, claims and messages.
    fn name(&self) -> &str;

    /// What its API can promise.
    fn capabilities(&self) -> Capabilities;

    /// What can be had now, with prices and when they were seen.
    async fn quote(&self) -> Result<Vec<Offer>, ProviderError>;

    /// Fixes the whole launch request. Buys nothing.
    async fn prepare(&self, order: Order<'_>) -> Result<FrozenRequest, LaunchError>;

    /// Sends a frozen request, once. The only call in this trait that spends money. The token is
    /// the one thing that the request leaves out; the same claim and attempt have the same token.
    async fn launch(
        &self,
        request: &FrozenRequest,
        token: &EnrolmentToken,
    ) -> Result<InstanceId, LaunchError>;

    /// The instances that carry this claim's uid, of any attempt. More than one that may bill is a
    /// double purchase.
    async fn find(&self, identity: &Identity) -> Result<Listing, ProviderError>;

    /// Every instance of an installation.
    async fn list(&self, installation: &str) -> Result<Listing, ProviderError>;

    /// One instance; `None` when the provider knows none of that name (any more).
    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, ProviderError>;

    /// Ends an instance. Repeating it, or ending what is gone, succeeds. The
    /// instance is gone when [`Provider::get`] says so, not when this returns.
    async fn terminate(&self, id: &InstanceId) -> Result<(), ProviderError>;

    /// What is billed for an instance, by this provider's rules over what it tells of the instance's
    /// life and of its market: [`petaflop_arbiter::bill`]. Of one that is over it fails rather than to
    /// leave out what can be known later.
    async fn billed(&self, used: Used<'_>) -> Result<Usd, ProviderError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_text_form() {
        let identity = Identity {
            installation: "i".into(),
            namespace: "default".into(),
            claim: "trj-a-12345678-1-0".into(),
            claim_uid: "u".into(),
            attempt: 2,
        };
        assert_eq!(parse_identity(&identity_text(&identity)), Some(identity));
        assert_eq!(parse_identity("a/b/c"), None);
        assert_eq!(parse_identity("a/b/c/d/1/more"), None);
    }
}
