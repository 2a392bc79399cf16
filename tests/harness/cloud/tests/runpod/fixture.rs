//! A RunPod on a clock that tests move, and a client that asks it over HTTP.

use std::collections::BTreeMap;
use std::time::Duration;

use petaflop_agent_api::clock::Clock;
use petaflop_cloud_box::engine::machine::Machine;
use petaflop_cloud_box::engine::product::ProductId;
use petaflop_cloud_box::faults::{Fault, Operation};
use petaflop_cloud_box::host::StateOnly;
use petaflop_cloud_box::runpod::keys::Scope;
use petaflop_cloud_box::runpod::limits::Limits;
use petaflop_cloud_box::runpod::{PACE, RunPod, Setup};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

pub(crate) const RTX_4090: &str = "NVIDIA GeForce RTX 4090";
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// An image whose program ends at once.
pub(crate) const ENDS: &str = "ghcr.io/x/ends:1";

pub(crate) struct Fixture {
    pub(crate) cloud: RunPod,
    pub(crate) clock: Clock,
    http: reqwest::Client,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn detail(&self) -> &str {
        self.body["detail"].as_str().unwrap_or_default()
    }

    /// The first error of a GraphQL answer.
    pub(crate) fn error(&self) -> &str {
        self.body["errors"][0]["message"].as_str().unwrap_or_default()
    }

    pub(crate) fn id(&self) -> String {
        self.body["id"].as_str().unwrap().to_owned()
    }
}

/// What is asked for where a test does not say otherwise: one RTX 4090 of Community.
pub(crate) fn wish() -> Value {
    json!({ "name": "one", "image": "ghcr.io/x/y:1", "cloud": "COMMUNITY",
        "gpu": { "id": RTX_4090, "count": 1 }, "disk": 40 })
}

/// The usual wish with other fields; null takes one away.
pub(crate) fn wish_with(fields: &Value) -> Value {
    let mut wish = wish();
    for (name, value) in fields.as_object().unwrap() {
        wish[name] = value.clone();
    }
    wish.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    wish
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Setup)) -> Self {
        // Another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let clock = Clock::manual("2026-11-20T10:00:00Z".parse().unwrap());
        let mut setup = Setup {
            clock: clock.clone(),
            seed: 1,
            keys: BTreeMap::from([
                ("key".to_owned(), Scope::All),
                ("look".to_owned(), Scope::ReadOnly),
            ]),
            pace: PACE,
            deposit: 1_000_000_000,
            limits: Limits::new(1000, 10_000, 100_000),
            page: None,
            host: Box::new(StateOnly::default().ending(&[ENDS])),
        };
        change(&mut setup);
        let cloud = RunPod::start(setup).unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { cloud, clock, http }
    }

    /// Asks with any key; the error is a connection that was cut.
    pub(crate) async fn ask_as(
        &self,
        key: Option<&str>,
        method: &str,
        path: &str,
        body: String,
    ) -> reqwest::Result<Seen> {
        let url = format!("{}{path}", self.cloud.url());
        let request = self.http.request(method.parse().unwrap(), url).body(body);
        let request = match key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        };
        let answer = request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let text = answer.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Seen { status, headers, body })
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: &Value) -> Seen {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.ask_as(Some("key"), method, path, body).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Seen {
        self.ask("GET", path, &Value::Null).await
    }

    pub(crate) async fn create(&self, wish: &Value) -> Seen {
        self.ask("POST", "/v2/pods", wish).await
    }

    pub(crate) async fn pod(&self, id: &str) -> Value {
        self.get(&format!("/v2/pods/{id}")).await.body
    }

    pub(crate) async fn pods(&self) -> Vec<Value> {
        self.get("/v2/pods").await.body["pods"].as_array().unwrap().clone()
    }

    pub(crate) async fn act(&self, id: &str, action: &str) -> Seen {
        self.ask("POST", &format!("/v2/pods/{id}/action"), &json!({ "action": action })).await
    }

    pub(crate) async fn delete(&self, id: &str) -> Seen {
        self.ask("DELETE", &format!("/v2/pods/{id}"), &Value::Null).await
    }

    /// A pod that runs.
    pub(crate) async fn running(&self, wish: &Value) -> String {
        let id = self.create(wish).await.id();
        self.clock.advance(SECOND * 25);
        assert_eq!(self.pod(&id).await["status"], "RUNNING");
        id
    }

    pub(crate) async fn graphql(&self, query: &str, input: &Value) -> Seen {
        let body = json!({ "query": query, "variables": { "i": input } });
        self.ask("POST", "/graphql", &body).await
    }

    pub(crate) fn fault(&self, fault: Fault, operation: Operation) {
        self.cloud.faults(|faults| faults.next(fault, operation));
    }

    /// Products of a kind on a cloud.
    pub(crate) fn products(&self, kind: &str, pool: &str) -> Vec<ProductId> {
        self.cloud.engine(|engine| {
            let sold = engine.products().filter(|(_, p)| p.kind == kind && p.pool == pool);
            sold.map(|(id, _)| id).collect()
        })
    }

    /// Nobody can rent one any more.
    pub(crate) fn sell_out(&self, kind: &str, pool: &str) {
        for id in self.products(kind, pool) {
            self.cloud.engine(|engine| engine.product_mut(id).capacity = 0);
        }
    }

    /// Every machine there is or was.
    pub(crate) fn machines(&self) -> Vec<Machine> {
        self.cloud.engine(|engine| engine.machines().to_vec())
    }

    /// Micro-dollars on the invoice.
    pub(crate) fn billed(&self) -> i64 {
        self.cloud.engine(|engine| engine.invoice().total())
    }
}
