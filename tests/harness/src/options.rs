//! What a control plane is made of.

use std::collections::BTreeMap;

use crate::process::Launch;

/// One of the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// etcd
    Etcd,
    /// kube-apiserver
    Apiserver,
    /// kube-controller-manager
    ControllerManager,
    /// kube-scheduler
    Scheduler,
}

impl Part {
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Apiserver => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
        }
    }
}

/// What a control plane is made of; by default all four servers.
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) controller_manager: bool,
    pub(crate) scheduler: bool,
    pub(crate) node: bool,
    arguments: BTreeMap<Part, Vec<String>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { controller_manager: true, scheduler: true, node: false, arguments: BTreeMap::new() }
    }
}

impl Options {
    /// Without controller-manager and scheduler: half a second and 100 MB less,
    /// but nothing collects garbage, fills namespaces or finishes deleting them.
    #[must_use]
    pub fn only_api(mut self) -> Self {
        self.controller_manager = false;
        self.scheduler = false;
        self
    }

    /// With a node that runs containers. Root only: see [`crate::tools::is_root`].
    #[must_use]
    pub fn with_node(mut self) -> Self {
        self.node = true;
        self
    }

    /// One more argument for one of the servers, as on its command line.
    #[must_use]
    pub fn argument(mut self, part: Part, argument: impl Into<String>) -> Self {
        self.arguments.entry(part).or_default().push(argument.into());
        self
    }

    /// How this server is started, with what was asked for.
    pub(crate) fn extend(&self, part: Part, launch: Launch) -> Launch {
        launch.arguments(self.arguments.get(&part).into_iter().flatten().cloned())
    }
}
