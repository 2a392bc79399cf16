//! An EC2 on a clock that tests move, and a client that signs what it asks.

use std::fmt::Write as _;
use std::time::Duration;

use petaflop_agent_api::clock::Clock;
use petaflop_cloud_box::ec2::{Ec2, Setup};
use petaflop_cloud_box::engine::machine::Machine;
use petaflop_cloud_box::engine::product::ProductId;
use petaflop_cloud_box::faults::{Fault, Operation};
use petaflop_cloud_box::host::StateOnly;
use ring::{digest, hmac};
use serde_json::Value;

use crate::xml::Node;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const HOME: &str = "us-east-2";
/// What is launched where a test does not say otherwise; 2 vCPUs.
pub(crate) const KIND: &str = "c7i.large";
pub(crate) const ZONE: &str = "use2-az1";

/// Whose key signs.
#[derive(Clone, Debug)]
pub(crate) struct Signer {
    pub(crate) key: String,
    pub(crate) secret: String,
    pub(crate) token: Option<String>,
}

impl Signer {
    pub(crate) fn of(key: &str, secret: &str) -> Self {
        Self { key: key.to_owned(), secret: secret.to_owned(), token: None }
    }
}

pub(crate) struct Fixture {
    pub(crate) cloud: Ec2,
    pub(crate) clock: Clock,
    http: reqwest::Client,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) status: u16,
    pub(crate) text: String,
    pub(crate) body: Node,
}

impl Seen {
    /// Code of the error.
    pub(crate) fn code(&self) -> &str {
        self.body.at("Errors/Error/Code")
    }

    pub(crate) fn message(&self) -> &str {
        self.body.at("Errors/Error/Message")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    /// Ids of the instances of a reservation.
    pub(crate) fn ids(&self) -> Vec<String> {
        let items = self.body.all("instancesSet/item").into_iter();
        items.map(|item| item.at("instanceId").to_owned()).collect()
    }
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Setup)) -> Self {
        // Another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let clock = Clock::manual("2026-11-20T10:00:00Z".parse().unwrap());
        let mut setup = Setup::new(clock.clone(), "AKIDBOX", "secret", Box::<StateOnly>::default());
        change(&mut setup);
        let cloud = Ec2::start(setup).unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { cloud, clock, http }
    }

    /// Sends a signed request; the error is a connection that was cut.
    pub(crate) async fn send(
        &self,
        signer: &Signer,
        (service, region): (&str, &str),
        target: Option<&str>,
        body: String,
    ) -> reqwest::Result<Seen> {
        let url = self.cloud.url();
        let host = url.trim_start_matches("http://").to_owned();
        let mut headers = vec![
            ("content-type", "application/x-www-form-urlencoded".to_owned()),
            ("host", host),
            ("x-amz-date", "20261120T100000Z".to_owned()),
        ];
        if let Some(token) = &signer.token {
            headers.push(("x-amz-security-token", token.clone()));
        }
        if let Some(target) = target {
            headers[0].1 = "application/x-amz-json-1.1".to_owned();
            headers.push(("x-amz-target", target.to_owned()));
        }
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let mut canonical = "POST\n/\n\n".to_owned();
        for (name, value) in &headers {
            writeln!(canonical, "{name}:{value}").unwrap();
        }
        write!(
            canonical,
            "\n{names}\n{}",
            hex(digest::digest(&digest::SHA256, body.as_bytes()).as_ref())
        )
        .unwrap();
        let scope = format!("20261120/{region}/{service}/aws4_request");
        let hashed = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
        let text = format!("AWS4-HMAC-SHA256\n20261120T100000Z\n{scope}\n{hashed}");
        let mut key = format!("AWS4{}", signer.secret).into_bytes();
        for part in ["20261120", region, service, "aws4_request", &text] {
            let with = hmac::Key::new(hmac::HMAC_SHA256, &key);
            key = hmac::sign(&with, part.as_bytes()).as_ref().to_vec();
        }
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={}",
            signer.key,
            hex(&key)
        );
        let mut request = self.http.post(format!("{url}/")).body(body);
        for (name, value) in headers.into_iter().filter(|(name, _)| *name != "host") {
            request = request.header(name, value);
        }
        let answer = request.header("authorization", authorization).send().await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        let body = Node::parse(&text);
        Ok(Seen { status, text, body })
    }

    /// An action of EC2 in a region, by anybody.
    pub(crate) async fn ask_as(
        &self,
        signer: &Signer,
        region: &str,
        action: &str,
        fields: &[(&str, &str)],
    ) -> reqwest::Result<Seen> {
        self.send(signer, ("ec2", region), None, form(action, "2016-11-15", fields)).await
    }

    pub(crate) async fn ask_in(&self, region: &str, action: &str, fields: &[(&str, &str)]) -> Seen {
        self.ask_as(&own(), region, action, fields).await.unwrap()
    }

    pub(crate) async fn ask(&self, action: &str, fields: &[(&str, &str)]) -> Seen {
        self.ask_in(HOME, action, fields).await
    }

    /// The image of a region for an architecture.
    pub(crate) fn image(&self, region: &str, arm: bool) -> String {
        let path = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-";
        let path = format!("{path}{}", if arm { "arm64" } else { "x86_64" });
        self.cloud.catalog(|catalog| catalog.region(region).unwrap().parameters[&path].clone())
    }

    /// The subnet of a zone.
    pub(crate) fn subnet(&self, region: &str, zone: &str) -> String {
        self.cloud.catalog(|catalog| {
            let region = catalog.region(region).unwrap();
            let zone = region.zones.iter().find(|known| known.id == zone).unwrap();
            region.subnets.iter().find(|subnet| subnet.zone == zone.name).unwrap().id.clone()
        })
    }

    /// Launches one in the usual subnet, with these fields beside or instead of the usual ones.
    pub(crate) async fn launch(&self, fields: &[(&str, &str)]) -> Seen {
        let (image, subnet) = (self.image(HOME, false), self.subnet(HOME, ZONE));
        let usual = [
            ("ImageId", image.as_str()),
            ("InstanceType", KIND),
            ("MinCount", "1"),
            ("MaxCount", "1"),
            ("SubnetId", subnet.as_str()),
        ];
        let set = |name: &str| fields.iter().any(|(own, _)| *own == name);
        let mut all: Vec<(&str, &str)> = usual.into_iter().filter(|(name, _)| !set(name)).collect();
        // An empty one takes a usual one away.
        all.extend(fields.iter().copied().filter(|(_, value)| !value.is_empty()));
        self.ask("RunInstances", &all).await
    }

    /// A spot instance.
    pub(crate) async fn spot(&self, fields: &[(&str, &str)]) -> Seen {
        let mut all = vec![("InstanceMarketOptions.MarketType", "spot")];
        all.extend(fields);
        self.launch(&all).await
    }

    /// One that runs, on demand or spot.
    pub(crate) async fn running(&self, spot: bool, fields: &[(&str, &str)]) -> String {
        let seen = if spot { self.spot(fields).await } else { self.launch(fields).await };
        assert_eq!(seen.status, 200, "{}", seen.text);
        self.clock.advance(SECOND * 10);
        let id = seen.ids().remove(0);
        assert_eq!(self.state(&id).await, "running");
        id
    }

    /// One instance as it is described.
    pub(crate) async fn instance(&self, id: &str) -> Node {
        let seen = self.ask("DescribeInstances", &[("InstanceId.1", id)]).await;
        assert_eq!(seen.status, 200, "{}", seen.text);
        seen.body.all("reservationSet/item/instancesSet/item").remove(0).clone()
    }

    pub(crate) async fn state(&self, id: &str) -> String {
        self.instance(id).await.at("instanceState/name").to_owned()
    }

    /// Ids of the instances that a listing with these fields shows.
    pub(crate) async fn listed(&self, fields: &[(&str, &str)]) -> Vec<String> {
        let seen = self.ask("DescribeInstances", fields).await;
        assert_eq!(seen.status, 200, "{}", seen.text);
        let items = seen.body.all("reservationSet/item/instancesSet/item").into_iter();
        items.map(|item| item.at("instanceId").to_owned()).collect()
    }

    pub(crate) async fn terminate(&self, id: &str) -> Seen {
        self.ask("TerminateInstances", &[("InstanceId.1", id)]).await
    }

    pub(crate) fn fault(&self, fault: Fault, operation: Operation) {
        self.cloud.faults(|faults| faults.next(fault, operation));
    }

    /// The usual product.
    pub(crate) fn product(&self, spot: bool) -> ProductId {
        self.cloud.product(KIND, ZONE, spot).unwrap()
    }

    /// What the usual product costs spot, micro-dollars an hour.
    pub(crate) fn price(&self) -> i64 {
        let product = self.product(true);
        self.cloud.engine(|engine| engine.spot_price(product).unwrap())
    }

    /// Every machine there is or was.
    pub(crate) fn machines(&self) -> Vec<Machine> {
        self.cloud.engine(|engine| engine.machines().to_vec())
    }

    /// Micro-dollars on the invoice for a machine or volume.
    pub(crate) fn billed(&self, id: &str) -> i64 {
        let bill = self.cloud.engine(|engine| engine.invoice().by_machine());
        bill.get(id).copied().unwrap_or_default()
    }
}

/// The account's own key.
pub(crate) fn own() -> Signer {
    Signer::of("AKIDBOX", "secret")
}

pub(crate) fn form(action: &str, version: &str, fields: &[(&str, &str)]) -> String {
    let mut body = format!("Action={action}&Version={version}");
    for (name, value) in fields {
        let value: String = value
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                    char::from(byte).to_string()
                }
                byte => format!("%{byte:02X}"),
            })
            .collect();
        write!(body, "&{name}={value}").unwrap();
    }
    body
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
