//! The way into a cluster: a client of the API server, and through it one of the operator.

use std::io::{self, Write};

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde::de::DeserializeOwned;
use tower::{Layer, ServiceExt};

use super::{Args, Failure};
use crate::http::auth::TOKEN_HEADER;

/// Between two tries to go on with a log.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(2);

/// Tries in a row that brought nothing.
const TRIES: u32 = 30;

/// How long a token of a ServiceAccount is good for; no shorter one is given.
const TOKEN_SECONDS: i64 = 600;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A cluster, as this user reaches it.
pub(super) struct Access {
    /// Of the API server.
    pub(super) client: Client,
    /// The context's.
    pub(super) namespace: String,
    config: Config,
    /// Namespace and name of its Service.
    operator: (String, String),
    /// Namespace and name.
    service_account: Option<(String, String)>,
}

impl Access {
    pub(super) async fn of(args: &Args) -> Result<Self, Failure> {
        let options =
            KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
        let config = match &args.kubeconfig {
            Some(path) => {
                let read = Kubeconfig::read_from(path).map_err(Failure::bad_input)?;
                Config::from_custom_kubeconfig(read, &options).await
            }
            None => Config::from_kubeconfig(&options).await,
        };
        let mut config = config.map_err(|error| {
            Failure::bad_input(format!("{error}; see `kubectl config view`, or give --kubeconfig"))
        })?;
        // Whoever waits at a terminal hears at once that nobody answers.
        config.default_retry = false;
        let service_account = args.service_account.as_deref();
        Ok(Self {
            client: Client::try_from(config.clone())?,
            namespace: config.default_namespace.clone(),
            config,
            operator: pair(&args.operator, "--operator")?,
            service_account: service_account
                .map(|text| pair(text, "--service-account"))
                .transpose()?,
        })
    }

    /// What the operator answers, as JSON.
    pub(super) async fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let answer = self.get(path).await?;
        let bytes = answer.into_body().collect().await?.to_bytes();
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Copies what the operator answers to stdout. What is `followed` goes on when a connection
    /// breaks, without a line lost or printed twice.
    pub(super) async fn copy(&self, path: &str, followed: bool) -> Result<(), Failure> {
        let (mut printed, mut tries) = (0, 0);
        loop {
            let mut skip: usize = printed;
            let answer = self.get(path).await;
            let error = match answer {
                Ok(answer) => {
                    let mut body = answer.into_body().into_data_stream();
                    loop {
                        match body.next().await {
                            None => return Ok(()),
                            Some(Err(error)) => break Failure::failed(error),
                            Some(Ok(bytes)) => {
                                let news = bytes.slice(skip.min(bytes.len())..);
                                skip -= bytes.len() - news.len();
                                if news.is_empty() {
                                    continue;
                                }
                                (printed, tries) = (printed + news.len(), 0);
                                if write(&news).is_err() {
                                    // Nobody reads on.
                                    return Ok(());
                                }
                            }
                        }
                    }
                }
                Err(error) => error,
            };
            tries += 1;
            if !followed || printed == 0 || tries > TRIES {
                return Err(error);
            }
            tracing::warn!(%error, "going on");
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn get(&self, path: &str) -> Result<Response<Body>, Failure> {
        let (namespace, name) = &self.operator;
        let url = format!("/api/v1/namespaces/{namespace}/services/{name}:http/proxy{path}");
        let request =
            Request::get(url).header(TOKEN_HEADER, self.token().await?).body(Body::empty())?;
        let answer = self.client.send(request).await?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            status => {
                let bytes = answer.into_body().collect().await.map(|body| body.to_bytes());
                Err(Failure::failed(self.refusal(status, &bytes.unwrap_or_default())))
            }
        }
    }

    /// What the operator says, or what the API server says in its place.
    fn refusal(&self, status: StatusCode, body: &Bytes) -> String {
        let (namespace, name) = &self.operator;
        let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        if let Some(message) = json["error"]["message"].as_str() {
            return message.to_owned();
        }
        let words = json["message"].as_str().map(str::to_owned);
        let words = words.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
        match status {
            StatusCode::FORBIDDEN => format!(
                "{words}; the chart's Role {name}-api, which lets people through to the operator, is not bound to you"
            ),
            _ => format!(
                "the operator {namespace}/{name} cannot be asked: {status}: {words}; \
                 see `kubectl get endpoints -n {namespace}`, or give --operator"
            ),
        }
    }

    /// Shown to the operator.
    async fn token(&self) -> Result<HeaderValue, Failure> {
        if self.service_account.is_none()
            && let Some(token) = own_token(&self.config).await.map_err(Failure::failed)?
        {
            return Ok(token);
        }
        let (namespace, name) = self.service_account.clone().unwrap_or_else(|| {
            let (namespace, name) = &self.operator;
            (namespace.clone(), format!("{name}-viewer"))
        });
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &namespace);
        let spec =
            TokenRequestSpec { expiration_seconds: Some(TOKEN_SECONDS), ..Default::default() };
        let wish = TokenRequest { spec, ..TokenRequest::default() };
        let granted = accounts.create_token_request(&name, &PostParams::default(), &wish).await;
        let granted = granted.map_err(|error| {
            Failure::failed(format!(
                "no token of the ServiceAccount {namespace}/{name}: {error}; the operator knows people by their tokens, and \
                 this kubeconfig has none: give one with a token, or --service-account of which you may `create serviceaccounts/token` (apiAccess.viewer=true in the chart makes one)"
            ))
        })?;
        let token = granted.status.map(|status| status.token).unwrap_or_default();
        let mut header = HeaderValue::try_from(format!("Bearer {token}"))?;
        header.set_sensitive(true);
        Ok(header)
    }
}

/// The token that the client itself would show: of the kubeconfig, a file of it, or a program.
async fn own_token(config: &Config) -> Result<Option<HeaderValue>, BoxError> {
    let Some(layer) = config.auth_layer()? else { return Ok(None) };
    let shown = |request: Request<Body>| async move {
        let token = request.headers().get(header::AUTHORIZATION).cloned();
        Ok::<_, BoxError>(Response::new(token))
    };
    let shown = layer.layer(tower::service_fn(shown)).oneshot(Request::new(Body::empty())).await?;
    Ok(shown.into_body().filter(|token| token.as_bytes().starts_with(b"Bearer ")))
}

fn pair(text: &str, flag: &str) -> Result<(String, String), Failure> {
    text.split_once('/')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
        .map(|(namespace, name)| (namespace.to_owned(), name.to_owned()))
        .ok_or_else(|| {
            Failure::bad_input(format!("{flag}: expected <namespace>/<name>, found {text:?}"))
        })
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(bytes)?;
    out.flush()
}
