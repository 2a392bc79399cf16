//! What of the store a machine may touch, and for how long: a pass from the store's STS, which is good
//! for one claim's own folders. The store's keys stay here.
//!
//! | what | of a job's machine | of a replica's |
//! |---|---|---|
//! | its own folder, `checkpoints/<owner uid>/`, where its result goes too | reads, writes, removes, lists | |
//! | its log, `logs/<namespace>/<owner>/<claim>/` | writes | writes |
//! | results, whose names nobody guesses who does not know what is in them | reads, lists none | reads that one |
//! | inputs in the same store | reads, lists | |
//!
//! The machine of a user's own command has its log and the inputs that the job names, and its command is told of
//! no pass.
//!
//! Everything else is forbidden, which S3 also says of what is not there.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use object_store::aws::AwsAuthorizer;
use object_store::client::HttpRequest;
use petaflop_agent_api::task::{Pass, Secret};
use petaflop_store::StoreError;
use petaflop_store::place::{Bucket, bucket};
use serde_json::{Value, json};

use crate::store_at::StoreAt;

/// A pass is good for so long: a lease, and a grace of as much.
const LIFE: Duration = Duration::from_secs(3600);
/// STS itself answers within seconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// STS takes no longer policy.
const LONGEST_POLICY: usize = 2048;

/// How passes are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sts {
    /// Its URL; `None`: Amazon's, where the store is Amazon's.
    pub url: Option<String>,
    /// A role that is taken (`AssumeRole`); without one the store's own long-lived keys are
    /// narrowed (`GetFederationToken`).
    pub role: Option<String>,
    /// How long a pass is good; `None`: an hour.
    pub life: Option<Duration>,
}

/// Why there is no pass.
#[derive(Debug, thiserror::Error)]
pub enum NarrowError {
    /// What opens the store cannot be found, or not be signed with.
    #[error("the store's STS: {0}")]
    Keys(String),
    /// It did not answer.
    #[error("the store's STS at {url}: {said}")]
    Silent {
        /// Whom we asked.
        url: String,
        /// What went wrong.
        said: String,
    },
    /// It said no.
    #[error(
        "the store's STS at {url} refuses {action}: {code}: {message}; allow it to the store's keys, name a role \
         that they may take (--store-role-arn), or say --store-sts=off, and machines get the keys themselves"
    )]
    Refused {
        /// Whom we asked.
        url: String,
        /// For what.
        action: &'static str,
        /// Its word for it.
        code: String,
        /// Its message.
        message: String,
    },
    /// The inputs are too many to be named one by one.
    #[error(
        "what the machine may read takes {0} characters to say, and STS reads 2048: put inputs under one prefix"
    )]
    TooLong(usize),
}

/// Makes passes. Clones are the same.
#[derive(Clone)]
pub struct Narrow(Arc<Inner>);

struct Inner {
    http: reqwest::Client,
    bucket: Bucket,
    url: String,
    role: Option<String>,
    life: Duration,
}

impl fmt::Debug for Narrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Narrow({})", self.0.url)
    }
}

/// What one machine may touch, each below the store's own prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// A folder that it may read, write and list.
    pub own: Option<String>,
    /// A folder that it may write to.
    pub log: String,
    /// Objects that it may read (`*` for any end).
    pub reads: Vec<String>,
    /// Of this bucket, or another that the same keys open: objects or folders (`s3://…`) that it may
    /// read and list.
    pub inputs: Vec<String>,
    /// The command may ask for it too; else the agent alone does.
    pub told: bool,
}

impl Narrow {
    /// `None` where the store is a folder, or where only who owns it could say how to narrow its keys.
    ///
    /// # Errors
    /// The store's keys cannot be found.
    pub fn of(store: &StoreAt, sts: &Sts) -> Result<Option<Self>, NarrowError> {
        let keys = |error: StoreError| NarrowError::Keys(error.to_string());
        let Some(bucket) = bucket(&store.uri, store.given().as_ref()).map_err(keys)? else {
            return Ok(None);
        };
        let long_lived = store.credentials.contains_key("AWS_ACCESS_KEY_ID")
            && !store.credentials.contains_key("AWS_SESSION_TOKEN");
        let url = match (&sts.url, &bucket.endpoint) {
            (Some(url), _) => url.trim_end_matches('/').to_owned(),
            (None, None) if long_lived || sts.role.is_some() => {
                let outside = if bucket.region.starts_with("cn-") { ".cn" } else { "" };
                format!("https://sts.{}.amazonaws.com{outside}", bucket.region)
            }
            _ => return Ok(None),
        };
        let http = reqwest::Client::builder().timeout(PATIENCE).build();
        let http = http.map_err(|error| NarrowError::Keys(error.to_string()))?;
        let life = sts.life.unwrap_or(LIFE);
        Ok(Some(Self(Arc::new(Inner { http, bucket, url, role: sts.role.clone(), life }))))
    }

    /// A pass is to be replaced so often: what it has left then outlasts any lease.
    pub fn renew_every(&self) -> Duration {
        self.0.life / 4
    }

    /// Asks for a pass that opens nothing, to see whether there are any.
    ///
    /// # Errors
    /// There are none.
    pub async fn probe(&self) -> Result<(), NarrowError> {
        let rights = Rights { log: "nothing".to_owned(), ..Rights::default() };
        self.pass("probe", &rights).await.map(drop)
    }

    /// A pass for the machine of a claim.
    ///
    /// # Errors
    /// There is none now.
    pub async fn pass(&self, claim: &str, rights: &Rights) -> Result<Pass, NarrowError> {
        let Inner { bucket, url, role, life, .. } = &*self.0;
        let policy = rights.policy(bucket).to_string();
        if policy.len() > LONGEST_POLICY {
            return Err(NarrowError::TooLong(policy.len()));
        }
        // Of whoever asks with it, in the account's own logs.
        let name: String = format!("petaflop-{claim}").chars().take(32).collect();
        let seconds = life.as_secs().to_string();
        let mut form = vec![
            ("Version", "2011-06-15"),
            ("DurationSeconds", seconds.as_str()),
            ("Policy", policy.as_str()),
        ];
        let action = match role {
            Some(role) => {
                form.extend([("RoleArn", role.as_str()), ("RoleSessionName", name.as_str())]);
                "AssumeRole"
            }
            None => {
                form.push(("Name", name.as_str()));
                "GetFederationToken"
            }
        };
        form.push(("Action", action));
        let (status, text) = self.ask(&form).await?;
        let found = |tag: &str| within(&text, tag).map(str::to_owned);
        if !(200..300).contains(&status) {
            let code = found("Code").unwrap_or_else(|| format!("HTTP {status}"));
            let message = found("Message").unwrap_or_default();
            return Err(NarrowError::Refused { url: url.clone(), action, code, message });
        }
        let pass = || {
            Some(Pass {
                id: found("AccessKeyId")?,
                key: Secret::new(found("SecretAccessKey")?),
                token: Secret::new(found("SessionToken")?),
                expires: found("Expiration")?.parse::<Timestamp>().ok()?,
                told: rights.told,
            })
        };
        // What it said may be secret.
        let said = || "its answer has no credentials".to_owned();
        pass().ok_or_else(|| NarrowError::Silent { url: url.clone(), said: said() })
    }

    async fn ask(&self, form: &[(&str, &str)]) -> Result<(u16, String), NarrowError> {
        let Inner { http, bucket, url, .. } = &*self.0;
        let unsigned = |said: String| NarrowError::Keys(said);
        let keys = bucket.keys.get_credential().await.map_err(|e| unsigned(e.to_string()))?;
        let body: String = form
            .iter()
            .map(|(name, value)| format!("{name}={}", encoded(value)))
            .collect::<Vec<_>>()
            .join("&");
        let mut request = HttpRequest::new(body.clone().into());
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = format!("{url}/").parse().map_err(|_| {
            unsigned(format!("{url} is no URL; say where it is with --store-sts=URL"))
        })?;
        let form = http::HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(http::header::CONTENT_TYPE, form);
        AwsAuthorizer::new(&keys, "sts", &bucket.region)
            .try_authorize(&mut request, None)
            .map_err(|e| unsigned(e.to_string()))?;
        let silent = |error: reqwest::Error| NarrowError::Silent {
            url: url.clone(),
            said: error.without_url().to_string(),
        };
        let headers = request.headers().clone();
        let answer = http.post(format!("{url}/")).headers(headers).body(body).send().await;
        let answer = answer.map_err(silent)?;
        Ok((answer.status().as_u16(), answer.text().await.map_err(silent)?))
    }
}

impl Rights {
    /// As a session policy says it.
    fn policy(&self, bucket: &Bucket) -> Value {
        let Self { own, log, reads, inputs, told: _ } = self;
        let partition = match bucket.region.as_str() {
            region if region.starts_with("cn-") => "aws-cn",
            region if region.starts_with("us-gov-") => "aws-us-gov",
            _ => "aws",
        };
        let below = match bucket.prefix.as_str() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let arn = |bucket: &str, object: &str| match object {
            "" => format!("arn:{partition}:s3:::{bucket}"),
            object => format!("arn:{partition}:s3:::{bucket}/{object}"),
        };
        let object = |name: &str| arn(&bucket.name, &format!("{below}{name}"));
        let allow = |actions: Value, resources: Vec<String>| json!({ "Effect": "Allow", "Action": actions, "Resource": resources });
        let list = |bucket: &str, prefixes: Vec<String>| {
            json!({
                "Effect": "Allow", "Action": "s3:ListBucket", "Resource": arn(bucket, ""),
                "Condition": { "StringLike": { "s3:prefix": prefixes } },
            })
        };
        let mut statements = vec![allow(json!("s3:PutObject"), vec![object(&format!("{log}/*"))])];
        if let Some(own) = own {
            let all = json!(["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]);
            statements.push(allow(all, vec![object(&format!("{own}/*"))]));
            statements.push(list(&bucket.name, vec![format!("{below}{own}/*")]));
        }
        let mut readable: Vec<String> = reads.iter().map(|name| object(name)).collect();
        for input in inputs {
            let Some((bucket, name)) = input.strip_prefix("s3://").and_then(|i| i.split_once('/'))
            else {
                continue;
            };
            let name = name.trim_matches('/');
            readable.extend([arn(bucket, name), arn(bucket, &format!("{name}/*"))]);
            statements.push(list(bucket, vec![format!("{name}/*")]));
        }
        if !readable.is_empty() {
            statements.push(allow(json!("s3:GetObject"), readable));
        }
        json!({ "Version": "2012-10-17", "Statement": statements })
    }
}

/// What stands between a tag and its end. STS escapes nothing in what is read here.
fn within<'a>(text: &'a str, tag: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{tag}>"))?;
    rest.split_once(&format!("</{tag}>")).map(|(value, _)| value)
}

/// As forms are written.
fn encoded(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    value
        .bytes()
        .map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}
