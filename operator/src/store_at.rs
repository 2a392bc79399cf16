//! A place where artifacts, checkpoints, logs or rows of money are kept, and what opens it.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::ObjectStore;
use petaflop_agent_api::task::Secret;
use petaflop_store::{Store, StoreError, place};

use crate::narrow::Narrow;

/// What of the environment opens a bucket from another machine. Whatever else begins with `AWS_` is
/// this process's own (a token file, a role), and is no one else's business.
pub const HANDED_ON: [&str; 8] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
];

/// Of these, what opens it; the others say where it is.
const KEYS: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

/// A place, and what opens it.
#[derive(Clone, Debug, Default)]
pub struct StoreAt {
    /// Folder or `s3://bucket/prefix`.
    pub uri: String,
    /// As the environment would name it (`AWS_ACCESS_KEY_ID`, …).
    pub credentials: BTreeMap<String, Secret>,
    /// Makes passes for machines; without it they get the credentials.
    pub narrow: Option<Narrow>,
}

impl StoreAt {
    /// A place that opens with what the environment holds; a folder needs nothing, and gets nothing.
    pub fn of_environment(uri: &str) -> Self {
        let bucket = uri.contains("://") && !uri.starts_with("file://");
        let of = |name: &str| Some((name.to_owned(), Secret::new(&std::env::var(name).ok()?)));
        let credentials = HANDED_ON.into_iter().filter(|_| bucket).filter_map(of).collect();
        Self { uri: uri.trim_end_matches('/').to_owned(), credentials, narrow: None }
    }

    /// What a machine is told beside its pass, or instead of one.
    pub fn handed_on(&self) -> BTreeMap<String, Secret> {
        let mut told = self.credentials.clone();
        if self.narrow.is_some() {
            told.retain(|name, _| !KEYS.contains(&name.as_str()));
        }
        told
    }

    /// As the store takes them; `None`: the environment's.
    pub fn given(&self) -> Option<place::Credentials<'_>> {
        let given: place::Credentials<'_> =
            self.credentials.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
        Some(given).filter(|given| !given.is_empty())
    }

    /// The store at a URI that the same credentials open.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn store(&self, uri: &str) -> Result<Store, StoreError> {
        Store::open_with(uri, self.given().as_ref())
    }

    /// What lies there, by path.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn objects(&self) -> Result<Arc<dyn ObjectStore>, StoreError> {
        place::objects(&self.uri, self.given().as_ref())
    }
}
