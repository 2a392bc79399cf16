//! The agent: on a claimed machine it runs one task, says how it goes, and gives the
//! machine back when nobody wants it any more.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | what an agent is started with, and reading it from the environment |
//! | [`agent`] | [`Agent`]: from enrolment to the exit report |
//! | `session` | the agent's half of the protocol, without sockets: who may say what |
//! | `delivery` | its result, to another store |
//! | `server`, `dial` | the two transports: the operator calls, or the agent does |
//! | `accelerators` | whether the machine has the accelerators that it was bought for |
//! | `folders` | what the task must have in memory: folders of files |
//! | `inputs` | its inputs, brought and held against their digests |
//! | `pass` | what opens the store for a while, to the task on this machine |
//! | `relay` | gateways' streams, to the port that the task serves |
//! | `command` | the task's process: start, signal, wait |
//! | `output` | its output: kept on a bounded piece of disk, read by offset |
//! | `ship` | output and exit report to the store |
//! | `probes` | how a command is that serves and does not say so itself |
//! | `watch` | its progress file, the provider's notice in a file |
//! | `metadata` | the provider's notice, and what comes before it, from EC2's metadata service |
//! | `host` | the host's own timer, which is told of the lease |
//! | [`end_pod`] | ending the pod that this is, at RunPod |
//! | [`trust`] | whom TLS trusts, in an image that does not say |
//! | [`exit`] | exit codes |
//!
//! It ends the task when it is told to, when it gets SIGTERM, when the provider gives
//! notice, and when its lease has run out: SIGTERM to the task's process group, the
//! task's grace, SIGKILL. It never restarts a task: that is another claim's business.

mod accelerators;
pub mod agent;
mod command;
pub mod config;
mod delivery;
mod dial;
mod end_pod;
pub mod exit;
mod folders;
mod host;
mod inputs;
mod metadata;
mod output;
mod pass;
mod probes;
mod relay;
mod server;
mod session;
mod ship;
pub mod trust;
mod watch;

pub use agent::{Agent, AgentError, Stopper};
pub use command::{EXEC, exec};
pub use config::Config;
pub use end_pod::end_pod;
