//! How the runtime ends: its exit codes, and failures that carry one.

use std::{
    fmt::Display,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use petaflop_store::report::{Progress, ProgressWriter};
use petaflop_train::{Class, Error};

/// Shown by `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
    0  done
    1  failed; another try, here or elsewhere, may help
    2  bad input; the same job can never work
    3  does not fit into the memory there is, of the machine or of the device
    4  the device asked for is not here, failed its canary, or has a driver that does not take a kernel
   75  stopped on request, with a durable checkpoint: the same command goes on from there
  130  stopped at once by a second signal";

/// An exit code with its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// The job is done.
    Done = 0,
    /// Another try may help.
    Failed = 1,
    /// The same job can never work.
    BadInput = 2,
    /// More memory is needed than there is.
    DoesNotFit = 3,
    /// The device cannot be computed on; another machine's may be.
    NoDevice = 4,
    /// Stopped on request; can go on (`EX_TEMPFAIL` of sysexits).
    Stopped = 75,
    /// A second signal did not wait for the checkpoint (128 + SIGINT, as shells have it).
    Interrupted = 130,
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn bad_input(message: impl Display) -> Self {
        Self { code: Code::BadInput, message: message.to_string() }
    }

    pub(crate) fn failed(message: impl Display) -> Self {
        Self { code: Code::Failed, message: message.to_string() }
    }

    /// Makes it the last line of the progress file, for whoever started us.
    pub(crate) fn note(&self, progress: Option<&Path>) {
        let Some(progress) = progress else {
            return;
        };
        let line = Progress::Failed {
            message: self.message.clone(),
            retry: matches!(self.code, Code::Failed | Code::NoDevice),
        };
        let written = ProgressWriter::append(progress).and_then(|mut file| file.write(&line));
        if let Err(error) = written {
            tracing::error!(%error, "the failure is missing in the progress file");
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { code: error.class().into(), message: error.to_string() }
    }
}

impl From<Class> for Code {
    fn from(class: Class) -> Self {
        match class {
            Class::Retry => Self::Failed,
            Class::BadInput => Self::BadInput,
            Class::DoesNotFit => Self::DoesNotFit,
            Class::NoDevice => Self::NoDevice,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::failed(error)
    }
}

/// Says what went wrong, and ends with the code.
pub(crate) fn finish(result: Result<Code, Failure>) -> ExitCode {
    let code = result.unwrap_or_else(|Failure { code, message }| {
        // A closed stderr is no reason to end differently.
        let _ = writeln!(io::stderr(), "error: {message}");
        code
    });
    ExitCode::from(code as u8)
}

/// Prints one line for a machine. A reader that went away ends the command without a panic.
pub(crate) fn print(text: impl Display) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}")
        .map_err(|error| Failure::failed(format!("cannot write to stdout: {error}")))
}
