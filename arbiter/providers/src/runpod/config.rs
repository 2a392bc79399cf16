//! How an account of RunPod's is used.

use std::fmt;
use std::time::Duration;

use super::entry::AgentDownload;

/// RunPod's own address; `RUNPOD_API_BASE_URL` names another for its command-line tools, and so here.
pub const BASE: &str = "https://api.runpod.io";
/// Variable with another address.
pub const BASE_VARIABLE: &str = "RUNPOD_API_BASE_URL";
/// Variable with the API key.
pub const KEY_VARIABLE: &str = "RUNPOD_API_KEY";

/// An API key. It is in no output.
#[derive(Clone, Default)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key. White space around it, as files have it, is none of it.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(text.as_ref().trim().to_owned())
    }

    /// The secret. For requests to RunPod, never for a log.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// How an account of RunPod's is used.
#[derive(Clone, Debug)]
pub struct RunPodConfig {
    /// Name of the ComputeProvider, in offers and claims.
    pub name: String,
    /// Where the API is: [`BASE`], or what [`BASE_VARIABLE`] says.
    pub base: String,
    /// The account's key: docs/providers/runpod.md says which rights it needs.
    pub key: ApiKey,
    /// Where pods fetch the agent; `None`: prices can be asked for, and machines ended.
    pub agent: Option<AgentDownload>,
    /// How many accelerators a pod may have: each size is a request for each cloud and pass.
    pub counts: Vec<u32>,
    /// How many processors a pod without accelerators may have, powers of two: each is a request a pass.
    pub vcpu_counts: Vec<u32>,
    /// Data centres in which pods may be; empty: any, and Community machines.
    pub data_centers: Vec<String>,
    /// Container disk of each pod, in GB. It is part of the price.
    pub disk_gb: u32,
    /// Whether spot prices are asked for; where more than one data centre is named, they are not.
    pub spot: bool,
    /// After this long RunPod ends a spot pod, whatever becomes of us.
    pub spot_life: Duration,
    /// The account's credential for the registry of the images, where they are not public.
    pub registry: Option<String>,
    /// The oldest CUDA that the driver of an accelerator's host must know, `12.8`.
    pub min_cuda: Option<String>,
    /// What the owner adds to every price that is quoted here, in per cent, before it is decided on.
    pub price_adjustment_percent: i32,
}

impl RunPodConfig {
    /// The usual settings.
    pub fn new(name: &str, key: ApiKey) -> Self {
        Self {
            name: name.to_owned(),
            base: BASE.to_owned(),
            key,
            agent: None,
            counts: vec![1, 2, 4, 8],
            vcpu_counts: vec![2, 4, 8, 16, 32],
            data_centers: Vec::new(),
            // A cent an hour, with nothing to round: the ledger and the bill are equal to the
            // micro-dollar.
            disk_gb: 73,
            spot: true,
            spot_life: Duration::from_secs(24 * 3600),
            registry: None,
            min_cuda: None,
            price_adjustment_percent: 0,
        }
    }

    /// Whether spot pods are bought: GraphQL takes one data centre a call, and its price is the same in
    /// all of them. Of several none could be named.
    pub(super) fn sells_spot(&self) -> bool {
        self.spot && self.data_centers.len() <= 1
    }

    /// What makes no sense, in words.
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(agent) = &self.agent {
            agent.check()?;
        }
        let powers = self.vcpu_counts.iter().all(|count| count.is_power_of_two() && *count >= 2);
        if !powers || self.counts.contains(&0) || self.disk_gb == 0 {
            return Err(
                "a pod has 1 or more accelerators, or 2, 4, 8… processors, and 1 or more GB"
                    .to_owned(),
            );
        }
        let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let version = |text: &String| {
            text.split_once('.').is_some_and(|(major, minor)| number(major) && number(minor))
        };
        if !self.min_cuda.as_ref().is_none_or(version) {
            return Err("minCudaVersion is a version like 12.8".to_owned());
        }
        Ok(())
    }
}
