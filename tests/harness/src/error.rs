//! What can go wrong in building, starting or asking a test cluster.

use std::path::PathBuf;
use std::time::Duration;

/// The harness's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the cluster, or a part of it, is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system, or a process that could not be started.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with its path.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Something must be installed first.
    #[error("{what} is missing. {mend}")]
    Missing {
        /// What.
        what: String,
        /// The command that brings it.
        mend: String,
    },
    /// A command failed.
    #[error("`{command}` failed ({status}):\n{output}")]
    Command {
        /// The command line.
        command: String,
        /// Exit status.
        status: String,
        /// The end of what it wrote.
        output: String,
    },
    /// A component ended where it should have run.
    #[error("{name} ended by itself; the end of {}:\n{tail}", log.display())]
    Ended {
        /// Which.
        name: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// Something awaited did not come.
    #[error("{what}: not after {within:?}: {missing}")]
    Late {
        /// What was awaited.
        what: String,
        /// For how long.
        within: Duration,
        /// What was missing at the last look.
        missing: String,
    },
    /// A certificate or key could not be made.
    #[error("certificate of {subject}: {source}")]
    Certificate {
        /// Whose.
        subject: String,
        /// Why.
        source: rcgen::Error,
    },
    /// A kubeconfig that the client does not take.
    #[error("{}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<kube::config::KubeconfigError>,
    },
    /// The API server refused or did not answer.
    #[error("{what}: {source}")]
    Api {
        /// What was asked.
        what: String,
        /// The client's error.
        source: Box<kube::Error>,
    },
    /// Etcd refused or did not answer.
    #[error("etcd, {what}: {message}")]
    Etcd {
        /// What was asked.
        what: &'static str,
        /// Why not.
        message: String,
    },
    /// This cluster was not started in the way that is asked of it now.
    #[error("{0}")]
    Unfit(String),
}

impl Error {
    /// For `map_err` on file and process operations.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// For `map_err` on requests to the API server.
    pub(crate) fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Api { what, source: Box::new(source) }
    }
}
