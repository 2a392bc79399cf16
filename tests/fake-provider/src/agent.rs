//! What runs on a machine: a real agent in this process, or a script.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use petaflop_agent_api::clock::Clock;
use tokio::sync::watch;

/// What a machine knows when it comes up.
pub struct Boot {
    /// The cloud's name of the machine.
    pub instance: String,
    /// The identity it carries, in its text form.
    pub identity: String,
    /// Its environment: the bootstrap, the one-time token in it.
    pub env: BTreeMap<String, String>,
    /// The cloud's clock.
    pub clock: Clock,
    /// How long it has, once it was told that it is taken away.
    pub notice: watch::Receiver<Option<Duration>>,
    pub(crate) endpoint: Arc<Mutex<Option<SocketAddr>>>,
}

impl Boot {
    /// Says where the agent is reached; the cloud tells whoever asks for the machine.
    pub fn reachable_at(&self, address: SocketAddr) {
        *self.endpoint.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
    }
}

impl fmt::Debug for Boot {
    /// Without the environment, which holds a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, identity, .. } = self;
        f.debug_struct("Boot").field("instance", instance).field("identity", identity).finish()
    }
}

/// How what ran on a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentEnd {
    /// It ended its machine, which bills no more.
    MachineEnded {
        /// Exit status of the work.
        code: i32,
    },
    /// It just ended. The machine stays, and bills.
    Exited {
        /// Exit status.
        code: i32,
    },
}

/// Makes what runs on a machine. The future is dropped when the machine ends; one that never ends
/// is an agent that runs on.
pub type AgentRunner = Arc<dyn Fn(Boot) -> BoxFuture<'static, AgentEnd> + Send + Sync>;

/// Machines on which nothing happens.
pub fn silent() -> AgentRunner {
    Arc::new(|_| Box::pin(std::future::pending()))
}
