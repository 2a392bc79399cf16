//! Runs a command to its end and keeps what it said for the error.

use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// How much of an output goes into an error.
const TAIL_LINES: usize = 40;

/// Standard output of a command that succeeded.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output =
        command.stdin(Stdio::null()).output().map_err(Error::io(format!("starting `{shown}`")))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let both = format!("{stdout}{}", String::from_utf8_lossy(&output.stderr));
    Err(Error::Command {
        command: shown,
        status: output.status.to_string(),
        output: tail(&both).to_owned(),
    })
}

/// The last lines of a text.
pub(crate) fn tail(text: &str) -> &str {
    let text = text.trim_end();
    let start = text.rmatch_indices('\n').nth(TAIL_LINES - 1).map_or(0, |(at, _)| at + 1);
    &text[start..]
}

fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
