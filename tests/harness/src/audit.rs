//! What was written to the API server, from its audit log: the measure of what
//! an operator costs a cluster, exact where a client's own count is not.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::DeleteParams;
use serde::Deserialize;

use crate::access::Access;
use crate::error::{Error, Result};
use crate::eventually;

/// In the state folder.
pub(crate) const LOG: &str = "audit.jsonl";

/// Every request that writes, once, when it is answered. Of ServiceAccounts those that read too:
/// programs under test run as such, and what they are refused is counted.
pub(crate) const POLICY: &str = r#"{
  "apiVersion": "audit.k8s.io/v1",
  "kind": "Policy",
  "omitStages": ["RequestReceived", "ResponseStarted"],
  "rules": [
    { "level": "Metadata", "userGroups": ["system:serviceaccounts"], "omitManagedFields": true },
    { "level": "None", "verbs": ["get", "list", "watch"] },
    { "level": "Metadata", "omitManagedFields": true }
  ]
}"#;

/// One request that writes, answered.
#[derive(Clone, Debug)]
pub struct Write {
    /// `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// What it was for.
    pub object: Object,
    /// Who asked.
    pub user: String,
    /// The HTTP status of the answer.
    pub code: u16,
    /// When it came in.
    pub received: jiff::Timestamp,
    dry_run: bool,
}

/// What a request was for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// API group; empty for the core.
    pub group: String,
    /// As in `trainingjobs`.
    pub resource: String,
    /// As in `status`; empty for the object itself.
    pub subresource: String,
    /// Empty for cluster-wide objects.
    pub namespace: String,
    /// Empty where the server chose it (`generateName`).
    pub name: String,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.resource)?;
        if !self.subresource.is_empty() {
            write!(f, "/{}", self.subresource)?;
        }
        write!(f, " {}/{}", self.namespace, self.name)
    }
}

impl Write {
    /// Whether it was taken: answered by 2xx and not as a dry run.
    pub fn was_taken(&self) -> bool {
        (200..300).contains(&self.code) && !self.dry_run
    }

    /// Whether it is an Event, counted apart everywhere.
    pub fn is_event(&self) -> bool {
        self.object.resource == "events"
    }

    /// Whether it only asks (TokenReview, SubjectAccessReview, a token): a
    /// `create` in the log of which nothing is kept.
    pub fn is_question(&self) -> bool {
        matches!(self.object.group.as_str(), "authentication.k8s.io" | "authorization.k8s.io")
            || self.object.subresource == "token"
    }
}

/// Reads the audit log from the moment this was made.
#[derive(Debug)]
pub struct Writes {
    access: Access,
    log: PathBuf,
    from: u64,
}

impl Writes {
    pub(crate) async fn from_here(access: &Access, log: PathBuf) -> Result<Self> {
        let mut writes = Self { access: access.clone(), log, from: 0 };
        writes.catch_up().await?;
        writes.from = writes.length()?;
        Ok(writes)
    }

    /// All writes since this was made that were answered before this call, in
    /// the order of their answers; refused ones and questions too.
    ///
    /// # Errors
    /// The API server does not answer, or the log cannot be read.
    pub async fn all(&self) -> Result<Vec<Write>> {
        let mut all = self.requests().await?;
        all.retain(|write| !matches!(write.verb.as_str(), "get" | "list" | "watch"));
        Ok(all)
    }

    /// What was refused for want of rights since this was made, reads of ServiceAccounts included.
    ///
    /// # Errors
    /// As [`Self::all`].
    pub async fn refused(&self) -> Result<Vec<Write>> {
        let mut all = self.requests().await?;
        all.retain(|write| write.code == 403);
        Ok(all)
    }

    async fn requests(&self) -> Result<Vec<Write>> {
        self.catch_up().await?;
        let lines = self.lines_since(self.from)?;
        let mut all: Vec<Write> = Vec::new();
        for line in lines.lines() {
            let entry: Entry = serde_json::from_str(line).map_err(|error| Error::Io {
                what: format!("{}: {line}", self.log.display()),
                source: error.into(),
            })?;
            all.extend(entry.write());
        }
        all.retain(|write| !write.object.name.starts_with(SENTINEL));
        Ok(all)
    }

    /// What was taken, counted; only of `user` where one is given.
    ///
    /// # Errors
    /// As [`Self::all`].
    pub async fn tally(&self, user: Option<&str>) -> Result<Tally> {
        let all = self.all().await?;
        Ok(Tally::of(all.iter().filter(|write| user.is_none_or(|user| write.user == user))))
    }

    /// The log runs a moment behind the answers. A write of our own, which is
    /// refused, has to appear in it.
    async fn catch_up(&self) -> Result<()> {
        let from = self.length()?;
        let mark = format!("{SENTINEL}{:x}", jiff::Timestamp::now().as_nanosecond());
        let maps: Api<ConfigMap> = Api::namespaced(self.access.client().await?, "default");
        match maps.delete(&mark, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(Error::api("the audit log's mark")(error)),
            Ok(_) => return Err(Error::Unfit(format!("ConfigMap default/{mark} existed"))),
        }
        eventually("the audit log's mark", Duration::from_secs(30), || async {
            match self.lines_since(from) {
                Ok(lines) if lines.contains(&mark) => Ok(()),
                Ok(_) => Err(format!("no {mark} in {}", self.log.display())),
                Err(error) => Err(error.to_string()),
            }
        })
        .await
    }

    fn length(&self) -> Result<u64> {
        let meta = std::fs::metadata(&self.log);
        meta.map(|meta| meta.len()).map_err(Error::io(self.log.display().to_string()))
    }

    /// Whole lines only: the last one may still be on its way.
    fn lines_since(&self, offset: u64) -> Result<String> {
        let mut text = Vec::new();
        std::fs::File::open(&self.log)
            .and_then(|mut file| {
                file.seek(SeekFrom::Start(offset))?;
                file.read_to_end(&mut text)
            })
            .map_err(Error::io(self.log.display().to_string()))?;
        let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        text.truncate(end);
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Names of the objects that never exist and mark a place in the log.
const SENTINEL: &str = "petaflop-audit-mark-";

/// Writes that were taken, counted an object and verb; questions left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Everything but Events.
    pub writes: BTreeMap<(Object, String), u64>,
    /// Events, of whatever object.
    pub events: u64,
}

impl Tally {
    /// Counts these.
    pub fn of<'a>(writes: impl IntoIterator<Item = &'a Write>) -> Self {
        let mut tally = Self::default();
        for write in writes {
            if !write.was_taken() || write.is_question() {
                continue;
            }
            if write.is_event() {
                tally.events += 1;
            } else {
                *tally.writes.entry((write.object.clone(), write.verb.clone())).or_default() += 1;
            }
        }
        tally
    }

    /// All writes but Events.
    pub fn total(&self) -> u64 {
        self.writes.values().sum()
    }

    /// Writes of one resource, status and other subresources included.
    pub fn of_resource(&self, resource: &str) -> u64 {
        let of = |((object, _), _): &(&(Object, String), &u64)| object.resource == resource;
        self.writes.iter().filter(of).map(|(_, count)| count).sum()
    }
}

/// One line a kind of write, for a test's failure message.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((object, verb), count) in &self.writes {
            writeln!(f, "{count:6} {verb} {object}")?;
        }
        writeln!(f, "{:6} events", self.events)
    }
}

/// A line of the log (audit.k8s.io/v1 Event).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(rename = "requestURI")]
    request_uri: String,
    verb: String,
    user: User,
    impersonated_user: Option<User>,
    object_ref: Option<Reference>,
    response_status: Option<Status>,
    request_received_timestamp: jiff::Timestamp,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Reference {
    api_group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Deserialize)]
struct Status {
    code: Option<u16>,
}

impl Entry {
    /// Nothing for requests that are not about objects (`/openapi`).
    fn write(self) -> Option<Write> {
        let Reference { api_group, resource, subresource, namespace, name } = self.object_ref?;
        Some(Write {
            verb: self.verb,
            object: Object { group: api_group, resource, subresource, namespace, name },
            user: self.impersonated_user.unwrap_or(self.user).username,
            code: self.response_status.and_then(|status| status.code).unwrap_or(0),
            received: self.request_received_timestamp,
            dry_run: self.request_uri.contains("dryRun="),
        })
    }
}
