//! What the agent's own exit code says.

use petaflop_agent_api::message::{Exit, Why};

/// The bootstrap environment is not usable (`EX_USAGE` of sysexits).
pub const BAD_BOOTSTRAP: u8 = 64;
/// The machine refuses what the agent itself needs: a folder, a port.
pub const BROKEN: u8 = 70;
/// The lease had run out, or nobody enrolled the agent in time. The task was ended.
pub const ORPHANED: u8 = 96;
/// The agent was told to end before it had a task.
pub const NO_TASK: u8 = 97;
/// The task was not started: the machine lacks the accelerators that it was bought for.
pub const NO_ACCELERATOR: u8 = 98;
/// The task could not be started, as shells have it.
pub const NOT_STARTED: u8 = 127;

/// Shown by `--help`.
pub const HELP: &str = "\
Exit codes:
    the task's own, or 128 + the signal that ended it
   64  the bootstrap environment is not usable
   70  the machine refuses a folder or port that the agent needs
   96  orphaned: the lease ran out, or nobody enrolled the agent in time
   97  told to end before there was a task
   98  the machine lacks the accelerators that it was bought for; the task was not started
  127  the task could not be started";

/// The code for how a task ended.
pub fn code(exit: &Exit) -> u8 {
    match (exit.why, exit.code, exit.signal) {
        (Why::Orphaned, _, _) => ORPHANED,
        (Why::NotStarted | Why::BadInput, _, _) => NOT_STARTED,
        (Why::NoAccelerator, _, _) => NO_ACCELERATOR,
        (_, Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (_, None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        (_, None, None) => NO_TASK,
    }
}
