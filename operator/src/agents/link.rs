//! The way to an agent: we call it, or it calls us. What is said is sealed and the same on both.

use std::sync::Arc;
use std::time::Duration;

use petaflop_agent_api::keys::NoisePublic;

use super::door::{Call, Door, Visits};

/// A round trip that has not ended after this long has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How long an agent that we call waits for something new before it answers.
const WATCH: Duration = Duration::from_secs(30);
/// The same of one that calls: until then no other request reaches it, such as the one to end.
const WATCH_OF_CALLER: Duration = Duration::from_secs(5);

/// Why a round trip came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("agent: {0}")]
    Http(#[from] reqwest::Error),
    #[error("agent: HTTP {0}")]
    Status(u16),
    /// It waits for the answer to its hello.
    #[error("agent: not enrolled yet")]
    NotEnrolled,
    /// It does not call.
    #[error("agent: no call of its own for {} s", PATIENCE.as_secs())]
    NoCall,
}

/// How one agent is reached.
pub(super) enum Link {
    /// It listens at this `host:port`.
    Dial { http: reqwest::Client, endpoint: String },
    /// It calls.
    Called(Caller),
}

impl Link {
    /// Where it is dialled.
    pub(super) fn endpoint(&self) -> Option<&str> {
        match self {
            Self::Dial { endpoint, .. } => Some(endpoint),
            Self::Called(_) => None,
        }
    }

    /// How long it may wait for something new before it answers.
    pub(super) fn watch(&self) -> Duration {
        match self {
            Self::Dial { .. } => WATCH,
            Self::Called(_) => WATCH_OF_CALLER,
        }
    }

    /// The agent of this key is the claim's, and nobody else any more.
    pub(super) fn pinned(&self, agent: NoisePublic) {
        if let Self::Called(caller) = self {
            caller.door.pin(agent);
        }
    }

    /// Its hello.
    pub(super) async fn hello(&mut self) -> Result<Vec<u8>, LinkError> {
        match self {
            Self::Dial { http, endpoint } => {
                body(http.get(format!("http://{endpoint}/v1/hello"))).await
            }
            Self::Called(caller) => patiently(caller.hello()).await,
        }
    }

    /// Answers its hello.
    pub(super) async fn welcome(&mut self, welcome: Vec<u8>) -> Result<(), LinkError> {
        match self {
            Self::Dial { http, endpoint } => {
                let url = format!("http://{endpoint}/v1/hello");
                body(http.post(url).body(welcome)).await.map(drop)
            }
            Self::Called(caller) => caller.welcome(welcome),
        }
    }

    /// One request, and the response to it.
    pub(super) async fn request(&mut self, request: &[u8]) -> Result<Vec<u8>, LinkError> {
        match self {
            Self::Dial { http, endpoint } => {
                let url = format!("http://{endpoint}/v1/rpc");
                match body(http.post(url).body(request.to_vec())).await {
                    Err(LinkError::Status(409)) => Err(LinkError::NotEnrolled),
                    said => said,
                }
            }
            Self::Called(caller) => patiently(caller.request(request)).await,
        }
    }
}

async fn patiently<T>(trip: impl Future<Output = Result<T, LinkError>>) -> Result<T, LinkError> {
    // By the time of networks, as a client's limit is.
    tokio::time::timeout(PATIENCE, trip).await.unwrap_or(Err(LinkError::NoCall))
}

async fn body(request: reqwest::RequestBuilder) -> Result<Vec<u8>, LinkError> {
    let answer = request.send().await?;
    match answer.status().as_u16() {
        200..=299 => Ok(answer.bytes().await?.to_vec()),
        status => Err(LinkError::Status(status)),
    }
}

/// An agent that calls: its calls as the door lets them in.
pub(super) struct Caller {
    door: Arc<Door>,
    visits: Visits,
    /// A call that waits for what we say next.
    waits: Option<Call>,
    /// Hash of the response that was taken last. It is brought again where our answer to it was lost.
    taken: Option<blake3::Hash>,
}

impl Caller {
    pub(super) fn new(door: Arc<Door>, visits: Visits) -> Self {
        Self { door, visits, waits: None, taken: None }
    }

    async fn hello(&mut self) -> Result<Vec<u8>, LinkError> {
        loop {
            match self.next().await? {
                Call::Hello { message, answer } => {
                    let hello = message.clone();
                    self.waits = Some(Call::Hello { message, answer });
                    return Ok(hello);
                }
                // It has a welcome of before, and learns that we know nothing of it.
                Call::Poll { .. } => {}
            }
        }
    }

    fn welcome(&mut self, welcome: Vec<u8>) -> Result<(), LinkError> {
        match self.waits.take() {
            Some(Call::Hello { answer, .. }) => answer.send(welcome).map_err(|_| LinkError::NoCall),
            _ => Err(LinkError::NoCall),
        }
    }

    /// What a call does not bring an answer to is handed out again with the next call: the agent
    /// brings each response until it knows that it has arrived, so it has not had that request.
    async fn request(&mut self, request: &[u8]) -> Result<Vec<u8>, LinkError> {
        let mut handed = false;
        loop {
            let (response, answer) = match self.next().await? {
                Call::Poll { response, answer } => (response, answer),
                hello @ Call::Hello { .. } => {
                    self.waits = Some(hello);
                    return Err(LinkError::NotEnrolled);
                }
            };
            let hash = blake3::hash(&response);
            if !response.is_empty() && self.taken != Some(hash) {
                self.taken = Some(hash);
                // Before it was handed out, it is the response to one that was given up.
                if handed {
                    self.waits = Some(Call::Poll { response: Vec::new(), answer });
                    return Ok(response);
                }
            }
            handed |= answer.send(request.to_vec()).is_ok();
        }
    }

    async fn next(&mut self) -> Result<Call, LinkError> {
        if let Some(call) = self.waits.take().filter(Call::is_open) {
            return Ok(call);
        }
        self.visits.recv().await.ok_or(LinkError::NoCall)
    }
}
