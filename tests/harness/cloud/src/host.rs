//! What a rented machine *is*. The engine says when one starts and when it ends; a [`Host`] does it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// What starts on a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// The image: of a container, or of a whole machine.
    pub image: String,
    /// Instead of the image's own entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Instead of the image's own command.
    pub command: Option<Vec<String>>,
    /// Environment, what the provider itself puts there included.
    pub environment: BTreeMap<String, String>,
    /// Ports that shall be reached from outside.
    pub ports: Vec<u16>,
    /// Processors in thousandths; 0: as many as there are.
    pub cpu_millis: u32,
    /// Bytes of memory; 0: as much as there is.
    pub memory: u64,
    /// What the machine's own metadata service tells; `None`: there is no such service, and what
    /// starts is a container rather than a machine that runs containers.
    pub metadata: Option<Metadata>,
}

/// What a machine may ask of its own metadata service (EC2's), beside its id and notices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Run by root when the machine first starts, if it begins with `#!`.
    pub user_data: Vec<u8>,
    /// Account it belongs to.
    pub account: String,
    /// Region.
    pub region: String,
    /// Availability zone by the account's own name.
    pub zone: String,
    /// The same zone by its id.
    pub zone_id: String,
    /// Instance type.
    pub instance_type: String,
    /// Whether it may be taken away.
    pub spot: bool,
    /// Instance profile: name of the role whose credentials are told, and those.
    pub role: Option<(String, Credentials)>,
    /// Network hops that an answer with a token may go: 1 keeps containers out.
    pub hop_limit: u32,
}

/// Credentials that a role gives for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// `AccessKeyId`.
    pub id: String,
    /// `SecretAccessKey`.
    pub secret: String,
    /// `Token`.
    pub token: String,
}

/// Called, from any thread, when a machine's program has ended by itself.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Where machines live. All calls come in the order of the engine's time, which may run ahead in
/// leaps: a host does at once what it is told, and waits for nothing.
pub trait Host: Send {
    /// Whom to wake when a machine's program ends by itself. Said once, before the first start.
    fn wakes(&mut self, _wake: Wake) {}

    /// Where a provider listens, so that its machines reach it at the same address as everybody.
    fn listens(&self) -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }

    /// Whether there is such an image. A machine of another never gets as far as its program.
    fn pulls(&self, _image: &str) -> bool {
        true
    }

    /// A machine starts.
    fn start(&mut self, machine: &str, boot: &Boot);

    /// A machine will be taken away in so long, and may know.
    fn notice(&mut self, machine: &str, left: Duration);

    /// A machine is likely to be taken away, and may know.
    fn recommend(&mut self, _machine: &str) {}

    /// A machine is told to end, and ended by force after so long.
    fn end(&mut self, machine: &str, grace: Duration);

    /// A machine that was started and not ended still runs its program.
    fn alive(&mut self, machine: &str) -> bool;

    /// Where a port of a machine is reached from outside; `None`: nowhere yet.
    fn address(&self, machine: &str, port: u16) -> Option<SocketAddr>;

    /// Whether its machines get addresses of their own, once they start.
    fn gives_addresses(&self) -> bool {
        false
    }

    /// The address of a machine that has one of its own, at which its ports are what they are.
    fn own_address(&self, _machine: &str) -> Option<Ipv4Addr> {
        None
    }
}

/// Machines that are only a state: nothing runs. A program ends when a test says so. For tests of
/// the APIs, which need neither processes nor root.
#[derive(Debug, Default)]
pub struct StateOnly {
    running: BTreeSet<String>,
    ends: BTreeSet<String>,
    listening: BTreeMap<u16, SocketAddr>,
    at: Option<Ipv4Addr>,
}

impl StateOnly {
    /// The programs of these images end as soon as they start.
    #[must_use]
    pub fn ending(mut self, images: &[&str]) -> Self {
        self.ends.extend(images.iter().map(|image| (*image).to_owned()));
        self
    }

    /// Whoever asks where this port of any machine is, is sent there: the test itself listens.
    #[must_use]
    pub fn listening(mut self, port: u16, at: SocketAddr) -> Self {
        self.listening.insert(port, at);
        self
    }

    /// Every machine has this address: the test itself is there.
    #[must_use]
    pub fn at(mut self, address: Ipv4Addr) -> Self {
        self.at = Some(address);
        self
    }
}

impl Host for StateOnly {
    fn start(&mut self, machine: &str, boot: &Boot) {
        if !self.ends.contains(&boot.image) {
            self.running.insert(machine.to_owned());
        }
    }

    fn notice(&mut self, _machine: &str, _left: Duration) {}

    fn end(&mut self, machine: &str, _grace: Duration) {
        self.running.remove(machine);
    }

    fn alive(&mut self, machine: &str) -> bool {
        self.running.contains(machine)
    }

    fn address(&self, machine: &str, port: u16) -> Option<SocketAddr> {
        self.listening.get(&port).copied().filter(|_| self.running.contains(machine))
    }

    fn gives_addresses(&self) -> bool {
        self.at.is_some()
    }

    fn own_address(&self, machine: &str) -> Option<Ipv4Addr> {
        self.at.filter(|_| self.running.contains(machine))
    }
}
