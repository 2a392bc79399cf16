//! Who asks, and whether they may: the API server is asked, as for its own objects.
//!
//! | what | right |
//! |---|---|
//! | `/metrics` | `get` of the path `/metrics` |
//! | `/api/v1/offers` | `list computeproviders`; with `?namespace=`, `list trainingjobs` there |
//! | `/api/v1/explain/…` | `get` of the very object |
//! | `/api/v1/costs` | `list computeclaims`, everywhere or in `?namespace=` |
//! | `/api/v1/logs/…` | `get` of the object's subresource `log` |

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::workload::OwnerKind;
use ring::digest::{SHA256, digest};

use super::Refusal;

/// How long an answer of the API server is taken for its answer to the same question.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Answers that are remembered at once; then all are forgotten.
const MOST: usize = 4096;

/// Carries the token where the API server stands between, which takes `Authorization` for itself.
pub const TOKEN_HEADER: &str = "x-petaflop-authorization";

/// What somebody wants to see.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum What {
    /// The metrics.
    Metrics,
    /// Every offer.
    Offers,
    /// The offers for one namespace.
    OffersFor(String),
    /// Why a workload is where it is.
    Explanation(OwnerKind, String, String),
    /// What all namespaces spent, or one.
    Costs(Option<String>),
    /// What a workload printed.
    Logs(OwnerKind, String, String),
}

impl What {
    /// As the API server's own rules say it.
    fn attributes(&self) -> Result<ResourceAttributes, NonResourceAttributes> {
        let of = |verb: &str, resource: &str| ResourceAttributes {
            group: Some("petaflop.dev".into()),
            verb: Some(verb.into()),
            resource: Some(resource.into()),
            ..ResourceAttributes::default()
        };
        Ok(match self {
            Self::Metrics => {
                let (path, verb) = (Some("/metrics".into()), Some("get".into()));
                return Err(NonResourceAttributes { path, verb });
            }
            Self::Offers => of("list", "computeproviders"),
            Self::OffersFor(namespace) => ResourceAttributes {
                namespace: Some(namespace.clone()),
                ..of("list", "trainingjobs")
            },
            Self::Explanation(kind, namespace, name) => ResourceAttributes {
                namespace: Some(namespace.clone()),
                name: Some(name.clone()),
                ..of("get", resource(*kind))
            },
            Self::Costs(namespace) => {
                ResourceAttributes { namespace: namespace.clone(), ..of("list", "computeclaims") }
            }
            Self::Logs(kind, namespace, name) => ResourceAttributes {
                namespace: Some(namespace.clone()),
                name: Some(name.clone()),
                subresource: Some("log".into()),
                ..of("get", resource(*kind))
            },
        })
    }

    /// For whom it is refused.
    fn in_words(&self) -> String {
        match self.attributes() {
            Err(_) => "get /metrics (ClusterRole …-metrics-reader)".to_owned(),
            Ok(it) => {
                let resource = it.resource.unwrap_or_default();
                let part = it.subresource.map(|part| format!("/{part}")).unwrap_or_default();
                let place = match it.namespace {
                    Some(namespace) => format!("in namespace {namespace}"),
                    None => "in all namespaces".to_owned(),
                };
                let verb = it.verb.unwrap_or_default();
                format!("{verb} {resource}.petaflop.dev{part} {place}")
            }
        }
    }
}

/// The plural name of a kind.
pub(super) const fn resource(kind: OwnerKind) -> &'static str {
    match kind {
        OwnerKind::TrainingJob => "trainingjobs",
        OwnerKind::InferenceService => "inferenceservices",
    }
}

/// What the API server said lately. Tokens are remembered by their digest.
pub(super) struct Reviews {
    client: Client,
    clock: Clock,
    known: Mutex<HashMap<Question, Known>>,
}

type Question = (Vec<u8>, What);

/// What was said, until when (time since boot) it counts.
struct Known {
    said: Result<(), (StatusCode, String)>,
    until: Duration,
}

impl Reviews {
    pub(super) fn new(client: Client, clock: Clock) -> Self {
        Self { client, clock, known: Mutex::default() }
    }

    /// Whether whoever sent these headers may see this.
    pub(super) async fn allow(&self, headers: &HeaderMap, what: &What) -> Result<(), Refusal> {
        let token = token(headers).ok_or_else(|| {
            Refusal::new(
                StatusCode::UNAUTHORIZED,
                "no token; send `Authorization: Bearer <token>`, such as one of `kubectl create token`",
            )
        })?;
        let question = (digest(&SHA256, token.as_bytes()).as_ref().to_vec(), what.clone());
        let now = self.clock.boottime();
        let known = self.lock().get(&question).filter(|k| now < k.until).map(|k| k.said.clone());
        let said = match known {
            Some(said) => said,
            None => {
                let said = self.ask(token, what).await.map_err(|error| {
                    tracing::warn!(%error, "reviewing a request");
                    let message = "the API server cannot be asked who you are; try again later";
                    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message)
                })?;
                let mut known = self.lock();
                if known.len() >= MOST {
                    known.clear();
                }
                let until = now.saturating_add(REMEMBERED);
                known.insert(question, Known { said: said.clone(), until });
                said
            }
        };
        said.map_err(|(status, message)| Refusal::new(status, message))
    }

    async fn ask(
        &self,
        token: &str,
        what: &What,
    ) -> Result<Result<(), (StatusCode, String)>, kube::Error> {
        let Some(user) = self.user(token).await? else {
            let message = "the API server does not know this token; it may have expired";
            return Ok(Err((StatusCode::UNAUTHORIZED, message.to_owned())));
        };
        let name = user.username.clone().unwrap_or_default();
        if self.may(user, what).await? {
            return Ok(Ok(()));
        }
        let needs = what.in_words();
        let message = format!(
            "{name} may not do this: it needs the right to {needs}; the chart's roles …-viewer hold it"
        );
        Ok(Err((StatusCode::FORBIDDEN, message)))
    }

    async fn user(&self, token: &str) -> Result<Option<UserInfo>, kube::Error> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let status = api.create(&PostParams::default(), &review).await?.status;
        Ok(status.filter(|s| s.authenticated == Some(true)).and_then(|status| status.user))
    }

    async fn may(&self, user: UserInfo, what: &What) -> Result<bool, kube::Error> {
        let UserInfo { username, groups, uid, extra } = user;
        let (resource_attributes, non_resource_attributes) = match what.attributes() {
            Ok(resource) => (Some(resource), None),
            Err(path) => (None, Some(path)),
        };
        let spec = SubjectAccessReviewSpec {
            user: username,
            groups,
            uid,
            extra,
            resource_attributes,
            non_resource_attributes,
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let status = api.create(&PostParams::default(), &review).await?.status;
        Ok(status.is_some_and(|status| status.allowed))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Question, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bearer token of a request.
fn token(headers: &HeaderMap) -> Option<&str> {
    let header = headers.get(http::header::AUTHORIZATION).or_else(|| headers.get(TOKEN_HEADER))?;
    let (scheme, token) = header.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}
