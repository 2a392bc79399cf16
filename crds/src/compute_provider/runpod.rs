//! An account at RunPod.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function, its `pub` with it"
)]

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{ADDRESS_PATTERN, CUDA_PATTERN, DATA_CENTER_PATTERN, yes};

/// A RunPod account. Its machines fetch the agent themselves: the operator must be told where it
/// lies (`agentDownload` in the chart), and keep its store where they reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.vcpuCounts.all(n, n in [2, 4, 8, 16, 32, 64, 128])").field_path(".vcpuCounts")
        .message("vcpuCounts are powers of two, from 2 to 128"),
    validation = Rule::new("size(self.acceleratorCounts) + size(self.vcpuCounts) > 0").field_path(".acceleratorCounts")
        .message("acceleratorCounts and vcpuCounts are both empty: nothing could be had"),
)]
pub struct RunPodProvider {
    /// Data centres in which machines may be, by RunPod's names (`EU-RO-1`). Empty: any, and the
    /// Community cloud, whose machines are in none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63), regex(pattern = DATA_CENTER_PATTERN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub data_centers: Vec<String>,
    /// How many accelerators a machine may have. Prices of each size are asked for by themselves,
    /// once a minute and cloud. Empty: no machines with accelerators.
    #[serde(default = "accelerator_counts")]
    #[schemars(length(max = 8), inner(range(min = 1, max = 64)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub accelerator_counts: Vec<u32>,
    /// How many processors a machine without accelerators may have. Empty: no such machines.
    #[serde(default = "vcpu_counts")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub vcpu_counts: Vec<u32>,
    /// Disk of each machine, GB: gone with it, and a part of its price.
    #[serde(default = "disk_gb")]
    #[schemars(range(min = 10, max = 20_000))]
    pub disk_gb: u32,
    /// Whether machines are had that may be taken away, where they are cheaper.
    #[serde(default = "yes")]
    pub spot: bool,
    /// Id of a registry credential in the account, where images are not public.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub registry_credential_id: Option<String>,
    /// The oldest CUDA that the driver of a host with accelerators must know (`12.8`). Machines of
    /// older drivers are not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 7), regex(pattern = CUDA_PATTERN))]
    pub min_cuda_version: Option<String>,
    /// Where the API is, if not at `https://api.runpod.io`: a proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = ADDRESS_PATTERN))]
    pub api_base_url: Option<String>,
}

fn accelerator_counts() -> Vec<u32> {
    vec![1, 2, 4, 8]
}
fn vcpu_counts() -> Vec<u32> {
    vec![2, 4, 8, 16, 32]
}
// A cent an hour, with nothing to round.
fn disk_gb() -> u32 {
    73
}

impl Default for RunPodProvider {
    fn default() -> Self {
        Self {
            data_centers: Vec::new(),
            accelerator_counts: accelerator_counts(),
            vcpu_counts: vcpu_counts(),
            disk_gb: disk_gb(),
            spot: yes(),
            registry_credential_id: None,
            min_cuda_version: None,
            api_base_url: None,
        }
    }
}
