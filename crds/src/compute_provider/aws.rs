//! `aws:` of a ComputeProvider.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function, its `pub` with it"
)]

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ADDRESS_PATTERN, yes};
use crate::scalar::Money;

/// A region.
pub(crate) const REGION_PATTERN: &str = "^[a-z]+(-[a-z]+)+-[0-9]+$";
/// A zone by its id.
pub(crate) const ZONE_PATTERN: &str = "^[a-z]+[0-9]+(-[a-z0-9]+)+$";
/// A subnet's id.
pub(crate) const SUBNET_PATTERN: &str = "^subnet-[0-9a-f]+$";
/// A security group's id.
pub(crate) const GROUP_PATTERN: &str = "^sg-[0-9a-f]+$";
/// A family of instance types, or one type.
pub(crate) const INSTANCE_PATTERN: &str = "^[a-z][a-z0-9-]*([.][a-z0-9-]+)?$";
/// An instance profile's name.
pub(crate) const PROFILE_PATTERN: &str = "^[A-Za-z0-9+=,.@_-]+$";
/// A parameter of SSM.
pub(crate) const PARAMETER_PATTERN: &str = "^(/[A-Za-z0-9_.-]+)+$";
/// A device of a machine.
pub(crate) const DEVICE_PATTERN: &str = "^/dev/[a-z0-9]+$";

/// An AWS account. Its machines fetch the agent themselves: the operator must be told where it lies
/// (`agentDownload` in the chart), and keep its store where they reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.spot || self.onDemand").field_path(".onDemand")
        .message("spot and onDemand are both false: nothing could be had"),
)]
pub struct AwsProvider {
    /// Where machines may be. One in which machines were had is looked through after it was taken out
    /// of here, too: it stands in `status.regions`.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub regions: Vec<AwsRegion>,
    /// Families (`g6e`) or types (`c7a.xlarge`) that may be had.
    #[serde(default = "instance_types")]
    #[schemars(length(min = 1, max = 200), inner(length(min = 1, max = 63), regex(pattern = INSTANCE_PATTERN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub instance_types: Vec<String>,
    /// Local and Wavelength Zones, by id (`use1-atl2-az1`), in which machines may be too; they need a
    /// subnet there. All others of that kind are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63), regex(pattern = ZONE_PATTERN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub edge_zones: Vec<String>,
    /// Name of the instance profile whose role the work has. Left out: it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = PROFILE_PATTERN))]
    pub instance_profile: Option<String>,
    /// Images of the hosts.
    #[serde(default)]
    pub images: AwsImages,
    /// Disk of each machine, GB (gp3): gone with it, and a part of its price.
    #[serde(default = "disk_gb")]
    #[schemars(range(min = 8, max = 16_384))]
    pub disk_gb: u32,
    /// Whether machines are had that may be taken away.
    #[serde(default = "yes")]
    pub spot: bool,
    /// Whether machines are had that are not.
    #[serde(default = "yes")]
    pub on_demand: bool,
    /// How far the market may rise above the price that was decided on before a spot machine is
    /// given up, per cent.
    #[serde(default = "spot_headroom_percent")]
    #[schemars(range(max = 1000))]
    pub spot_headroom_percent: u32,
    /// Dollars for 10⁹ bytes that a machine sends to the store. It weighs in decisions, and is not
    /// in the ledger: AWS bills traffic apart from machines. `"0"` where the store is a bucket in
    /// the machines' own region, `"0.02"` where it is one in another.
    #[serde(default = "egress_price_per_gb")]
    pub egress_price_per_gb: Money,
    /// At which of its addresses the operator dials a machine's agent.
    #[serde(default)]
    pub address: AwsAddress,
    /// Where every API is, if not at AWS's own addresses: a proxy, or a private endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = ADDRESS_PATTERN))]
    pub api_base_url: Option<String>,
}

/// A region in which machines may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AwsRegion {
    /// Its name: `us-east-1`.
    #[schemars(length(min = 1, max = 63), regex(pattern = REGION_PATTERN))]
    pub name: String,
    /// Subnets in which machines may be. Empty: those of the default VPC. Nothing is had in a zone
    /// without one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63), regex(pattern = SUBNET_PATTERN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub subnets: Vec<String>,
    /// Security groups of the machines, which let the operator in at the agent's port (7443). Empty:
    /// the VPC's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 63), regex(pattern = GROUP_PATTERN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub security_groups: Vec<String>,
}

/// Parameters of SSM that name the hosts' images: with docker, curl and a POSIX shell. Left out:
/// AWS's own, the ones for ECS without accelerators and the Deep Learning ones with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AwsImages {
    /// x86 with accelerators: NVIDIA's driver and container toolkit too.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1011), regex(pattern = PARAMETER_PATTERN))]
    pub gpu_x86: Option<String>,
    /// The same for Arm.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1011), regex(pattern = PARAMETER_PATTERN))]
    pub gpu_arm: Option<String>,
    /// x86 without accelerators.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1011), regex(pattern = PARAMETER_PATTERN))]
    pub cpu_x86: Option<String>,
    /// The same for Arm.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1011), regex(pattern = PARAMETER_PATTERN))]
    pub cpu_arm: Option<String>,
    /// Their root device. Left out: `/dev/xvda`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = DEVICE_PATTERN))]
    pub root_device: Option<String>,
}

/// At which of its addresses a machine's agent is dialled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AwsAddress {
    /// The public one, which its subnet gives it, and which is a part of its price.
    #[default]
    Public,
    /// The private one: for operators in the same network.
    Private,
}

/// Families of accelerators for which there are images, and of plain processors.
fn instance_types() -> Vec<String> {
    let families = [
        "g4dn", "g5", "g5g", "g6", "gr6", "g6e", "g7e", "p4d", "p4de", "p5", "p5en", "p6-b200",
        "c7a", "c7i", "m7a", "m7i",
    ];
    families.map(str::to_owned).to_vec()
}
// What AWS's own images need, and some room.
fn disk_gb() -> u32 {
    100
}
fn spot_headroom_percent() -> u32 {
    20
}
// To anywhere outside of AWS, the first 10 TB of a month.
fn egress_price_per_gb() -> Money {
    Money("0.09".to_owned())
}

impl Default for AwsProvider {
    fn default() -> Self {
        Self {
            regions: Vec::new(),
            instance_types: instance_types(),
            edge_zones: Vec::new(),
            instance_profile: None,
            images: AwsImages::default(),
            disk_gb: disk_gb(),
            spot: yes(),
            on_demand: yes(),
            spot_headroom_percent: spot_headroom_percent(),
            egress_price_per_gb: egress_price_per_gb(),
            address: AwsAddress::default(),
            api_base_url: None,
        }
    }
}
