//! The three ways out of an operator, each through [`Life::call`]: its client of the API server, its
//! providers, and the ledger's object store.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use petaflop_arbiter::claim::{FrozenRequest, Identity};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::Offer;
use petaflop_providers::{
    Capabilities, EnrolmentToken, Instance, InstanceId, LaunchError, Listing, Order, Provider,
    ProviderError, Used,
};

use crate::calls::{Life, Trouble};

/// A client of one life over connections that outlive it.
pub(crate) fn client(base: &Client, life: &Life) -> Client {
    let (base, life) = (base.clone(), life.clone());
    let service = tower::service_fn(move |request: Request<Body>| {
        let (base, life) = (base.clone(), life.clone());
        async move {
            let class = class(request.method(), request.uri());
            let answer = life.call(&class, whole(&base, &class, request), refused).await;
            if answer.as_ref().is_ok_and(|answer| answer.status() == 403) {
                life.denied(&class);
            }
            answer
        }
    });
    Client::new(service, "default")
}

/// An answer with all of its body, so that the call is under way until then; of a watch, which has no
/// end, its beginning.
async fn whole(
    base: &Client,
    class: &str,
    request: Request<Body>,
) -> Result<Response<Body>, kube::Error> {
    let answer = base.send(request).await?;
    if class.starts_with("k8s.watch.") {
        return Ok(answer);
    }
    let (parts, body) = answer.into_parts();
    let bytes = body.collect_bytes().await?;
    Ok(Response::from_parts(parts, Body::from(bytes)))
}

/// `k8s.<verb>.<resource>` with its subresource.
pub(crate) fn class(method: &Method, uri: &http::Uri) -> String {
    let parts: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
    let after = match parts.first() {
        Some(&"api") => parts.get(2..),
        Some(&"apis") => parts.get(3..),
        _ => None,
    };
    let after = match after.unwrap_or_default() {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        all => all,
    };
    let query = uri.query().unwrap_or_default();
    let verb = match (method, after.len()) {
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, _) => "delete",
        _ if query.contains("watch=true") => "watch",
        (_, 0 | 1) => "list",
        _ => "get",
    };
    match after {
        [resource, _, sub] => format!("k8s.{verb}.{resource}/{sub}"),
        [resource, ..] => format!("k8s.{verb}.{resource}"),
        [] => format!("k8s.{verb}"),
    }
}

pub(crate) fn refused(trouble: Trouble) -> Result<Response<Body>, kube::Error> {
    let status = match trouble {
        Trouble::Silence => {
            let silence = std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer");
            return Err(kube::Error::Service(Box::new(silence)));
        }
        Trouble::Status(status) => status,
    };
    let reason = match status {
        404 => "NotFound",
        409 => "Conflict",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    let body = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status,
        "reason": reason, "message": "a fault that a test asked for",
        "details": { "retryAfterSeconds": if status == 429 { 2 } else { 0 } },
    });
    let mut answer = Response::new(Body::from(body.to_string().into_bytes()));
    *answer.status_mut() = http::StatusCode::from_u16(status).expect("a status");
    Ok(answer)
}

/// A provider of one life.
pub(crate) struct Sold {
    pub(crate) inner: Arc<dyn Provider>,
    pub(crate) life: Life,
}

impl Sold {
    fn failed(&self, trouble: Trouble) -> ProviderError {
        let provider = self.inner.name().to_owned();
        match trouble {
            Trouble::Silence => {
                ProviderError::Unreachable { provider, detail: "no answer".to_owned() }
            }
            Trouble::Status(429) => {
                let wait = std::time::Duration::from_secs(5);
                ProviderError::RateLimited { provider, wait }
            }
            Trouble::Status(status @ (401 | 403)) => {
                ProviderError::Unauthorized { provider, detail: status.to_string() }
            }
            Trouble::Status(status) => {
                ProviderError::Unreachable { provider, detail: status.to_string() }
            }
        }
    }
}

#[async_trait]
impl Provider for Sold {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn quote(&self) -> Result<Vec<Offer>, ProviderError> {
        let fail = |trouble| Err(self.failed(trouble));
        self.life.call("provider.quote", self.inner.quote(), fail).await
    }

    async fn prepare(&self, order: Order<'_>) -> Result<FrozenRequest, LaunchError> {
        let fail = |trouble| Err(LaunchError::Ambiguous { detail: format!("{trouble:?}") });
        self.life.call("provider.prepare", self.inner.prepare(order), fail).await
    }

    async fn launch(
        &self,
        request: &FrozenRequest,
        token: &EnrolmentToken,
    ) -> Result<InstanceId, LaunchError> {
        let fail = |trouble| {
            Err(match trouble {
                Trouble::Status(429) => {
                    let wait = std::time::Duration::from_secs(5);
                    LaunchError::Later { wait, detail: "429".to_owned() }
                }
                trouble => LaunchError::Ambiguous { detail: format!("{trouble:?}") },
            })
        };
        self.life.call("provider.launch", self.inner.launch(request, token), fail).await
    }

    async fn find(&self, identity: &Identity) -> Result<Listing, ProviderError> {
        let fail = |trouble| Err(self.failed(trouble));
        self.life.call("provider.find", self.inner.find(identity), fail).await
    }

    async fn list(&self, installation: &str) -> Result<Listing, ProviderError> {
        let fail = |trouble| Err(self.failed(trouble));
        self.life.call("provider.list", self.inner.list(installation), fail).await
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, ProviderError> {
        let fail = |trouble| Err(self.failed(trouble));
        self.life.call("provider.get", self.inner.get(id), fail).await
    }

    async fn terminate(&self, id: &InstanceId) -> Result<(), ProviderError> {
        let fail = |trouble| Err(self.failed(trouble));
        self.life.call("provider.terminate", self.inner.terminate(id), fail).await
    }

    async fn billed(&self, used: Used<'_>) -> Result<Usd, ProviderError> {
        self.inner.billed(used).await
    }
}

/// A ledger's store of one life, over one that outlives it.
pub(crate) struct Kept {
    pub(crate) inner: Arc<InMemory>,
    pub(crate) life: Life,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store with faults")
    }
}

fn broken<T>(trouble: Trouble) -> object_store::Result<T> {
    let source = format!("{trouble:?}").into();
    Err(object_store::Error::Generic { store: "faults", source })
}

#[async_trait]
impl ObjectStore for Kept {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        let put = self.inner.put_opts(location, payload, opts);
        self.life.call("ledger.put", put, broken).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(
        &self,
        location: &Path,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        self.life.call("ledger.get", self.inner.get_opts(location, options), broken).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let (inner, life, prefix) = (self.inner.clone(), self.life.clone(), prefix.cloned());
        let page = async move {
            let all = inner.list(prefix.as_ref()).try_collect::<Vec<_>>();
            let all = life.call("ledger.list", all, broken).await;
            futures::stream::iter(match all {
                Ok(all) => all.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            })
        };
        futures::stream::once(page).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
