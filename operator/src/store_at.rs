//! A place where artifacts, checkpoints, logs or rows of money are kept, and what opens it.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::ObjectStore;
use petaflop_agent_api::task::Secret;
use petaflop_store::{StoreError, place};

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

/// A place, and what opens it.
#[derive(Clone, Debug, Default)]
pub struct StoreAt {
    /// Folder or `s3://bucket/prefix`.
    pub uri: String,
    /// As the environment would name it (`AWS_ACCESS_KEY_ID`, …).
    pub credentials: BTreeMap<String, Secret>,
}

impl StoreAt {
    /// A place that opens with what the environment holds; a folder needs nothing, and gets nothing.
    pub fn of_environment(uri: &str) -> Self {
        let bucket = uri.contains("://") && !uri.starts_with("file://");
        let of = |name: &str| Some((name.to_owned(), Secret::new(&std::env::var(name).ok()?)));
        let credentials = HANDED_ON.into_iter().filter(|_| bucket).filter_map(of).collect();
        Self { uri: uri.trim_end_matches('/').to_owned(), credentials }
    }

    /// What lies there, by path.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn objects(&self) -> Result<Arc<dyn ObjectStore>, StoreError> {
        let credentials: place::Credentials<'_> =
            self.credentials.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
        place::objects(&self.uri, Some(&credentials).filter(|given| !given.is_empty()))
    }
}
