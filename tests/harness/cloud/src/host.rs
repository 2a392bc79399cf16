//! What a rented machine *is*. The engine says when one starts and when it ends; a [`Host`] does it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

/// What starts on a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// The image.
    pub image: String,
    /// Instead of the image's own entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Instead of the image's own command.
    pub command: Option<Vec<String>>,
    /// Environment, what the provider itself puts there included.
    pub environment: BTreeMap<String, String>,
    /// Ports that shall be reached from outside.
    pub ports: Vec<u16>,
}

/// Where machines live. All calls come in the order of the engine's time, which may run ahead in
/// leaps: a host does at once what it is told, and waits for nothing.
pub trait Host: Send {
    /// A machine starts.
    fn start(&mut self, machine: &str, boot: &Boot);

    /// A machine will be taken away in so long, and may know.
    fn notice(&mut self, machine: &str, left: Duration);

    /// A machine is told to end, and ended by force after so long.
    fn end(&mut self, machine: &str, grace: Duration);

    /// A machine that was started and not ended still runs its program.
    fn alive(&mut self, machine: &str) -> bool;

    /// Where a port of a machine is reached from outside; `None`: nowhere yet.
    fn address(&self, machine: &str, port: u16) -> Option<SocketAddr>;
}

/// Machines that are only a state: nothing runs. A program ends when a test says so. For tests of
/// the APIs, which need neither processes nor root.
#[derive(Debug, Default)]
pub struct StateOnly {
    running: BTreeSet<String>,
    ends: BTreeSet<String>,
    listening: BTreeMap<u16, SocketAddr>,
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
}
