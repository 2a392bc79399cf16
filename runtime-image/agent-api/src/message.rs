//! What is said inside a session, as JSON.
//!
//! Fields that are added later have a default; what a reader does not know it passes
//! over. [`VERSION`] rises when that would not do.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::keys::LeasePublic;
use crate::lease::{LeaseError, Nonce, SignedLease};
use crate::task::{Pass, Task};
use crate::text::base64_bytes;
use crate::token::EnrolmentToken;

/// Of these messages.
pub const VERSION: u16 = 1;

/// No request stays open longer than this; longer waits are asked for again.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not JSON, or not of this form. What the bytes were is not repeated: it may be secret.
    #[error("malformed message (line {line}, column {column})")]
    Malformed {
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
    /// Of another version.
    #[error(
        "message of version {found}, this program speaks {VERSION}: use the same release on both ends"
    )]
    Version {
        /// What it says.
        found: u16,
    },
}

/// A message's bytes.
pub fn to_bytes(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages are maps with text keys")
}

/// Reads a message, its version first.
///
/// # Errors
/// Why it is none.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MessageError> {
    #[derive(Deserialize)]
    struct Version {
        version: u16,
    }
    let malformed =
        |e: serde_json::Error| MessageError::Malformed { line: e.line(), column: e.column() };
    let Version { version } = serde_json::from_slice(bytes).map_err(malformed)?;
    if version != VERSION {
        return Err(MessageError::Version { found: version });
    }
    serde_json::from_slice(bytes).map_err(malformed)
}

/// An agent's first words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u16,
    /// The claim's identity as its bootstrap gave it:
    /// `installation/namespace/claim/claim uid/attempt`.
    pub identity: String,
    /// Proof that our purchase started it.
    pub token: EnrolmentToken,
    /// What the machine is (`petaflop-runtime detect --json`), where that is known; else null.
    pub facts: serde_json::Value,
    /// Of the machine's boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Of this start of the agent. Goes into every request.
    pub start: Nonce,
    /// For the first lease.
    pub lease_nonce: Nonce,
}

/// The operator's answer to a [`Hello`] that it accepts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`VERSION`].
    pub version: u16,
    /// Whose leases count: one, or two while keys are changed.
    pub lease_keys: Vec<LeasePublic>,
    /// Answers [`Hello::lease_nonce`].
    pub lease: SignedLease,
    /// What to do; it may come later by [`Ask::Run`].
    #[serde(default)]
    pub task: Option<Task>,
}

/// What the operator asks of an enrolled agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u16,
    /// [`Hello::start`]: what was meant for an earlier start is void.
    pub start: Nonce,
    /// Higher than that of every request before it, so that a replayed one is refused.
    pub sequence: u64,
    /// What is asked.
    pub ask: Ask,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub enum Ask {
    /// Hold the machine for longer. Answer: [`Answer::Renewed`].
    Renew {
        /// Answers the newest nonce that the agent issued.
        lease: SignedLease,
    },
    /// Say how it goes, as soon as that is newer than `after`. Answer: [`Answer::Report`].
    Watch {
        /// [`Report::sequence`] of the last one seen; 0 for at once.
        after: u64,
        /// How long to wait for something new, at most [`LONGEST_WAIT`].
        wait_seconds: u64,
    },
    /// End the task in its own time, then the agent. Answer: [`Answer::Report`].
    Drain {
        /// Seconds until it is forced.
        grace_seconds: u64,
    },
    /// End the task now, then the agent. Answer: [`Answer::Report`].
    Terminate,
    /// A piece of the task's output. Answer: [`Answer::Logs`].
    Logs {
        /// From this byte of all that was written.
        offset: u64,
        /// At most this many bytes.
        limit: u64,
    },
    /// Do this; only where the welcome held no task. Answer: [`Answer::Report`].
    Run {
        /// What to do.
        task: Task,
    },
    /// Open the store with this from now on. Answer: [`Answer::Report`].
    Open {
        /// In place of [`Task::pass`].
        pass: Pass,
    },
}

/// What an agent answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// [`VERSION`].
    pub version: u16,
    /// To what was asked.
    pub answer: Answer,
}

/// Answers, one for each kind of question, and refusals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum Answer {
    /// The lease was taken.
    Renewed {
        /// For the next lease.
        next_nonce: Nonce,
    },
    /// How it goes.
    Report(Report),
    /// A piece of output.
    Logs {
        /// Where the piece begins: later than asked for where older output is gone from the machine.
        offset: u64,
        /// The piece.
        #[serde(with = "base64_bytes")]
        bytes: Vec<u8>,
        /// Bytes written in all so far.
        total: u64,
    },
    /// It was not done.
    Refused(Refusal),
}

/// Why an authentic request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "refusal")]
pub enum Refusal {
    /// It was replayed, overtaken, or came from another operator process.
    #[error("request: its sequence is not above {last}: replayed, or overtaken by another")]
    OldSequence {
        /// The highest seen.
        last: u64,
    },
    /// It was meant for another start of the agent, or by an operator that does not know which one runs.
    #[error("request: meant for another start of this agent")]
    OtherStart {
        /// The start that runs: for another try.
        start: Nonce,
    },
    /// The lease does not count.
    #[error("{why}")]
    Lease {
        /// Why.
        why: LeaseError,
        /// For another try.
        next_nonce: Nonce,
        /// Of the newest lease taken; the next must be higher.
        sequence: u64,
    },
    /// There is a task already.
    #[error("run: this agent has a task already")]
    Busy,
    /// The task cannot be run as it is.
    #[error("task: {problem}")]
    BadTask {
        /// What is wrong with it.
        problem: String,
    },
    /// The request was read by its session but makes no sense.
    #[error("request: {problem}")]
    BadRequest {
        /// What is wrong with it.
        problem: String,
    },
}

/// How a task goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Rises with every change.
    pub sequence: u64,
    /// How far it is.
    pub state: State,
    /// The last line of each kind in the task's progress file, by its `event`.
    #[serde(default)]
    pub progress: BTreeMap<String, serde_json::Value>,
    /// Bytes of output so far.
    #[serde(default)]
    pub log_bytes: u64,
    /// A nonce for the next lease.
    pub lease_nonce: Nonce,
    /// Of the newest lease taken.
    pub lease_sequence: u64,
    /// Until the lease runs out.
    pub lease_seconds_left: u64,
}

/// How far a task is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum State {
    /// There is none yet, or its files and inputs are on their way.
    Preparing,
    /// Its command runs. A [server](crate::task::Server) is not ready.
    Running,
    /// Its command runs, and is a server that answers its readiness probe.
    Ready,
    /// It was asked to end.
    Draining,
    /// It has ended.
    Exited(Exit),
}

/// How a task ended. Kept in the store beside its log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// Why it ended.
    pub why: Why,
    /// The command's exit code; absent where a signal ended it, or where it never started.
    pub code: Option<i32>,
    /// The signal that ended the command.
    pub signal: Option<i32>,
    /// For people: what happened, in a line.
    pub message: String,
    /// When the command was started.
    pub started_at: Option<Timestamp>,
    /// When it had ended.
    pub ended_at: Timestamp,
    /// The last line of its progress file, where that is its own exit report.
    #[serde(default)]
    pub report: Option<serde_json::Value>,
}

/// Why a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// By itself, well or badly.
    Finished,
    /// It could not be started.
    NotStarted,
    /// The operator, or whoever sent the agent SIGTERM, asked it to end.
    Drained,
    /// The provider gave notice that it takes the machine away.
    Notice,
    /// The operator ended it at once.
    Terminated,
    /// The lease had run out.
    Orphaned,
    /// It was not started: the machine lacks the accelerators that it was bought for.
    NoAccelerator,
    /// It was not started: an input is not there, not what it should be, or not for who asks. Another try gets no
    /// other answer.
    BadInput,
    /// Its command ended well, but the result could not be brought to where it was wanted; it is in the store.
    NotDelivered,
    /// As [`Why::NotDelivered`], and another try gets no other answer.
    BadDelivery,
    /// The agent ended it: a probe failed too often.
    Unhealthy,
}
