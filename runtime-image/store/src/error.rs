//! What can go wrong with a store, each with its place and its mend.

use std::{io, path::PathBuf};

use crate::ArtifactHash;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URI names a kind of store that is not built in.
    #[error(
        "store `{uri}`: scheme `{scheme}` is not supported: use a folder (a plain path or file:///…) or s3://bucket/prefix"
    )]
    UnsupportedScheme {
        /// As given.
        uri: String,
        /// Its scheme.
        scheme: String,
    },
    /// The URI cannot be read.
    #[error(
        "store `{uri}`: {problem}: use a folder (a plain path or file:///…) or s3://bucket/prefix"
    )]
    BadUri {
        /// As given.
        uri: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No artifact has this name.
    #[error("no artifact `{name}` in {store}: `petaflop artifacts ls` shows those that exist")]
    NotFound {
        /// The hash or prefix asked for.
        name: String,
        /// The store.
        store: String,
    },
    /// Several artifacts begin with this prefix.
    #[error("ambiguous: `{prefix}` begins {}: give more digits", list(.candidates))]
    Ambiguous {
        /// As given.
        prefix: String,
        /// All that begin with it, in order.
        candidates: Vec<ArtifactHash>,
    },
    /// Not a hash and not the beginning of one.
    #[error("`{0}` names no artifact: expected 4 to 64 lower-case hex digits")]
    BadHash(String),
    /// The artifact has no such file.
    #[error("artifact {artifact} holds no file `{path}`")]
    NoSuchFile {
        /// The artifact.
        artifact: ArtifactHash,
        /// The path asked for.
        path: String,
    },
    /// Something stored is not what its name says; it was not used.
    #[error("{0}")]
    Damaged(Box<Damage>),
    /// A folder cannot become an artifact.
    #[error("`{path}`: {problem}")]
    BadInput {
        /// The file or folder.
        path: String,
        /// What is wrong, and the mend.
        problem: String,
    },
    /// A key or namespace is malformed.
    #[error("{what} `{value}`: expected {expected}")]
    BadKey {
        /// `key` or `namespace`.
        what: &'static str,
        /// As given.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// The key already names another artifact: two runs of one recipe differed.
    #[error(
        "key {key} already names artifact {bound}, not {offered}: the same recipe gave other bits, \
         so either the arithmetic changed (raise NUMERICS_VERSION) or one result is wrong; \
         after looking into it, remove {object} to bind it anew"
    )]
    KeyTaken {
        /// The key.
        key: String,
        /// What it names.
        bound: ArtifactHash,
        /// What it was to name.
        offered: ArtifactHash,
        /// The object that binds it.
        object: String,
    },
    /// The folder to fill holds something else.
    #[error("{}: already exists and is not artifact {artifact}: {problem}; remove it or name another folder", dir.display())]
    Occupied {
        /// The folder.
        dir: PathBuf,
        /// The artifact that was to go there.
        artifact: ArtifactHash,
        /// How it differs.
        problem: String,
    },
    /// Another process is writing to the store.
    #[error("{store}: a write is under way; run gc again when it has ended")]
    Busy {
        /// The store.
        store: String,
    },
    /// Writing an artifact took longer than gc waits for.
    #[error("{store}: writing took more than 12 hours; run it again: what was written is used")]
    TooSlow {
        /// The store.
        store: String,
    },
    /// No room.
    #[error(
        "{place}: no space left: free some (`petaflop artifacts gc`) or use a store elsewhere; nothing was lost, run it again"
    )]
    Full {
        /// The file or folder.
        place: String,
    },
    /// Not writable.
    #[error("{place}: not writable ({problem}): allow writing there or use a store elsewhere")]
    ReadOnly {
        /// The file or folder.
        place: String,
        /// `read-only file system` or `permission denied`.
        problem: &'static str,
    },
    /// The program is shutting down.
    #[error("stopped: the program is shutting down")]
    Stopping,
    /// A file of ours could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The object store failed otherwise.
    #[error("{place}: {source}")]
    Backend {
        /// The object or prefix.
        place: String,
        /// What the object store said.
        source: object_store::Error,
    },
}

/// Something stored that is not what its name says.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Damage {
    /// The artifact it belongs to, where one is known.
    pub artifact: Option<ArtifactHash>,
    /// The file inside the artifact, where one is touched.
    pub path: Option<String>,
    /// The object (chunk, manifest, key) in the store, as a file path for a local one.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// What makes it good again.
    pub mend: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { artifact, path, object, problem, mend } = self;
        if let Some(artifact) = artifact {
            write!(f, "artifact {artifact}: ")?;
        }
        if let Some(path) = path {
            write!(f, "`{path}`: ")?;
        }
        write!(f, "{object}: {problem}; {mend}")
    }
}

fn list(hashes: &[ArtifactHash]) -> String {
    let hashes: Vec<String> = hashes.iter().map(ToString::to_string).collect();
    hashes.join(", ")
}

impl StoreError {
    /// Whether whoever asked may not do that there.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Backend { source, .. } if permission_denied(source))
    }

    /// Whether the same question gets the same answer until somebody changes something: what was asked
    /// for is not there, is not what it should be, or is not for who asks.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::UnsupportedScheme { .. }
            | Self::BadUri { .. }
            | Self::NotFound { .. }
            | Self::Ambiguous { .. }
            | Self::BadHash(_)
            | Self::NoSuchFile { .. }
            | Self::Damaged(_)
            | Self::BadInput { .. }
            | Self::BadKey { .. }
            | Self::KeyTaken { .. }
            | Self::Occupied { .. } => true,
            Self::Backend { source: object_store::Error::NotFound { .. }, .. } => true,
            Self::Backend { .. } => self.is_forbidden(),
            Self::Busy { .. }
            | Self::TooSlow { .. }
            | Self::Full { .. }
            | Self::ReadOnly { .. }
            | Self::Stopping
            | Self::Io { .. } => false,
        }
    }

    /// From what the object store said about `place`.
    pub(crate) fn backend(place: impl Into<String>, source: object_store::Error) -> Self {
        let place = place.into();
        // The local backend wraps the system's error several times over.
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&source);
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<io::Error>()
                && let Some(known) = Self::known(&place, io)
            {
                return known;
            }
            cause = error.source();
        }
        Self::Backend { place, source }
    }

    /// From what the system said about `path`.
    pub(crate) fn io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        Self::known(&path.display().to_string(), &source).unwrap_or(Self::Io { path, source })
    }

    fn known(place: &str, error: &io::Error) -> Option<Self> {
        let place = place.to_owned();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(Self::Full { place }),
            io::ErrorKind::ReadOnlyFilesystem => {
                Some(Self::ReadOnly { place, problem: "read-only file system" })
            }
            _ => None,
        }
    }

    /// As [`StoreError::backend`] and [`StoreError::io`], but for a write: there, a
    /// denied permission means "not writable".
    pub(crate) fn writing(self) -> Self {
        let denied = match &self {
            Self::Io { path, source } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(path.display().to_string())
            }
            Self::Backend { place, source } if permission_denied(source) => Some(place.clone()),
            _ => None,
        };
        match denied {
            Some(place) => Self::ReadOnly { place, problem: "permission denied" },
            None => self,
        }
    }
}

fn permission_denied(source: &object_store::Error) -> bool {
    if matches!(source, object_store::Error::PermissionDenied { .. }) {
        return true;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(source);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.kind() == io::ErrorKind::PermissionDenied;
        }
        cause = error.source();
    }
    false
}
