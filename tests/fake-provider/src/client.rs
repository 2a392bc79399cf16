//! The provider that buys in the cloud, as careful as one for a real cloud has to
//! be: one connection a call and no repetitions, answers judged by status, code
//! and words, lists that are complete or say that they are not.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::{FrozenRequest, Identity, LaunchSafety, Refusal};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::Offer;
use petaflop_arbiter::reason::Reason;
use petaflop_providers::machine::{Volume, VolumeSource, env};
use petaflop_providers::provider::{identity_text, parse_identity};
use petaflop_providers::{
    Billing, Capabilities, EnrolmentToken, Instance, InstanceId, InstanceState, LaunchError,
    Listing, Order, Provider, ProviderError, Trouble, Used, Work,
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use crate::manners::{Manners, Style};
use crate::wire::{Create, Page, Problem, State, View};

/// A call that has not ended after this long, by the cloud's clock, has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A provider that buys in a [`crate::Cloud`].
#[derive(Clone, Debug)]
pub struct FakeProvider {
    name: String,
    address: SocketAddr,
    manners: Manners,
    clock: Clock,
}

/// The frozen request: the purchase without the token, and what was offered.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Frozen {
    create: Create,
}

/// An answer: status, seconds of `Retry-After`, body.
struct Answer {
    status: u16,
    retry_after: Option<u64>,
    body: Bytes,
}

impl Answer {
    fn problem(&self) -> Problem {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| Problem {
            code: String::new(),
            message: String::from_utf8_lossy(&self.body).into_owned(),
        })
    }
}

impl FakeProvider {
    /// A provider of this name for the cloud at this address.
    pub fn new(name: &str, address: SocketAddr, manners: Manners, clock: Clock) -> Self {
        Self { name: name.to_owned(), address, manners, clock }
    }

    /// One call. An error says nothing about whether it was done.
    async fn call(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Answer, String> {
        let call = async {
            let stream = TcpStream::connect(self.address).await.map_err(|e| e.to_string())?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(|e| e.to_string())?;
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header(header::HOST, self.address.to_string())
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(body)))
                .map_err(|e| e.to_string())?;
            // The sender goes with the exchange, and the connection with the sender.
            let exchange = async move {
                let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
                let retry_after = answer.headers().get(header::RETRY_AFTER);
                let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
                let status = answer.status().as_u16();
                let body = answer.into_body().collect().await.map_err(|e| e.to_string())?;
                Ok(Answer { status, retry_after, body: body.to_bytes() })
            };
            // How the connection ended, the exchange knows better.
            let (answer, _) = futures::future::join(exchange, connection).await;
            answer
        };
        let late = || Err(format!("no answer within {} s", PATIENCE.as_secs()));
        self.clock.timeout(PATIENCE, call).await.unwrap_or_else(late)
    }

    async fn ask(&self, method: Method, path: &str) -> Result<Answer, ProviderError> {
        let answer = self.call(method, path, Vec::new()).await.map_err(|e| self.unreachable(e))?;
        match answer.status {
            200..=299 | 404 => Ok(answer),
            _ => Err(self.error(&answer)),
        }
    }

    fn unreachable(&self, detail: String) -> ProviderError {
        ProviderError::Unreachable { provider: self.name.clone(), detail }
    }

    fn error(&self, answer: &Answer) -> ProviderError {
        let (provider, detail) = (self.name.clone(), answer.problem().message);
        match answer.status {
            401 | 403 => ProviderError::Unauthorized { provider, detail },
            410 => ProviderError::Retired { provider, detail },
            429 => {
                let wait = Duration::from_secs(answer.retry_after.unwrap_or(5));
                ProviderError::RateLimited { provider, wait }
            }
            status => self.unreachable(format!("{status}: {detail}")),
        }
    }

    fn read<'a, T: Deserialize<'a>>(&self, answer: &'a Answer) -> Result<T, ProviderError> {
        serde_json::from_slice(&answer.body).map_err(|error| self.unreachable(error.to_string()))
    }

    /// All machines of the account, and whether these are all.
    async fn all(&self) -> Result<(Vec<View>, bool), ProviderError> {
        let mut seen: Vec<View> = Vec::new();
        let mut cursors = BTreeSet::new();
        let mut path = "/v1/machines".to_owned();
        loop {
            let answer = match self.ask(Method::GET, &path).await {
                Ok(answer) => answer,
                // What was seen is true; what was not seen may be there.
                Err(_) if !cursors.is_empty() => return Ok((seen, false)),
                Err(error) => return Err(error),
            };
            let page: Page = self.read(&answer)?;
            seen.extend(page.machines);
            match page.cursor {
                // A machine that ended between two pages is missing from the later count.
                None => {
                    let complete = seen.len() >= page.total;
                    return Ok((seen, complete));
                }
                Some(cursor) => {
                    path = format!("/v1/machines?cursor={cursor}");
                    if !cursors.insert(cursor) {
                        return Ok((seen, false));
                    }
                }
            }
        }
    }

    async fn listing(&self, wanted: impl Fn(&Identity) -> bool) -> Result<Listing, ProviderError> {
        let (views, complete) = self.all().await?;
        let instances = views.into_iter().map(|view| self.instance(view));
        let instances =
            instances.filter(|one| one.identity.as_ref().is_some_and(&wanted)).collect();
        Ok(Listing { instances, complete })
    }

    fn instance(&self, view: View) -> Instance {
        let state = match view.state {
            State::Pending => InstanceState::Pending,
            // Ended work bills as long as its machine is there.
            State::Running | State::Exited => InstanceState::Running,
            State::Stopping => InstanceState::Terminating,
            // A volume that stayed behind bills: it is not gone before that is.
            State::Terminated if !view.leftovers.is_empty() => InstanceState::Terminating,
            State::Terminated => InstanceState::Terminated,
        };
        let trouble = |message: &str| {
            Some(Trouble { reason: Reason::SpotInterrupted, message: message.to_owned() })
        };
        Instance {
            id: InstanceId(view.id),
            identity: view.identity.as_deref().and_then(parse_identity),
            state,
            started: Some(view.created),
            ended: view.ended,
            offer: view.offered,
            hourly: Some(view.price),
            running: None,
            endpoint: view.endpoint,
            exit: view.exit.map(|code| petaflop_providers::Exit { code, message: String::new() }),
            trouble: match (view.reason.as_deref(), view.state, self.manners.style) {
                (Some(reason @ "Server.SpotInstanceTermination"), _, _) => trouble(reason),
                (_, State::Exited, Style::RunPod) => {
                    trouble("EXITED: finished or taken away, the provider does not say which")
                }
                _ => None,
            },
        }
    }

    fn refused(&self, answer: &Answer) -> LaunchError {
        let Problem { code, message } = answer.problem();
        let kind = match (answer.status, code.as_str()) {
            (_, "InsufficientInstanceCapacity" | "UnfulfillableCapacity") => Refusal::NoCapacity,
            (_, "MaxSpotInstanceCountExceeded" | "VcpuLimitExceeded") => Refusal::Quota,
            (_, "SpotMaxPriceTooLow") => Refusal::PriceChanged,
            // It exists, made by a request that was not quite this one: it must be found.
            (_, "IdempotentParameterMismatch") => {
                return LaunchError::Ambiguous { detail: message };
            }
            (400, "") if means_no_capacity(&message) => Refusal::NoCapacity,
            (401, _) => Refusal::Unauthorized,
            (402, _) => Refusal::BalanceTooLow,
            (403, _) => Refusal::Quota,
            (410, _) => Refusal::Retired,
            (429, _) => {
                let wait = Duration::from_secs(answer.retry_after.unwrap_or(5));
                return LaunchError::Later { wait, detail: message };
            }
            (400..=499, _) => Refusal::Invalid,
            (status, _) => {
                return LaunchError::Ambiguous { detail: format!("{status}: {message}") };
            }
        };
        LaunchError::Refused { kind, detail: message }
    }
}

/// The words with which RunPod says that there is none.
fn means_no_capacity(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    [
        "no longer any instances available",
        "no instances currently available",
        "does not have the resources to deploy your pod",
        "not enough free gpus on the host machine",
    ]
    .iter()
    .any(|words| message.contains(words))
}

#[async_trait]
impl Provider for FakeProvider {
    fn name(&self) -> &str {
        &self.name
    }

    fn capabilities(&self) -> Capabilities {
        let Manners { idempotent, settle, granularity, minimum, .. } = self.manners;
        Capabilities {
            launch_safety: LaunchSafety {
                idempotent,
                settle_seconds: u32::try_from(settle.as_secs()).unwrap_or(u32::MAX),
            },
            launch_timeout: Duration::from_secs(300),
            termination_timeout: Duration::from_secs(120),
            billing: Billing::new(granularity, minimum),
            sells: true,
            own_address: false,
            rented: true,
        }
    }

    async fn quote(&self) -> Result<Vec<Offer>, ProviderError> {
        let answer = self.ask(Method::GET, "/v1/offers").await?;
        self.read(&answer)
    }

    async fn prepare(&self, order: Order<'_>) -> Result<FrozenRequest, LaunchError> {
        let Order { identity, offer, work } = order;
        let invalid = |detail: &str| LaunchError::Refused {
            kind: Refusal::Invalid,
            detail: detail.to_owned(),
        };
        let Work::Machine(machine) = work else {
            return Err(invalid("a cloud runs images, not commands of this host"));
        };
        // What is empty at first, its agent makes.
        let of_the_machine = |volume: &Volume| {
            matches!(volume.source, VolumeSource::EmptyDir { .. } | VolumeSource::Memory)
        };
        if !machine.volumes.iter().all(of_the_machine) {
            return Err(invalid("volumes of the cluster cannot be had in a cloud"));
        }
        let mut environment = machine.bootstrap.environment();
        environment.insert(env::IDENTITY.to_owned(), identity_text(identity));
        let create = Create {
            name: identity.unique_name(),
            token: identity.token(),
            identity: identity_text(identity),
            offer: offer.id.clone(),
            offered: offer.clone(),
            bid: offer.price,
            image: machine.image.clone(),
            env: environment,
        };
        let body =
            serde_json::to_string(&Frozen { create }).map_err(|e| invalid(&e.to_string()))?;
        Ok(FrozenRequest { body })
    }

    async fn launch(
        &self,
        request: &FrozenRequest,
        token: &EnrolmentToken,
    ) -> Result<InstanceId, LaunchError> {
        let refused = |kind, detail: String| LaunchError::Refused { kind, detail };
        let Frozen { mut create } = serde_json::from_str(&request.body)
            .map_err(|error| refused(Refusal::Invalid, error.to_string()))?;
        create.env.insert(env::TOKEN.to_owned(), token.expose().to_owned());
        let body = serde_json::to_vec(&create)
            .map_err(|error| refused(Refusal::Invalid, error.to_string()))?;
        let answer = self
            .call(Method::POST, "/v1/machines", body)
            .await
            .map_err(|detail| LaunchError::Ambiguous { detail })?;
        if answer.status != 201 {
            return Err(self.refused(&answer));
        }
        let made: View = serde_json::from_slice(&answer.body)
            .map_err(|error| LaunchError::Ambiguous { detail: error.to_string() })?;
        let id = InstanceId(made.id);
        if made.price <= create.bid {
            return Ok(id);
        }
        // It costs more than was decided on: it is given back before anything runs on it.
        let detail = format!("{} an hour instead of {}", made.price, create.bid);
        match self.terminate(&id).await {
            Ok(()) => Err(refused(Refusal::PriceChanged, detail)),
            Err(error) => Err(LaunchError::Ambiguous { detail: format!("{detail}; {error}") }),
        }
    }

    async fn find(&self, identity: &Identity) -> Result<Listing, ProviderError> {
        self.listing(|known| {
            known.installation == identity.installation && known.claim_uid == identity.claim_uid
        })
        .await
    }

    async fn list(&self, installation: &str) -> Result<Listing, ProviderError> {
        self.listing(|known| known.installation == installation).await
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, ProviderError> {
        let answer = self.ask(Method::GET, &format!("/v1/machines/{id}")).await?;
        match answer.status {
            404 => Ok(None),
            _ => Ok(Some(self.instance(self.read(&answer)?))),
        }
    }

    /// What would stay behind goes first: once the machine is gone, nothing names it any more.
    async fn terminate(&self, id: &InstanceId) -> Result<(), ProviderError> {
        self.ask(Method::DELETE, &format!("/v1/machines/{id}/leftovers")).await?;
        self.ask(Method::DELETE, &format!("/v1/machines/{id}")).await?;
        Ok(())
    }

    async fn billed(&self, used: Used<'_>) -> Result<Usd, ProviderError> {
        Ok(used.at_its_price(self.capabilities().billing))
    }
}
