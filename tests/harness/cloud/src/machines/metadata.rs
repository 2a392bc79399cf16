//! EC2's metadata service, version 2: nothing without a token.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::net::UnixListener;
use tokio::task::AbortHandle;

use crate::host::Metadata;

const TOKEN: &str = "x-aws-ec2-metadata-token";
const LIFETIME: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// Six hours, in seconds.
const LONGEST_LIFETIME: u64 = 21_600;

/// What one machine is told.
pub(super) struct Service {
    machine: String,
    image: String,
    address: Ipv4Addr,
    facts: Metadata,
    started: Timestamp,
    changing: Mutex<Changing>,
}

#[derive(Default)]
struct Changing {
    tokens: BTreeMap<String, Instant>,
    /// When it is taken away.
    ends: Option<Timestamp>,
    /// Since when that is likely.
    likely: Option<Timestamp>,
}

impl Service {
    pub(super) fn new(machine: &str, image: &str, address: Ipv4Addr, facts: Metadata) -> Self {
        let (machine, image) = (machine.to_owned(), image.to_owned());
        let changing = Mutex::default();
        Self { machine, image, address, facts, started: Timestamp::now(), changing }
    }

    /// Inside of a runtime only.
    pub(super) fn serve(self: Arc<Self>, socket: &Path) -> io::Result<AbortHandle> {
        let listener = UnixListener::bind(socket)?;
        let router = Router::new().fallback(answer).with_state(self);
        let task = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(task.abort_handle())
    }

    pub(super) fn notice(&self, left: Duration) {
        let left = SignedDuration::try_from(left).unwrap_or(SignedDuration::MAX);
        let ends = Timestamp::now().saturating_add(left).unwrap_or(Timestamp::MAX);
        self.change(|changing| changing.ends = Some(ends));
    }

    pub(super) fn recommend(&self) {
        self.change(|changing| changing.likely = Some(Timestamp::now()));
    }

    fn change<T>(&self, change: impl FnOnce(&mut Changing) -> T) -> T {
        change(&mut self.changing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn token(&self, headers: &HeaderMap) -> Result<String, StatusCode> {
        // Whoever asks through a proxy is no program of the machine.
        if headers.contains_key("x-forwarded-for") {
            return Err(StatusCode::FORBIDDEN);
        }
        let seconds = headers.get(LIFETIME).and_then(|value| value.to_str().ok()?.parse().ok());
        let seconds = seconds.filter(|seconds| (1..=LONGEST_LIFETIME).contains(seconds));
        let lifetime = Duration::from_secs(seconds.ok_or(StatusCode::BAD_REQUEST)?);
        Ok(self.change(|changing| {
            let token = format!("token-{}-{}", self.machine, changing.tokens.len());
            changing.tokens.insert(token.clone(), Instant::now() + lifetime);
            token
        }))
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let token = headers.get(TOKEN).and_then(|value| value.to_str().ok()).unwrap_or_default();
        self.change(|changing| changing.tokens.get(token).is_some_and(|end| *end > Instant::now()))
    }

    /// `None` is 404: there is no such thing, or not yet.
    fn get(&self, path: &str) -> Option<String> {
        let Self { machine, address, facts, .. } = self;
        let (ends, likely) = self.change(|changing| (changing.ends, changing.likely));
        let own = |text: &str| Some(text.to_owned());
        if path == "/latest/user-data" {
            let text = String::from_utf8_lossy(&facts.user_data).into_owned();
            return Some(text).filter(|text| !text.is_empty());
        }
        if path == "/latest/dynamic/instance-identity/document" {
            return Some(self.document());
        }
        match path.strip_prefix("/latest/meta-data/")? {
            "instance-id" => own(machine),
            "ami-id" => own(&self.image),
            "instance-type" => own(&facts.instance_type),
            "instance-life-cycle" => own(if facts.spot { "spot" } else { "on-demand" }),
            "local-ipv4" => Some(address.to_string()),
            "placement/region" => own(&facts.region),
            "placement/availability-zone" => own(&facts.zone),
            "placement/availability-zone-id" => own(&facts.zone_id),
            "spot/instance-action" => {
                ends.map(|time| json!({ "action": "terminate", "time": written(time) }).to_string())
            }
            "spot/termination-time" => ends.map(written),
            "events/recommendations/rebalance" => {
                likely.map(|time| json!({ "noticeTime": written(time) }).to_string())
            }
            "iam/security-credentials" | "iam/security-credentials/" => {
                facts.role.as_ref().map(|(name, _)| name.clone())
            }
            path => self.credentials(path.strip_prefix("iam/security-credentials/")?),
        }
    }

    fn credentials(&self, role: &str) -> Option<String> {
        let (_, own) = self.facts.role.as_ref().filter(|(name, _)| name == role)?;
        let now = Timestamp::now();
        let credentials = json!({
            "Code": "Success",
            "Type": "AWS-HMAC",
            "LastUpdated": written(now),
            "AccessKeyId": own.id,
            "SecretAccessKey": own.secret,
            "Token": own.token,
            "Expiration": written(now + SignedDuration::from_hours(6)),
        });
        Some(credentials.to_string())
    }

    fn document(&self) -> String {
        let document = json!({
            "accountId": self.facts.account,
            "architecture": std::env::consts::ARCH,
            "availabilityZone": self.facts.zone,
            "imageId": self.image,
            "instanceId": self.machine,
            "instanceType": self.facts.instance_type,
            "pendingTime": written(self.started),
            "privateIp": self.address.to_string(),
            "region": self.facts.region,
            "version": "2017-09-30",
        });
        document.to_string()
    }
}

async fn answer(State(service): State<Arc<Service>>, request: Request) -> (StatusCode, String) {
    let (method, path) = (request.method(), request.uri().path());
    let refused = |status: StatusCode| (status, String::new());
    if path == "/latest/api/token" {
        return match service.token(request.headers()) {
            _ if method != Method::PUT => refused(StatusCode::METHOD_NOT_ALLOWED),
            Ok(token) => (StatusCode::OK, token),
            Err(status) => refused(status),
        };
    }
    if !service.admits(request.headers()) {
        return refused(StatusCode::UNAUTHORIZED);
    }
    match service.get(path) {
        _ if method != Method::GET => refused(StatusCode::METHOD_NOT_ALLOWED),
        Some(text) => (StatusCode::OK, text),
        None => refused(StatusCode::NOT_FOUND),
    }
}

fn written(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
