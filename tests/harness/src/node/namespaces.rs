//! Where a node lives: process, mount and network namespaces of its own, so
//! that killing one process ends every container, mount, address and nftables
//! rule of it, and two nodes do not meet.
//!
//! The addresses are from the range for benchmarks (RFC 2544), which no network
//! uses: for node `n`, a link 198.18.n.0/30 between host and node, Pods in
//! 198.19.n.0/25, Services in 198.19.n.128/25. All are routed, without address
//! translation: tests on the host reach Pods and Services, Pods the API server.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;

use crate::command::run;
use crate::error::{Error, Result};
use crate::process::{Component, Launch};
use crate::state::State;
use crate::tools::by_debian;

/// The first process of the namespaces: collects orphans that have ended.
const INIT: &str = "while :; do sleep 3600 & wait $!; done";

#[derive(Debug)]
pub(crate) struct Namespaces {
    holder: Component,
    index: u8,
}

impl Namespaces {
    pub(crate) fn new(state: &Arc<State>) -> Result<Self> {
        let unshare = by_debian("unshare", &["util-linux"])?;
        let launch = Launch::new(unshare)
            .arguments(["--net", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"])
            .arguments(["sh", "-c", INIT]);
        let holder = Component::start_wrapped("namespaces", launch, state)?;
        let index = link(&holder)?;
        let namespaces = Self { holder, index };
        namespaces.configure(state)?;
        Ok(namespaces)
    }

    /// Addresses on both sides, and folders that the node's programs insist on
    /// under fixed paths, given from the state folder.
    fn configure(&self, state: &State) -> Result<()> {
        let (host, node, routed) = (self.host(), self.node(), self.range(0, 24));
        let device = device(self.index);
        for words in [
            format!("addr add {host}/30 dev {device}"),
            format!("link set {device} up"),
            format!("route add {routed} via {node}"),
        ] {
            run(Command::new("ip").args(words.split(' ')))?;
        }
        for folder in ["run", "var-log", "cni-cache"] {
            let path = state.path(folder);
            std::fs::create_dir(&path).map_err(Error::io(path.display().to_string()))?;
        }
        let bind = |folder: &str, at: &str| {
            format!("mkdir -p {at}\nmount --bind {} {at}", state.path(folder).display())
        };
        let script = [
            "set -e".to_owned(),
            "ip link set lo up".to_owned(),
            format!("ip addr add {node}/30 dev eth0"),
            "ip link set eth0 up".to_owned(),
            format!("ip route add default via {host}"),
            bind("run", "/run"),
            bind("var-log", "/var/log"),
            bind("cni-cache", "/var/lib/cni"),
        ];
        let inside = self.launch("sh").arguments(["-c".to_owned(), script.join("\n")]);
        run(Command::new(inside.program).args(inside.arguments)).map(drop)
    }

    /// How to start a program in here; see [`Component::start_wrapped`].
    pub(crate) fn launch(&self, program: &str) -> Launch {
        let target = self.holder.pid().unwrap_or_default().to_string();
        Launch::new("nsenter").arguments([
            "--net",
            "--mount",
            "--pid",
            "--target",
            target.as_str(),
            "--",
            program,
        ])
    }

    /// The host's end of the link.
    pub(crate) fn host(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.index, 1)
    }

    /// The node's end of the link.
    pub(crate) fn node(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.index, 2)
    }

    pub(crate) fn pods(&self) -> String {
        self.range(0, 25)
    }

    pub(crate) fn services(&self) -> String {
        self.range(128, 25)
    }

    /// The address of the API server's own Service, the range's first.
    pub(crate) fn kubernetes(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 19, self.index, 129)
    }

    pub(crate) fn index(&self) -> u8 {
        self.index
    }

    fn range(&self, start: u8, bits: u8) -> String {
        format!("{}/{bits}", Ipv4Addr::new(198, 19, self.index, start))
    }
}

fn device(index: u8) -> String {
    format!("petaflop{index}")
}

/// A pair of interfaces between us and the new namespace. Its name decides which
/// node this is: the kernel gives each name once.
fn link(holder: &Component) -> Result<u8> {
    let target = holder.pid().unwrap_or_default().to_string();
    let mut index = 0;
    loop {
        let name = device(index);
        let made = run(Command::new("ip")
            .args(["link", "add", name.as_str(), "type", "veth"])
            .args(["peer", "name", "eth0", "netns", target.as_str()]));
        match made {
            Ok(_) => return Ok(index),
            Err(Error::Command { output, .. }) if output.contains("File exists") && index < 255 => {
                index += 1;
            }
            Err(error) => return Err(error),
        }
    }
}
