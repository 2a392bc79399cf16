//! S3's access control and STS in front of a server that has neither: what a request is signed with is
//! looked up, the session policy is evaluated, and only then is the request signed anew and carried on. As
//! at AWS, whoever may not list the whole bucket is told "forbidden" of what is not there.
//!
//! Beside the two differs from AWS: passes may be shorter ([`Setup::shortest`]), so that a test need not wait for a
//! quarter of an hour; and removing many objects at once is refused as a whole where one of them is not allowed.

mod policy;
mod sts;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use self::policy::Policy;
use crate::ec2::sign::Scope;

/// Bytes of a body that are read: a chunk and some.
const LONGEST_BODY: usize = 16 << 20;

/// What stands behind it, and who may use it.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The server behind it.
    pub server: SocketAddr,
    /// Id and secret of the one key that is not a session's: here and at the server.
    pub key: (String, String),
    /// Whether that key may ask STS for anything.
    pub has_sts: bool,
    /// Seconds that a pass lasts at least; at AWS 900.
    pub shortest: i64,
}

/// A request that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Id of the key.
    pub key: String,
    /// `GET /bucket/object?query`.
    pub line: String,
    /// What was answered.
    pub status: u16,
    /// When.
    pub at: Timestamp,
}

/// A key that was given for a while.
#[derive(Clone, Debug)]
pub struct Given {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: String,
    /// Its token.
    pub token: String,
    /// When it ends.
    pub expires: Timestamp,
    policy: Policy,
}

/// Whose request it is.
#[derive(Clone, Debug)]
enum Holder {
    Owner,
    Session(Given),
}

impl Holder {
    fn is_session(&self) -> bool {
        matches!(self, Self::Session(_))
    }
}

/// Status, code, message.
struct Refused(StatusCode, &'static str, String);

struct World {
    key: (String, String),
    has_sts: bool,
    shortest: i64,
    given: BTreeMap<String, Given>,
    seen: Vec<Seen>,
}

impl World {
    fn give(&mut self, policy: Policy, expires: Timestamp) -> Given {
        let number = self.given.len();
        let given = Given {
            id: format!("ASIABOX{number:09}"),
            secret: word(),
            token: word() + &word(),
            expires,
            policy,
        };
        self.given.insert(given.id.clone(), given.clone());
        given
    }

    fn holder(&self, parts: &Parts, body: &[u8], scope: &Scope) -> Result<Holder, Refused> {
        let wrong = |code| Refused(StatusCode::FORBIDDEN, code, String::new());
        let token = parts.headers.get("x-amz-security-token");
        let token = token.and_then(|value| value.to_str().ok());
        if scope.key == self.key.0 {
            let signed = token.is_none() && scope.is_signed(parts, body, &self.key.1);
            return if signed { Ok(Holder::Owner) } else { Err(wrong("SignatureDoesNotMatch")) };
        }
        let given = self.given.get(&scope.key).ok_or_else(|| wrong("InvalidAccessKeyId"))?;
        if !scope.is_signed(parts, body, &given.secret) {
            return Err(wrong("SignatureDoesNotMatch"));
        }
        let bad = |code| Refused(StatusCode::BAD_REQUEST, code, String::new());
        if token != Some(given.token.as_str()) {
            return Err(bad("InvalidToken"));
        }
        if given.expires <= Timestamp::now() {
            return Err(bad("ExpiredToken"));
        }
        Ok(Holder::Session(given.clone()))
    }
}

/// 32 characters that nobody guesses.
fn word() -> String {
    let bytes: [u8; 16] = petaflop_agent_api::lease::Nonce::generate().0;
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Inner {
    server: SocketAddr,
    world: Mutex<World>,
}

impl Inner {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running one; it ends when it is dropped.
pub struct Gate {
    inner: Arc<Inner>,
    address: SocketAddr,
    task: AbortHandle,
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gate {
    /// Starts one. Inside of a runtime only.
    ///
    /// # Errors
    /// It cannot listen there.
    pub fn start(setup: Setup) -> io::Result<Self> {
        let Setup { listen, server, key, has_sts, shortest } = setup;
        let (given, seen) = Default::default();
        let world = Mutex::new(World { key, has_sts, shortest, given, seen });
        let inner = Arc::new(Inner { server, world });
        let listener = std::net::TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let app = Router::new().fallback(turn).with_state(inner.clone());
        let serve = async move {
            let _ = axum::serve(listener, app).await;
        };
        Ok(Self { inner, address, task: tokio::spawn(serve).abort_handle() })
    }

    /// Where S3 and STS are.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All keys that were given so far, oldest first.
    pub fn given(&self) -> Vec<Given> {
        self.inner.world().given.values().cloned().collect()
    }

    /// All requests that came so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.inner.world().seen.clone()
    }

    /// From now on the key may, or may not, ask STS.
    pub fn has_sts(&self, has: bool) {
        self.inner.world().has_sts = has;
    }
}

async fn turn(State(inner): State<Arc<Inner>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let line = format!("{} {}", parts.method, parts.uri);
    let key = Scope::read(&parts.headers).map(|scope| scope.key).unwrap_or_default();
    let answered = match to_bytes(body, LONGEST_BODY).await {
        Ok(body) => answer(&inner, parts, body).await,
        Err(_) => {
            Err(Refused(StatusCode::BAD_REQUEST, "EntityTooLarge", "the body is too long".into()))
        }
    };
    let response = answered.unwrap_or_else(|Refused(status, code, message)| {
        let text = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = status;
        response
    });
    let status = response.status().as_u16();
    inner.world().seen.push(Seen { key, line, status, at: Timestamp::now() });
    response
}

async fn answer(inner: &Inner, parts: Parts, body: Bytes) -> Result<Response<Body>, Refused> {
    let denied = || Refused(StatusCode::FORBIDDEN, "AccessDenied", "Access Denied".to_owned());
    let scope = Scope::read(&parts.headers).ok_or_else(denied)?;
    let holder = inner.world().holder(&parts, &body, &scope)?;
    if scope.service == "sts" {
        let said = sts::answer(&mut inner.world(), &holder, &body)?;
        return Ok(Response::new(Body::from(said)));
    }
    let mut hides_missing = false;
    if let Holder::Session(Given { policy, .. }) = &holder {
        let asks = asks(&parts, &body).ok_or_else(denied)?;
        for Ask { action, resource, prefix } in &asks {
            let context: Vec<(&str, &str)> =
                prefix.as_deref().map(|prefix| ("s3:prefix", prefix)).into_iter().collect();
            if !policy.allows(action, resource, &context) {
                return Err(denied());
            }
        }
        let bucket = parts.uri.path().trim_start_matches('/').split('/').next().unwrap_or_default();
        hides_missing = !policy.allows("s3:ListBucket", &format!("arn:aws:s3:::{bucket}"), &[]);
    }
    let head = parts.method == Method::HEAD;
    let (key, secret) = inner.world().key.clone();
    let response = carry(inner.server, parts, body, &scope, (&key, &secret)).await;
    let response = response.map_err(|error| {
        Refused(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", error.to_string())
    })?;
    if hides_missing && response.status() == StatusCode::NOT_FOUND {
        if head {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::FORBIDDEN;
            return Ok(response);
        }
        return Err(denied());
    }
    Ok(response)
}

/// What a request needs to be allowed.
struct Ask {
    action: &'static str,
    resource: String,
    prefix: Option<String>,
}

/// `None`: nothing that is known here.
fn asks(parts: &Parts, body: &[u8]) -> Option<Vec<Ask>> {
    let path = parts.uri.path().trim_start_matches('/');
    let (bucket, object) = path.split_once('/').unwrap_or((path, ""));
    let arn = |object: &str| match object {
        "" => format!("arn:aws:s3:::{bucket}"),
        object => format!("arn:aws:s3:::{bucket}/{object}"),
    };
    let query: BTreeMap<String, String> =
        url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
    let one = |action| Some(vec![Ask { action, resource: arn(object), prefix: None }]);
    // Copies, parts of uploads, versions and the like are not for sessions.
    let known = ["x-id", "list-type", "prefix", "delimiter", "max-keys", "start-after"];
    let known = |name: &String| {
        known.contains(&name.as_str()) || name == "continuation-token" || name == "delete"
    };
    if !query.keys().all(known) || parts.headers.contains_key("x-amz-copy-source") {
        return None;
    }
    match (&parts.method, object.is_empty()) {
        (&Method::GET, true) => {
            let prefix = query.get("prefix").cloned();
            Some(vec![Ask { action: "s3:ListBucket", resource: arn(""), prefix }])
        }
        (&Method::POST, true) if query.contains_key("delete") => {
            let text = std::str::from_utf8(body).ok()?;
            let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>"));
            let ask = |(key, _): (&str, &str)| Ask {
                action: "s3:DeleteObject",
                resource: arn(key),
                prefix: None,
            };
            Some(keys.map(ask).collect())
        }
        (&Method::GET | &Method::HEAD, false) => one("s3:GetObject"),
        (&Method::PUT, false) => one("s3:PutObject"),
        (&Method::DELETE, false) => one("s3:DeleteObject"),
        _ => None,
    }
}

/// The same request, signed by the owner.
async fn carry(
    server: SocketAddr,
    mut parts: Parts,
    body: Bytes,
    scope: &Scope,
    (key, secret): (&str, &str),
) -> Result<Response<Body>, Box<dyn std::error::Error + Send + Sync>> {
    parts.headers.remove("x-amz-security-token");
    parts.headers.remove(header::CONNECTION);
    let authorization = scope.resign(&parts, &body, key, secret);
    parts.headers.insert(header::AUTHORIZATION, HeaderValue::try_from(authorization)?);
    let stream = TcpStream::connect(server).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let answer = sender.send_request(Request::from_parts(parts, Body::from(body))).await?;
    let (mut parts, body) = answer.into_parts();
    parts.headers.remove(header::CONNECTION);
    parts.headers.remove(header::TRANSFER_ENCODING);
    let body = to_bytes(Body::new(body), LONGEST_BODY).await?;
    Ok(Response::from_parts(parts, Body::from(body)))
}
