//! What the operator and a service's gateway tell each other, inside [`Opening`](crate::session::Opening)
//! and [`Opened`](crate::session::Opened).
//!
//! The operator dials: `GET` [`PATH`]`?after=<change>&wait=<seconds>` gives the gateway's message with
//! [`Known`], as soon as there is something newer; `POST` [`PATH`] takes the operator's answer to it with
//! [`Told`]. Each message answers one other, so nothing can be replayed. All of it is about how things
//! are, not about what happened: whatever is lost is made good by the next round.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::keys::NoisePublic;
use crate::message::{VERSION, to_bytes};
use crate::task::Secret;

/// On a gateway's second port.
pub const PATH: &str = "/v1/operator";

/// Names in [`Known::drained`] at most; the rest follow when these are gone.
pub const DRAINED_AT_ONCE: usize = 256;

/// What a gateway knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// [`VERSION`].
    pub version: u16,
    /// Rises with every change of what stands here, but for the idle time.
    pub change: u64,
    /// [`Told::list`] of the list that holds; absent since a start.
    #[serde(default)]
    pub list: Option<String>,
    /// Requests that wait for a replica.
    pub waiting: u64,
    /// Replicas that may be asked.
    pub ready: u64,
    /// Milliseconds for which nobody has asked for anything; 0 while a request is under way.
    pub idle_millis: u64,
    /// Replicas that get no more requests and have none left.
    #[serde(default)]
    pub drained: Vec<String>,
}

impl Known {
    /// Whether somebody waits while there is no replica at all.
    pub fn wakes(&self) -> bool {
        self.waiting > 0 && self.ready == 0
    }
}

/// What an operator tells: everything, each time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// [`VERSION`].
    pub version: u16,
    /// Names what follows: the same list has the same name.
    pub list: String,
    /// Whether a request may wait for a replica. Not where none is going to come.
    pub hold: bool,
    /// The replicas.
    pub replicas: Vec<Replica>,
}

impl Told {
    /// With its name.
    pub fn new(hold: bool, replicas: Vec<Replica>) -> Self {
        let content = to_bytes(&(hold, &replicas));
        let list = blake3::hash(&content).to_hex()[..32].to_owned();
        Self { version: VERSION, list, hold, replicas }
    }
}

/// One place that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Its claim's name.
    pub name: String,
    /// `host:port`: of its agent where one is named, else of the server itself.
    pub address: String,
    /// Whom a gateway must find there, to speak through it [encrypted](crate::relay). None where the
    /// machine is on the cluster's own network.
    pub agent: Option<NoisePublic>,
    /// How much it can do beside the others.
    pub weight: NonZeroU32,
    /// No more requests; what it has, it finishes.
    pub draining: bool,
    /// What its server, and its agent, ask of whoever sends it requests.
    pub key: Secret,
    /// What answers there.
    #[serde(default)]
    pub server: Server,
}

/// What answers at a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Server {
    /// Our runtime: it asks for the key, and says at a known path how it is.
    #[default]
    Ours,
    /// A command of the user's, which knows of no key and is told none.
    Any {
        /// Path that it must answer with 200 to 399 before it gets requests again, once it failed. None:
        /// a connection that it takes is enough.
        health: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_list_has_the_same_name_and_another_has_another() {
        let replica = |draining| Replica {
            name: "a".into(),
            address: "10.0.0.1:7443".into(),
            weight: NonZeroU32::MIN,
            draining,
            agent: Some(NoisePublic([1; 32])),
            key: Secret::new("key"),
            server: Server::Ours,
        };
        let told = Told::new(true, vec![replica(false)]);
        assert_eq!(told, Told::new(true, vec![replica(false)]));
        assert_ne!(told.list, Told::new(true, vec![replica(true)]).list);
        assert_ne!(told.list, Told::new(false, vec![replica(false)]).list);
    }
}
