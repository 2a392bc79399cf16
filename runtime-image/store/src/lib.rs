//! Content-addressed artifacts over the `object_store` crate, and the reports
//! that outlive a job's machine.
//!
//! ```text
//! chunks/<first two digits>/<blake3>     up to 4 MiB of a file, named by its content
//! artifacts/<artifact hash>.json         a Manifest: files, lengths, hashes, chunks
//! keys/<namespace or "-">/<key>          the artifact hash a finished job's key names
//! .lock                                  local folders only: writers share it, gc takes it alone
//! gc/<random>                            buckets only: a gc that runs, or ran
//! ```
//!
//! **A name is there only when everything below it is.** Chunks are written first,
//! then the manifest, then the key; removal goes the other way; each object appears
//! whole or not at all and, in a local folder, is synced before the next is begun.
//! A crash in between leaves at most chunks that nobody refers to, which a retry
//! uses and [`Store::gc`] removes.
//!
//! **Nothing is believed on its name.** Every read hashes what it read. What is
//! missing or altered is an error that names artifact, path, object and mend
//! ([`Damage`]), and is never handed out.
//!
//! | module | holds |
//! |---|---|
//! | [`hash`] | [`Digest`], [`ArtifactHash`] and how it is computed |
//! | [`place`] | from a URI to the objects behind it: folders, S3 |
//! | [`manifest`] | [`Manifest`], [`FileEntry`], which paths an artifact may hold |
//! | `store` | [`Store::open`], naming artifacts by prefix, listing |
//! | `put` | [`Store::put_artifact`], [`Store::put_files`]: a folder, or files in memory, become an artifact |
//! | `read` | [`Store::manifest`], [`Store::read_file`], [`Store::materialise`] |
//! | `take` | [`Store::take`]: an artifact of another store |
//! | `keys` | [`Store::bind_key`], [`Store::find_key`] |
//! | `verify` | [`Store::verify`]: read everything and name what is damaged |
//! | `gc` | [`Store::gc`]: remove what nothing refers to |
//! | `alone` | [`Store::remove_artifact`] and its chunks, where one writer is alone |
//! | `sweeps` | keeping gc and writers apart in a bucket |
//! | [`fetch`] | plain data of a place to files of this machine, and its digest |
//! | `objects` | [`Objects`]: plain objects of a place, without async |
//! | [`blocking`] | the same for callers without async |
//! | [`folder`] | files of a folder in order; its hash without a store |
//! | [`logs`] | a task's output and exit report, beyond its machine's life |
//! | [`report`] | progress lines of a job: types, writer, tailing reader |

mod alone;
pub mod blocking;
mod error;
pub mod fetch;
pub mod folder;
mod gc;
pub mod hash;
mod keys;
pub mod logs;
pub mod manifest;
mod objects;
pub mod place;
mod progress;
mod put;
mod read;
pub mod report;
mod store;
mod sweeps;
mod take;
mod verify;

pub use error::{Damage, StoreError};
pub use gc::{GcOptions, GcReport, Keep};
pub use hash::{ArtifactHash, Digest};
pub use keys::KeyBinding;
pub use manifest::{FileEntry, Manifest};
pub use objects::Objects;
pub use put::Stored;
pub use store::{ArtifactInfo, Store};
pub use sweeps::REMOTE_MIN_AGE;
pub use verify::VerifyReport;
