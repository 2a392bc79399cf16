//! Bodies of REST v2 that are read: create and change a pod, credentials, actions.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::answer::Answer;

/// The most bytes of a body.
pub(crate) const LONGEST_BODY: usize = 102_400;

/// `POST /v2/pods`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Create {
    pub(crate) name: String,
    pub(crate) image: Option<String>,
    pub(crate) args: Option<String>,
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) disk: Option<u32>,
    #[serde(default)]
    pub(crate) ports: Vec<String>,
    pub(crate) registry: Option<String>,
    #[serde(default)]
    pub(crate) cloud: CloudType,
    pub(crate) gpu: Option<Gpu>,
    pub(crate) cpu: Option<Cpu>,
    #[serde(default)]
    pub(crate) data_center_ids: Vec<String>,
    pub(crate) mounts: Option<Mounts>,
    pub(crate) template_id: Option<String>,
    #[serde(default)]
    pub(crate) global_networking: bool,
    #[serde(default)]
    pub(crate) start_ssh: bool,
    #[serde(default)]
    pub(crate) start_jupyter: bool,
}

/// Who owns the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum CloudType {
    #[default]
    Secure,
    Community,
}

impl CloudType {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Secure => "SECURE",
            Self::Community => "COMMUNITY",
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Gpu {
    pub(crate) id: String,
    #[serde(default = "one")]
    pub(crate) count: u32,
    #[serde(default)]
    pub(crate) allowed_cuda_versions: Vec<String>,
    pub(crate) min_cuda_version: Option<String>,
}

fn one() -> u32 {
    1
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cpu {
    pub(crate) id: String,
    pub(crate) vcpu_count: u32,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Mounts {
    pub(crate) persistent: Option<Persistent>,
    pub(crate) network: Option<Vec<Value>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Persistent {
    pub(crate) size: u32,
    pub(crate) path: String,
}

/// `PATCH /v2/pods/{id}`; `None` leaves what is.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Patch {
    pub(crate) name: Option<String>,
    pub(crate) image: Option<String>,
    pub(crate) args: Option<String>,
    pub(crate) disk: Option<u32>,
    pub(crate) ports: Option<Vec<String>>,
    pub(crate) env: Option<BTreeMap<String, String>>,
    pub(crate) registry: Option<String>,
    pub(crate) mounts: Option<Mounts>,
    pub(crate) locked: Option<bool>,
    pub(crate) global_networking: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Credentials {
    pub(crate) name: String,
    pub(crate) username: String,
    pub(crate) password: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    Start,
    Stop,
    Restart,
    Terminate,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Act {
    pub(crate) action: Action,
}

/// Which fields there are, the inner objects' after a dot.
const CREATE: &[&str] = &[
    "name",
    "image",
    "args",
    "env",
    "disk",
    "ports",
    "registry",
    "cloud",
    "gpu",
    "gpu.id",
    "gpu.count",
    "gpu.allowedCudaVersions",
    "gpu.minCudaVersion",
    "cpu",
    "cpu.id",
    "cpu.vcpuCount",
    "dataCenterIds",
    "mounts",
    "mounts.persistent",
    "mounts.network",
    "templateId",
    "globalNetworking",
    "startSsh",
    "startJupyter",
];
const PATCH: &[&str] = &[
    "name",
    "image",
    "args",
    "disk",
    "ports",
    "env",
    "registry",
    "mounts",
    "mounts.persistent",
    "mounts.network",
    "locked",
    "globalNetworking",
];

impl Create {
    pub(crate) fn read(body: &[u8]) -> Result<Self, Answer> {
        let create: Self = read(body, CREATE)?;
        let mut errors = Vec::new();
        rule(&mut errors, !create.name.is_empty(), "name: must not be empty");
        rule(&mut errors, create.disk != Some(0), "disk: must be at least 1");
        rule(&mut errors, create.gpu.as_ref().is_none_or(|g| g.count > 0), "gpu.count: at least 1");
        let vcpu = create.cpu.as_ref().map(|cpu| cpu.vcpu_count);
        let power = vcpu.is_none_or(|count| count >= 2 && count.is_power_of_two());
        rule(&mut errors, power, "cpu.vcpuCount: must be a power of two of at least 2");
        check_ports(&mut errors, &create.ports);
        if errors.is_empty() { Ok(create) } else { Err(Answer::contract(&errors)) }
    }
}

impl Patch {
    pub(crate) fn read(body: &[u8]) -> Result<Self, Answer> {
        let patch: Self = read(body, PATCH)?;
        let mut errors = Vec::new();
        rule(&mut errors, patch.disk != Some(0), "disk: must be at least 1");
        check_ports(&mut errors, patch.ports.as_deref().unwrap_or_default());
        if errors.is_empty() { Ok(patch) } else { Err(Answer::contract(&errors)) }
    }
}

impl Credentials {
    pub(crate) fn read(body: &[u8]) -> Result<Self, Answer> {
        read(body, &["name", "username", "password"])
    }
}

impl Act {
    pub(crate) fn read(body: &[u8]) -> Result<Self, Answer> {
        read(body, &["action"])
    }
}

fn rule(errors: &mut Vec<String>, holds: bool, text: &str) {
    if !holds {
        errors.push(text.to_owned());
    }
}

/// Ports are reached by HTTP or TCP; there is no UDP.
fn check_ports(errors: &mut Vec<String>, ports: &[String]) {
    for port in ports {
        let parts = port.split_once('/');
        let known = parts.is_some_and(|(number, kind)| {
            number.parse::<u16>().is_ok_and(|number| number > 0) && ["http", "tcp"].contains(&kind)
        });
        rule(errors, known, &format!("ports: {port}: must be a number and /http or /tcp"));
    }
}

/// Reads a body and names each field that is not in the contract.
fn read<T: DeserializeOwned>(body: &[u8], fields: &[&str]) -> Result<T, Answer> {
    let unreadable = |error: &serde_json::Error| Answer::contract(&[error.to_string()]);
    let value: Value = serde_json::from_slice(body).map_err(|error| unreadable(&error))?;
    let mut errors = Vec::new();
    for (name, inner) in value.as_object().into_iter().flatten() {
        unknown(&mut errors, fields, name);
        // The keys of `env` are the caller's own.
        for inner in inner.as_object().into_iter().flatten().filter(|_| name != "env") {
            unknown(&mut errors, fields, &format!("{name}.{}", inner.0));
        }
    }
    if !errors.is_empty() {
        return Err(Answer::contract(&errors));
    }
    serde_json::from_value(value).map_err(|error| unreadable(&error))
}

fn unknown(errors: &mut Vec<String>, fields: &[&str], name: &str) {
    let text = format!("{name}: must NOT have additional properties (additionalProperties)");
    rule(errors, fields.contains(&name), &text);
}
