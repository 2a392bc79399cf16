//! What the cloud in a box and the program that makes its machines say to each other: [`Order`]s, a
//! line of JSON each, to the standard input of `petaflop-box-machine world`; [`Event`]s back.
//!
//! The program is one static binary, which does all that needs root and leaves nothing behind:
//!
//! | module | is |
//! |---|---|
//! | `world` | the process beside the test: a switch, machines on it, and their end when the test's is |
//! | `enter` | from a process of the host to process 1 of a machine: cgroups, cable, namespaces |
//! | `root` | a root file system of an image, by mounts that only the machine sees |
//! | `whole` | process 1 of a machine that runs containers: user-data, power button, containers |
//! | `docker`, `system` | `docker`, and `shutdown` and `systemctl`, on such a machine |
//! | `relay` | a socket of the machine's network, carried to one of the host |

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A file or folder from outside that is seen inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Where it is.
    pub from: PathBuf,
    /// Where it is seen; absolute.
    pub to: PathBuf,
    /// Whether it may only be read.
    pub read_only: bool,
}

/// An unpacked image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Folder with its files, which is never written to.
    pub root: PathBuf,
    /// What starts, if nobody says otherwise.
    pub entrypoint: Vec<String>,
    /// Arguments to that.
    pub command: Vec<String>,
    /// Environment of what starts.
    pub environment: BTreeMap<String, String>,
    /// Files that are not in its folder.
    pub binds: Vec<Bind>,
}

impl Image {
    /// An image of these files, which starts nothing by itself.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), ..Self::default() }
    }

    /// With a file of the host's, read only.
    #[must_use]
    pub fn with(mut self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Self {
        self.binds.push(Bind { from: from.into(), to: to.into(), read_only: true });
        self
    }

    /// With a folder of the host's, in the same place, that all who have it share.
    #[must_use]
    pub fn sharing(mut self, folder: impl Into<PathBuf>) -> Self {
        let from = folder.into();
        self.binds.push(Bind { to: from.clone(), from, read_only: false });
        self
    }

    /// With something that starts if nobody says otherwise.
    #[must_use]
    pub fn starting(mut self, entrypoint: &[&str]) -> Self {
        self.entrypoint = entrypoint.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// What a container of it runs. As docker has it: another entrypoint also drops the image's
    /// own arguments.
    pub fn program(
        &self,
        entrypoint: Option<&[String]>,
        command: Option<&[String]>,
        environment: &BTreeMap<String, String>,
    ) -> Program {
        let kept: &[String] = if entrypoint.is_some() { &[] } else { &self.command };
        let first = entrypoint.unwrap_or(&self.entrypoint);
        let mut all = self.environment.clone();
        all.extend(environment.clone());
        Program { argv: [first, command.unwrap_or(kept)].concat(), environment: all }
    }
}

/// What becomes process 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its words.
    pub argv: Vec<String>,
    /// Its environment; what docker always adds is added.
    pub environment: BTreeMap<String, String>,
}

/// A machine that runs containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whole {
    /// Run by root if it begins with `#!`.
    pub user_data: Vec<u8>,
    /// What its docker can pull.
    pub images: BTreeMap<String, Image>,
    /// What is in the environment of everything on it.
    pub environment: BTreeMap<String, String>,
}

/// What runs on a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// One container.
    Container(Program),
    /// Containers, and what starts them.
    Whole(Whole),
}

/// The inside of a machine, or of a container on one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inside {
    /// Its name.
    pub hostname: String,
    /// Its address, for `/etc/hosts`.
    pub address: Option<Ipv4Addr>,
    /// Its files.
    pub image: Image,
    /// Megabytes that it may write.
    pub disk: u64,
    /// What runs.
    pub what: What,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Its number: no other has it, before or after.
    pub machine: u32,
    /// Its address on the switch.
    pub address: Ipv4Addr,
    /// Processors in thousandths; 0: as many as there are.
    pub cpu_millis: u32,
    /// Bytes of memory; 0: as much as there is.
    pub memory: u64,
    /// Where its metadata service listens on the host, and the hops that an answer may go.
    pub metadata: Option<(PathBuf, u32)>,
    /// The rest.
    pub inside: Inside,
}

/// Whom a machine no longer reaches, nor is it reached from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// The operator and all that is on its side: the host's second address.
    Operator,
    /// The provider's API: the host's first address.
    Provider,
    /// Anybody.
    All,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// A machine starts.
    Start(Box<Start>),
    /// A machine is told to end (a container by SIGTERM, a whole one by its power button), and is
    /// killed after so many milliseconds.
    End(u32, u64),
    /// A machine's host dies: everything on it at once.
    Kill(u32),
    /// A cable breaks: what is sent is lost without a word.
    Cut(u32, Side),
    /// All cables of a machine are whole again.
    Mend(u32),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The switch is there; its network begins with these three bytes.
    Ready([u8; 3]),
    /// Nothing runs on a machine any more; how its process 1 ended.
    Ended(u32, i32),
    /// Something that should not be.
    Note(String),
}

/// Where this program is on a machine that runs containers.
pub const PROGRAM: &str = "/usr/lib/petaflop-box/machine";

/// What a machine that runs containers needs of the host: the images that its docker can pull, by
/// where their files are on the machine, and the binds that bring them there.
pub fn carried(
    images: &BTreeMap<String, Image>,
    program: &std::path::Path,
) -> (BTreeMap<String, Image>, Vec<Bind>) {
    let mut binds = Vec::new();
    let mut bring = |from: &std::path::Path, to: PathBuf, read_only: bool| {
        binds.push(Bind { from: from.to_owned(), to: to.clone(), read_only });
        to
    };
    bring(program, PathBuf::from(PROGRAM), true);
    let mut inside = BTreeMap::new();
    for (place, (name, image)) in images.iter().enumerate() {
        let registry = PathBuf::from(format!("/var/lib/petaflop-box/registry/{place}"));
        let mut image = image.clone();
        image.root = bring(&image.root, registry.join("root"), true);
        for (place, bind) in image.binds.iter_mut().enumerate() {
            bind.from = bring(&bind.from, registry.join(place.to_string()), bind.read_only);
        }
        inside.insert(name.clone(), image);
    }
    (inside, binds)
}
