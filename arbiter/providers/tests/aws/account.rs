//! An account at AWS, as its APIs answer: enough of EC2's query protocol, of SSM and of Pricing to
//! buy from, and told in advance where it is to lie.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::server::{Call, Reply, Server};

/// A request's fields.
pub(crate) type Form = BTreeMap<String, String>;

/// An instance.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) id: String,
    pub(crate) form: Form,
    pub(crate) state: &'static str,
    /// Code of the reason of its state.
    pub(crate) reason: &'static str,
    /// Describes of it by its id that do not know it yet.
    pub(crate) hidden: usize,
}

impl Made {
    /// Its end takes until somebody has seen that it has begun.
    fn goes_on(&mut self) {
        if self.state == "shutting-down" {
            self.state = "terminated";
        }
    }
}

/// How a purchase goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Create {
    /// Made, and the answer is lost.
    MadeButLost,
    /// Made, and answered with this status and code.
    MadeBut(u16, &'static str),
    /// Not made, and the answer is lost.
    Lost,
    /// Not made.
    Refused(u16, &'static str),
}

/// The account.
pub(crate) struct State {
    pub(crate) made: Vec<Made>,
    /// How the next purchases go; after these, well.
    pub(crate) creates: Vec<Create>,
    /// Codes with which the next calls of an action fail.
    pub(crate) fails: BTreeMap<&'static str, Vec<(u16, &'static str)>>,
    /// Zone and price of each spot pool, as texts.
    pub(crate) spot: Vec<(&'static str, &'static str, &'static str)>,
    pub(crate) subnets: Vec<(&'static str, &'static str, u32)>,
    /// Price of a product, where Pricing answers.
    pub(crate) list: Option<&'static str>,
    /// Rows on a page of the price history.
    pub(crate) page: usize,
    pub(crate) volumes: String,
    pub(crate) spot_requests: String,
    /// Whether instances carry no tags in answers.
    pub(crate) untagged: bool,
    /// Regions whose calls fail.
    pub(crate) down: Vec<&'static str>,
    /// Regions into which these keys may not look.
    pub(crate) closed: Vec<&'static str>,
    /// Instances that a new one has in lists before they show it.
    pub(crate) lag: usize,
}

impl Default for State {
    fn default() -> Self {
        Self {
            made: Vec::new(),
            creates: Vec::new(),
            fails: BTreeMap::new(),
            spot: vec![("use1-az1", "g6.xlarge", "0.4000000"), ("use1-az2", "g6.xlarge", "0.5")],
            subnets: vec![("subnet-1", "use1-az1", 10), ("subnet-2", "use1-az2", 10)],
            list: None,
            page: 1000,
            volumes: String::new(),
            spot_requests: String::new(),
            untagged: false,
            down: Vec::new(),
            closed: Vec::new(),
            lag: 0,
        }
    }
}

/// The account behind a server.
pub(crate) struct Account {
    state: Arc<Mutex<State>>,
    pub(crate) server: Server,
}

impl Account {
    pub(crate) async fn open(state: State) -> Self {
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        let server = Server::start(move |call| lock(&shared).answer(call)).await;
        Self { state, server }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The requests of one action.
    pub(crate) fn asked(&self, action: &str) -> Vec<Form> {
        let calls = self.server.calls();
        let forms = calls.iter().map(|call| form(&call.body));
        forms.filter(|form| form.get("Action").is_some_and(|known| known == action)).collect()
    }

    /// Ids of what bills.
    pub(crate) fn billed(&self) -> Vec<String> {
        let bills = |made: &&Made| matches!(made.state, "pending" | "running" | "stopped");
        self.state().made.iter().filter(bills).map(|made| made.id.clone()).collect()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The fields of a form.
pub(crate) fn form(body: &str) -> Form {
    let pairs = body.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (plain(key), plain(value))).collect()
}

fn plain(text: &str) -> String {
    let bytes = text.replace('+', " ").into_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let hex = (bytes[at] == b'%')
            .then(|| bytes.get(at + 1..at + 3))
            .flatten()
            .and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        out.push(hex.unwrap_or(bytes[at]));
        at += if hex.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The script that an instance was bought with.
pub(crate) fn user_data(form: &Form) -> String {
    let bytes = STANDARD.decode(&form["UserData"]).expect("base64");
    String::from_utf8(bytes).expect("text")
}

fn xml(action: &str, inner: &str) -> Reply {
    let space = "http://ec2.amazonaws.com/doc/2016-11-15/";
    let id = "<requestId>r-1</requestId>";
    Reply::Text(200, format!("<{action}Response xmlns=\"{space}\">{id}{inner}</{action}Response>"))
}

fn error(status: u16, code: &str, words: &str) -> Reply {
    let error = format!("<Error><Code>{code}</Code><Message>{words}</Message></Error>");
    let body = format!("<Response><Errors>{error}</Errors><RequestID>r-1</RequestID></Response>");
    Reply::Text(status, body)
}

fn items(name: &str, items: impl IntoIterator<Item = String>) -> String {
    let items: String = items.into_iter().map(|item| format!("<item>{item}</item>")).collect();
    format!("<{name}>{items}</{name}>")
}

impl State {
    fn answer(&mut self, call: &Call) -> Reply {
        // The region is in what was signed: …/20261120/us-east-1/ec2/aws4_request.
        let scope = call.authorization.split('/').collect::<Vec<_>>();
        let (region, service) = (scope.get(2).copied(), scope.get(3).copied());
        if self.down.iter().any(|down| region == Some(down)) {
            return error(503, "Unavailable", "down");
        }
        if self.closed.iter().any(|closed| region == Some(closed)) {
            return error(403, "UnauthorizedOperation", "not there");
        }
        match service {
            Some("ssm") => self.parameter(),
            Some("pricing") => self.products(),
            _ => self.ec2(&form(&call.body)),
        }
    }

    fn parameter(&mut self) -> Reply {
        match self
            .fails
            .get_mut("GetParameter")
            .filter(|all| !all.is_empty())
            .map(|all| all.remove(0))
        {
            Some((status, code)) => Reply::Json(status, json!({ "__type": code, "message": "no" })),
            None => Reply::Json(
                200,
                json!({ "Parameter": {
                "Name": "p", "Type": "String", "Value": "ami-0123", "Version": 1,
            } }),
            ),
        }
    }

    fn products(&self) -> Reply {
        let Some(price) = self.list else {
            let body = json!({ "__type": "AccessDeniedException", "Message": "not allowed" });
            return Reply::Json(400, body);
        };
        let product = json!({
            "product": { "attributes": { "instanceType": "g6.xlarge" } },
            "terms": { "OnDemand": { "a.b": { "priceDimensions": {
                "a.b.c": { "unit": "Hrs", "pricePerUnit": { "USD": price } },
            } } } },
        });
        Reply::Json(200, json!({ "FormatVersion": "aws_v1", "PriceList": [product.to_string()] }))
    }

    fn ec2(&mut self, form: &Form) -> Reply {
        let action = form.get("Action").cloned().unwrap_or_default();
        let planned = self.fails.iter_mut().find(|(name, _)| **name == action);
        if let Some((status, code)) =
            planned.filter(|(_, all)| !all.is_empty()).map(|(_, all)| all.remove(0))
        {
            return error(status, code, "as planned");
        }
        let inner = match action.as_str() {
            "DescribeAvailabilityZones" => {
                let zone = |(id, name, kind): (&str, &str, &str)| {
                    format!(
                        "<zoneName>{name}</zoneName><zoneId>{id}</zoneId>\
                         <zoneState>available</zoneState><zoneType>{kind}</zoneType>"
                    )
                };
                let all = [
                    ("use1-az1", "us-east-1c", "availability-zone"),
                    ("use1-az2", "us-east-1a", "availability-zone"),
                    ("use1-atl2-az1", "us-east-1-atl-2a", "local-zone"),
                ];
                items("availabilityZoneInfo", all.map(zone))
            }
            "DescribeSubnets" => {
                let subnet = |(id, zone, free): &(&str, &str, u32)| {
                    format!(
                        "<subnetId>{id}</subnetId><availabilityZoneId>{zone}</availabilityZoneId>\
                         <availableIpAddressCount>{free}</availableIpAddressCount>"
                    )
                };
                items("subnetSet", self.subnets.iter().map(subnet))
            }
            "DescribeInstanceTypes" => items(
                "instanceTypeSet",
                ["<instanceType>g6.xlarge</instanceType>\
                  <supportedUsageClasses><item>on-demand</item><item>spot</item></supportedUsageClasses>\
                  <processorInfo><supportedArchitectures><item>x86_64</item></supportedArchitectures></processorInfo>\
                  <vCpuInfo><defaultVCpus>4</defaultVCpus></vCpuInfo>\
                  <memoryInfo><sizeInMiB>16384</sizeInMiB></memoryInfo>\
                  <gpuInfo><gpus><item><name>L4</name><manufacturer>NVIDIA</manufacturer><count>1</count>\
                  <memoryInfo><sizeInMiB>22888</sizeInMiB></memoryInfo></item></gpus></gpuInfo>"
                    .to_owned()],
            ),
            "DescribeInstanceTypeOfferings" => {
                let offering = |zone: &str| {
                    format!(
                        "<instanceType>g6.xlarge</instanceType><location>{zone}</location>\
                         <locationType>availability-zone-id</locationType>"
                    )
                };
                items("instanceTypeOfferingSet", ["use1-az1", "use1-az2"].map(offering))
            }
            "DescribeSpotPriceHistory" => self.history(form),
            "RunInstances" => return self.run(form),
            "DescribeInstances" => return self.describe(form),
            "DescribeVolumes" => format!("<volumeSet>{}</volumeSet>", self.volumes),
            "DescribeSpotInstanceRequests" => {
                format!("<spotInstanceRequestSet>{}</spotInstanceRequestSet>", self.spot_requests)
            }
            "TerminateInstances" => {
                let id = &form["InstanceId.1"];
                match self.made.iter_mut().find(|made| made.id == *id && made.hidden == 0) {
                    None => return error(400, "InvalidInstanceID.NotFound", "no such instance"),
                    Some(made) if made.state != "terminated" => {
                        (made.state, made.reason) = ("shutting-down", "Client.UserInitiatedShutdown");
                    }
                    Some(_) => {}
                }
                items("instancesSet", [format!("<instanceId>{id}</instanceId>")])
            }
            "DeleteVolume" => {
                self.volumes.clear();
                "<return>true</return>".to_owned()
            }
            "CancelSpotInstanceRequests" => {
                self.spot_requests.clear();
                items("spotInstanceRequestSet", [])
            }
            other => return error(400, "InvalidAction", other),
        };
        xml(&action, &inner)
    }

    fn history(&self, form: &Form) -> String {
        let start: usize = form.get("NextToken").map_or(0, |token| token.parse().expect("ours"));
        let row = |(zone, name, price): &(&str, &str, &str)| {
            format!(
                "<instanceType>{name}</instanceType><productDescription>Linux/UNIX</productDescription>\
                 <spotPrice>{price}</spotPrice><timestamp>2026-10-01T00:00:00.000Z</timestamp>\
                 <availabilityZoneId>{zone}</availabilityZoneId>"
            )
        };
        let end = (start + self.page).min(self.spot.len());
        // It comes back as nothing at the end, not absent.
        let next = if end < self.spot.len() { end.to_string() } else { String::new() };
        let rows = items("spotPriceHistorySet", self.spot[start..end].iter().map(row));
        format!("{rows}<nextToken>{next}</nextToken>")
    }

    fn run(&mut self, form: &Form) -> Reply {
        let token = &form["ClientToken"];
        if let Some(made) = self.made.iter().find(|made| made.form["ClientToken"] == *token) {
            // The same request: the same answer. Another one: none.
            return match made.form == *form {
                true => xml("RunInstances", &items("instancesSet", [self.show(made)])),
                false => error(400, "IdempotentParameterMismatch", "another request"),
            };
        }
        let how = (!self.creates.is_empty()).then(|| self.creates.remove(0));
        match how {
            Some(Create::Lost) => return Reply::Cut,
            Some(Create::Refused(status, code)) => return error(status, code, "as planned"),
            _ => {}
        }
        let made = Made {
            id: format!("i-{:04}", self.made.len() + 1),
            form: form.clone(),
            state: "pending",
            reason: "pending",
            hidden: self.lag,
        };
        let answer = items("instancesSet", [self.show(&made)]);
        self.made.push(made);
        match how {
            Some(Create::MadeButLost) => Reply::Cut,
            Some(Create::MadeBut(status, code)) => error(status, code, "as planned"),
            _ => xml("RunInstances", &answer),
        }
    }

    fn describe(&mut self, form: &Form) -> Reply {
        if let Some(id) = form.get("InstanceId.1") {
            let Some(made) = self.made.iter_mut().find(|made| made.id == *id) else {
                return error(400, "InvalidInstanceID.NotFound", "no such instance");
            };
            if made.hidden > 0 {
                made.hidden -= 1;
                return error(400, "InvalidInstanceID.NotFound", "not yet");
            }
            let seen = made.clone();
            made.goes_on();
            return self.shown(&[seen]);
        }
        let wanted: Vec<(String, Vec<String>)> = (1..)
            .map_while(|n| {
                let name = form.get(&format!("Filter.{n}.Name"))?.clone();
                let value = |m: u32| form.get(&format!("Filter.{n}.Value.{m}")).cloned();
                Some((name, (1..).map_while(value).collect()))
            })
            .collect();
        let fits = |made: &&Made| {
            made.hidden == 0
                && wanted.iter().all(|(name, values)| match name.strip_prefix("tag:") {
                    Some(key) => values.iter().any(|value| {
                        !self.untagged
                            && tags(&made.form).iter().any(|(k, v)| k == key && v == value)
                    }),
                    None => name == "client-token" && values.contains(&made.form["ClientToken"]),
                })
        };
        let found: Vec<Made> = self.made.iter().filter(fits).cloned().collect();
        // Whoever looks comes a little later.
        self.made.iter_mut().for_each(|made| made.hidden = made.hidden.saturating_sub(1));
        self.made.iter_mut().for_each(Made::goes_on);
        self.shown(&found)
    }

    fn shown(&self, made: &[Made]) -> Reply {
        let all = items("instancesSet", made.iter().map(|made| self.show(made)));
        xml("DescribeInstances", &items("reservationSet", [all]))
    }

    fn show(&self, made: &Made) -> String {
        let Made { id, form, state, reason, hidden: _ } = made;
        let tags = if self.untagged { Vec::new() } else { tags(form) };
        let tags =
            tags.iter().map(|(key, value)| format!("<key>{key}</key><value>{value}</value>"));
        let spot = form.contains_key("InstanceMarketOptions.MarketType");
        let lifecycle = if spot { "<instanceLifecycle>spot</instanceLifecycle>" } else { "" };
        format!(
            "<instanceId>{id}</instanceId><instanceState><name>{state}</name></instanceState>\
             <stateReason><code>{reason}</code><message>{reason}: words</message></stateReason>\
             <instanceType>{}</instanceType><clientToken>{}</clientToken>{lifecycle}\
             <launchTime>2026-11-20T10:00:00.000Z</launchTime><ipAddress>203.0.113.7</ipAddress>\
             <placement><availabilityZoneId>use1-az1</availabilityZoneId></placement>{}",
            form["InstanceType"],
            form["ClientToken"],
            items("tagSet", tags),
        )
    }
}

/// The tags of the instance itself, from the form it was bought with.
fn tags(form: &Form) -> Vec<(String, String)> {
    let pair = |n: u32| {
        let part = |name: &str| form.get(&format!("TagSpecification.1.Tag.{n}.{name}")).cloned();
        Some((part("Key")?, part("Value")?))
    };
    (1..).map_while(pair).collect()
}
