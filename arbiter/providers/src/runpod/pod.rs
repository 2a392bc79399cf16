//! Pods as instances. Bytes in, instances out. Pure.
//!
//! RunPod has no tags: whose a pod is stands in its environment, which is told on reading, and in
//! its name. Every field but the id may be missing or odd: a pod that is left out of a list looks
//! gone, and a pod that looks gone is billed for ever.

use jiff::Timestamp;
use petaflop_arbiter::claim::Identity;
use petaflop_arbiter::launch::MAX_ATTEMPTS;
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::Offer;
use petaflop_arbiter::reason::Reason;
use serde_json::Value;

use super::dollars;
use crate::machine::env;
use crate::provider::{Instance, InstanceId, InstanceState, Trouble, parse_identity};

/// What was bought, in the pod's environment, so that its cost can be told when nobody knows of its
/// claim any more.
pub(super) const OFFER: &str = "PETAFLOP_OFFER";

/// A pod, as it was answered.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pod {
    pub(super) id: String,
    pub(super) name: String,
    /// Dollars an hour for all of it; 0, and so none, when it has stopped.
    pub(super) cost: Option<UsdPerHour>,
    pub(super) identity: Option<Identity>,
    status: String,
    /// Where it is, where that is said: Community machines are in no data centre.
    pub(super) data_center: Option<String>,
    pub(super) created: Option<Timestamp>,
    offer: Option<Offer>,
    endpoint: Option<String>,
    /// Whether it has a port to be called at.
    is_called: bool,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Page {
    pub(super) pods: Vec<Pod>,
    /// Whether every entry was a pod.
    pub(super) readable: bool,
    pub(super) next: Next,
}

/// What comes after a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing.
    Nothing,
    /// The page of this cursor.
    Page(String),
    /// There is more, and no way to it.
    Lost,
}

/// Reads a page of the list.
///
/// # Errors
/// When this is no list of pods, in words. Never an empty list instead.
pub(super) fn page(body: &[u8]) -> Result<Page, String> {
    let body: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let list = body.get("pods").and_then(Value::as_array).ok_or("no list of pods in the answer")?;
    let pods: Vec<Pod> = list.iter().filter_map(read).collect();
    let readable = pods.len() == list.len();
    let paging = body.get("pagination");
    let cursor = paging.and_then(|paging| paging.get("nextCursor")).and_then(Value::as_str);
    let more = paging.and_then(|paging| paging.get("hasNextPage")).and_then(Value::as_bool);
    let next = match (more, cursor.filter(|cursor| !cursor.is_empty())) {
        (Some(false), _) | (None, None) => Next::Nothing,
        (_, Some(cursor)) => Next::Page(cursor.to_owned()),
        (Some(true), None) => Next::Lost,
    };
    Ok(Page { pods, readable, next })
}

/// Reads one pod; `None` where there is no id in it.
pub(super) fn one(body: &[u8]) -> Option<Pod> {
    read(&serde_json::from_slice(body).ok()?)
}

fn read(pod: &Value) -> Option<Pod> {
    let text = |key: &str| pod.get(key).and_then(Value::as_str);
    let id = text("id").filter(|id| !id.is_empty())?.to_owned();
    let variable = |name: &str| pod.get("env")?.get(name)?.as_str();
    // A pod of unknown age would never be old enough for the sweep.
    let time = |key: &str| text(key).and_then(|time| time.parse::<Timestamp>().ok());
    let port = variable(env::PORT).and_then(|port| port.parse::<u16>().ok());
    Some(Pod {
        id,
        name: text("name").unwrap_or_default().to_owned(),
        cost: pod.get("cost").and_then(dollars::hourly),
        identity: variable(env::IDENTITY).and_then(parse_identity),
        status: text("status").unwrap_or_default().to_owned(),
        data_center: text("dataCenterId").filter(|id| !id.is_empty()).map(str::to_owned),
        created: time("createdAt").or_else(|| time("startedAt")),
        offer: variable(OFFER).and_then(|offer| serde_json::from_str(offer).ok()),
        endpoint: port.and_then(|port| endpoint(pod, port)),
        is_called: port.is_some(),
    })
}

/// Where a port of the pod is reached from outside: it is mapped, and may change when it restarts.
fn endpoint(pod: &Value, port: u16) -> Option<String> {
    let ports = pod.get("runtime")?.get("ports")?.as_array()?;
    let number = |mapped: &Value, key: &str| mapped.get(key).and_then(Value::as_u64);
    let ours = |mapped: &&Value| {
        let kind = mapped.get("type").and_then(Value::as_str);
        number(mapped, "private") == Some(u64::from(port)) && kind == Some("tcp")
    };
    let mapped = ports.iter().find(ours)?;
    let public = u16::try_from(number(mapped, "public")?).ok()?;
    let ip: std::net::IpAddr = mapped.get("ip")?.as_str()?.parse().ok()?;
    Some(std::net::SocketAddr::new(ip, public).to_string())
}

impl Pod {
    /// Whether it is of this claim, of any attempt: by what it carries or, where that cannot be
    /// read, by its name. Gives whose it is.
    pub(super) fn of_claim(&self, wanted: &Identity) -> Option<Identity> {
        if let Some(identity) = &self.identity {
            let same = identity.installation == wanted.installation
                && identity.claim_uid == wanted.claim_uid;
            return same.then(|| identity.clone());
        }
        let attempts = 0..=MAX_ATTEMPTS.max(wanted.attempt);
        let mut tries = attempts.map(|attempt| Identity { attempt, ..wanted.clone() });
        tries.find(|identity| identity.unique_name() == self.name)
    }

    /// Whether it is of this installation.
    pub(super) fn of_installation(&self, installation: &str) -> bool {
        match &self.identity {
            Some(identity) => identity.installation == installation,
            None => self.name.starts_with(&prefix(installation)),
        }
    }

    /// Whether it is there and does not run: its disk is all that could bill.
    pub(super) fn has_stopped(&self) -> bool {
        self.status == "EXITED"
    }

    /// Whether it runs and has no address to be called at, as hosts without a public one leave it.
    pub(super) fn has_no_address(&self) -> bool {
        self.status == "RUNNING" && self.is_called && self.endpoint.is_none()
    }

    /// As an instance, with a disk of so many GB beside it.
    pub(super) fn instance(self, disk_gb: u32) -> Instance {
        let trouble = |message: &str| {
            Some(Trouble { reason: Reason::SpotInterrupted, message: message.to_owned() })
        };
        let (state, trouble) = match self.status.as_str() {
            "PROVISIONING" | "STARTING" => (InstanceState::Pending, None),
            "RUNNING" => (InstanceState::Running, None),
            "TERMINATED" => (InstanceState::Terminated, None),
            // A stopped pod is still there: its disk may bill for ever. The API has neither reason
            // nor exit code; what the agent said last decides whether its work was done.
            "EXITED" => (
                InstanceState::Running,
                trouble("EXITED: stopped, finished or taken away; RunPod does not say which"),
            ),
            "ERROR" => (InstanceState::Running, trouble("ERROR: RunPod does not say why")),
            // Whatever else there will be: it is there.
            _ => (InstanceState::Running, None),
        };
        Instance {
            id: InstanceId(self.id),
            identity: self.identity,
            state,
            started: self.created,
            ended: None,
            offer: self.offer,
            hourly: self.cost.map(|cost| cost.saturating_add(dollars::disk(disk_gb))),
            running: None,
            endpoint: self.endpoint,
            exit: None,
            trouble,
        }
    }
}

/// With what names of an installation's pods begin.
fn prefix(installation: &str) -> String {
    let nobody = Identity {
        installation: installation.to_owned(),
        namespace: String::new(),
        claim: String::new(),
        claim_uid: String::new(),
        attempt: 0,
    };
    let name = nobody.unique_name();
    name.rsplit_once('-').map_or(name.clone(), |(prefix, _)| format!("{prefix}-"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::provider::identity_text;

    fn identity() -> Identity {
        Identity {
            installation: "0a1b2c3d-0000-4000-8000-000000000000".into(),
            namespace: "default".into(),
            claim: "trj-a-1-0".into(),
            claim_uid: "uid-1".into(),
            attempt: 2,
        }
    }

    fn pod(status: &str) -> Value {
        json!({
            "id": "abc123", "name": identity().unique_name(), "status": status, "cost": 0.34,
            "createdAt": "2026-11-20T10:00:00Z",
            "env": { "PETAFLOP_IDENTITY": identity_text(&identity()), "PETAFLOP_PORT": "7443" },
            "runtime": { "ports": [
                { "private": 22, "public": 10022, "type": "tcp", "ip": "203.0.113.7" },
                { "private": 7443, "public": 10341, "type": "tcp", "ip": "203.0.113.7" },
            ] },
        })
    }

    fn instance(pod: &Value) -> Instance {
        one(pod.to_string().as_bytes()).expect("a pod").instance(40)
    }

    #[test]
    fn a_pod_is_an_instance_by_its_status() {
        for (status, state, trouble) in [
            ("PROVISIONING", InstanceState::Pending, false),
            ("STARTING", InstanceState::Pending, false),
            ("RUNNING", InstanceState::Running, false),
            ("EXITED", InstanceState::Running, true),
            ("ERROR", InstanceState::Running, true),
            ("TERMINATED", InstanceState::Terminated, false),
            ("SOMETHING_NEW", InstanceState::Running, false),
        ] {
            let instance = instance(&pod(status));
            assert_eq!((instance.state, instance.trouble.is_some()), (state, trouble), "{status}");
            assert_eq!(instance.exit, None, "{status}: there is no exit code");
        }
        let running = instance(&pod("RUNNING"));
        assert_eq!(running.identity, Some(identity()));
        assert_eq!(running.endpoint.as_deref(), Some("203.0.113.7:10341"));
        assert_eq!(running.started, "2026-11-20T10:00:00Z".parse().ok());
        // With its 40 GB of disk, as an offer of it.
        assert_eq!(running.hourly.map(UsdPerHour::micros), Some(345_480));
        let mut stopped = pod("EXITED");
        stopped["cost"] = json!(0);
        assert_eq!(instance(&stopped).hourly, None, "only its disk");
    }

    #[test]
    fn odd_fields_hide_no_pod() {
        for odd in [json!(null), json!(7), json!([]), json!({}), json!("x")] {
            for key in ["name", "status", "cost", "createdAt", "env", "runtime"] {
                let mut pod = pod("RUNNING");
                pod[key] = odd.clone();
                assert!(instance(&pod).state.may_bill(), "{key}: {odd}");
            }
        }
        assert!(instance(&json!({ "id": "x" })).state.may_bill());
        for odd in [json!({ "ip": null }), json!({ "ip": "" }), json!({ "public": null })] {
            let mut pod = pod("RUNNING");
            for (key, value) in odd.as_object().expect("an object") {
                pod["runtime"]["ports"][1][key] = value.clone();
            }
            assert_eq!(instance(&pod).endpoint, None, "{odd}");
        }
    }

    #[test]
    fn a_list_says_whether_it_is_all() {
        let read = |body: Value| page(body.to_string().as_bytes()).expect("a list");
        let all = read(json!({ "pods": [pod("RUNNING")] }));
        assert_eq!((all.pods.len(), all.readable, all.next), (1, true, Next::Nothing));
        let paged = |more: Value, cursor: Value| {
            read(json!({ "pods": [], "pagination": { "hasNextPage": more, "nextCursor": cursor } }))
                .next
        };
        assert_eq!(paged(json!(true), json!("c1")), Next::Page("c1".into()));
        assert_eq!(paged(json!(null), json!("c1")), Next::Page("c1".into()));
        assert_eq!(paged(json!(false), json!("c1")), Next::Nothing);
        assert_eq!(paged(json!(true), json!(null)), Next::Lost);
        assert_eq!(paged(json!(true), json!("")), Next::Lost);
        assert!(!read(json!({ "pods": [{ "name": "without id" }] })).readable);
        for no_list in ["", "[]", "{}", "null", "<html>", r#"{"pods":null}"#, r#"{"error":"x"}"#] {
            assert!(page(no_list.as_bytes()).is_err(), "{no_list}");
        }
    }

    #[test]
    fn a_pod_is_found_by_what_it_carries_and_by_its_name() {
        let read = |pod: &Value| one(pod.to_string().as_bytes()).expect("a pod");
        let ours = identity();
        let later = Identity { attempt: 4, ..ours.clone() };
        let other = Identity { claim_uid: "uid-2".into(), ..ours.clone() };
        let mut pod = pod("RUNNING");
        assert_eq!(read(&pod).of_claim(&later), Some(ours.clone()));
        assert_eq!(read(&pod).of_claim(&other), None);
        assert!(read(&pod).of_installation(&ours.installation));
        // A key that may not read the environment, or somebody who changed it.
        pod["env"] = json!({});
        assert_eq!(read(&pod).of_claim(&later), Some(ours.clone()));
        assert_eq!(read(&pod).of_claim(&other), None);
        assert!(read(&pod).of_installation(&ours.installation));
        assert!(!read(&pod).of_installation("another"));
        // Somebody else's.
        pod["name"] = json!("my pod");
        assert_eq!(read(&pod).of_claim(&ours), None);
        assert!(!read(&pod).of_installation(&ours.installation));
    }
}
