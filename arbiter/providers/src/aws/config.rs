//! How an account of AWS's is used.

use std::fmt;
use std::time::Duration;

use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::Arch;

use crate::machine::AgentDownload;

/// Keys of an account. They are in no output.
#[derive(Clone)]
pub struct AwsKeys {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) session: Option<String>,
}

impl AwsKeys {
    /// Keys, with the token of their session where they have one. White space around them, as
    /// files have it, is none of them.
    pub fn new(id: impl AsRef<str>, secret: impl AsRef<str>, session: Option<&str>) -> Self {
        let plain = |text: &str| text.trim().to_owned();
        Self {
            id: plain(id.as_ref()),
            secret: plain(secret.as_ref()),
            session: session.map(plain).filter(|token| !token.is_empty()),
        }
    }
}

impl fmt::Debug for AwsKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AwsKeys(…)")
    }
}

/// Whose rights an account is used with.
#[derive(Clone, Debug)]
pub enum Access {
    /// These keys.
    Keys(AwsKeys),
    /// The role of this Pod or machine: its token file (IRSA), its agent (pod identity, ECS), its
    /// instance profile. Not keys of the environment, which an operator has for its store.
    Role,
    /// Wherever AWS's own tools look: environment, files, then as [`Access::Role`]. A profile that
    /// is named comes from the files, whatever keys the environment has.
    Usual {
        /// Its name.
        profile: Option<String>,
    },
}

/// A region in which instances may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsRegion {
    /// Its name: `us-east-1`.
    pub name: String,
    /// Subnets in which instances may be; empty: those of the default VPC. A zone without one has
    /// no offers.
    pub subnets: Vec<String>,
    /// Security groups of the instances; empty: the VPC's own.
    pub security_groups: Vec<String>,
}

/// SSM parameters that name the image of a host. It has docker, curl and a POSIX shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostImages {
    /// x86 with NVIDIA's driver and container toolkit.
    pub gpu_x86: String,
    /// The same for Arm.
    pub gpu_arm: String,
    /// x86 without accelerators.
    pub cpu_x86: String,
    /// The same for Arm.
    pub cpu_arm: String,
}

impl Default for HostImages {
    fn default() -> Self {
        let ecs = "/aws/service/ecs/optimized-ami/amazon-linux-2023";
        let deep = |arch: &str| {
            format!(
                "/aws/service/deeplearning/ami/{arch}/\
                 base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id"
            )
        };
        Self {
            gpu_x86: deep("x86_64"),
            gpu_arm: deep("arm64"),
            cpu_x86: format!("{ecs}/recommended/image_id"),
            cpu_arm: format!("{ecs}/arm64/recommended/image_id"),
        }
    }
}

impl HostImages {
    pub(super) fn parameter(&self, arch: Arch, accelerated: bool) -> &str {
        match (arch, accelerated) {
            (Arch::X86_64, true) => &self.gpu_x86,
            (Arch::Aarch64, true) => &self.gpu_arm,
            (Arch::X86_64, false) => &self.cpu_x86,
            (Arch::Aarch64, false) => &self.cpu_arm,
        }
    }
}

/// At which of its addresses an instance's agent is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// The public one, which its subnet gives it.
    Public,
    /// The private one: for operators in the same network.
    Private,
}

/// How an account of AWS's is used.
#[derive(Clone, Debug)]
pub struct AwsConfig {
    /// Name of the ComputeProvider, in offers and claims.
    pub name: String,
    /// Whose rights it is used with: docs/providers/aws.md says which are needed.
    pub access: Access,
    /// Another address for every API; `None`: AWS's own, or what `AWS_ENDPOINT_URL_EC2`, `_SSM` and
    /// `_PRICING` say. Not `AWS_ENDPOINT_URL`, which says where the store is.
    pub endpoint: Option<String>,
    /// Where instances may be.
    pub regions: Vec<AwsRegion>,
    /// Regions in which nothing is bought any more, and in which something of ours may be: they are
    /// looked through, and what is there can be ended. No other region is ever looked at.
    pub former: Vec<String>,
    /// Families (`g6e`) or types (`c7a.xlarge`) that may be bought.
    pub types: Vec<String>,
    /// Local and Wavelength Zones, by id, in which instances may be; all others of that kind are
    /// left out.
    pub edge_zones: Vec<String>,
    /// Name of the instance profile, whose role the work has.
    pub instance_profile: Option<String>,
    /// Images of the hosts.
    pub images: HostImages,
    /// The images' root device.
    pub root_device: String,
    /// Size of the root volume, in GB (gp3). It is part of the price.
    pub disk_gb: u32,
    /// Micro-dollars for a GB of it and month of 730 hours.
    pub disk_micros_per_gb_month: u32,
    /// Micro-dollars an hour for a public address.
    pub address_micros_per_hour: u32,
    /// Whether spot instances are offered.
    pub spot: bool,
    /// Whether on-demand instances are offered.
    pub on_demand: bool,
    /// How far the spot price may rise above the quoted one before AWS takes the instance away, in
    /// per cent.
    pub spot_headroom_percent: u32,
    /// Where hosts with x86 processors fetch the agent; without it nothing of those can be bought.
    pub agent: Option<AgentDownload>,
    /// The same for Arm; without it there are no offers of those.
    pub agent_arm: Option<AgentDownload>,
    /// At which address the agent is dialled.
    pub address: Address,
    /// From the boot of an instance to its first lease; then the host timer ends it.
    pub start_allowance: Duration,
    /// Between two looks at prices.
    pub quote_every: Duration,
    /// What the owner adds to every price that is quoted here, in per cent, before it is decided on.
    pub price_adjustment_percent: i32,
}

/// Families of accelerators for which there are images, and of plain processors, newest last.
const TYPES: [&str; 16] = [
    "g4dn", "g5", "g5g", "g6", "gr6", "g6e", "g7e", "p4d", "p4de", "p5", "p5en", "p6-b200", "c7a",
    "c7i", "m7a", "m7i",
];

impl AwsConfig {
    /// The usual settings.
    pub fn new(name: &str, access: Access, regions: &[&str]) -> Self {
        let region = |name: &&str| AwsRegion {
            name: (*name).to_owned(),
            subnets: Vec::new(),
            security_groups: Vec::new(),
        };
        Self {
            name: name.to_owned(),
            access,
            endpoint: None,
            regions: regions.iter().map(region).collect(),
            former: Vec::new(),
            types: TYPES.iter().map(|family| (*family).to_owned()).collect(),
            edge_zones: Vec::new(),
            instance_profile: None,
            images: HostImages::default(),
            root_device: "/dev/xvda".to_owned(),
            disk_gb: 100,
            disk_micros_per_gb_month: 80_000,
            address_micros_per_hour: 5_000,
            spot: true,
            on_demand: true,
            spot_headroom_percent: 20,
            agent: None,
            agent_arm: None,
            address: Address::Public,
            start_allowance: Duration::from_secs(30 * 60),
            quote_every: Duration::from_secs(5 * 60),
            price_adjustment_percent: 0,
        }
    }

    /// What makes no sense, in words.
    pub(super) fn check(&self) -> Result<(), String> {
        self.agent.iter().chain(&self.agent_arm).try_for_each(AgentDownload::check)?;
        let plain = |text: &str| {
            !text.is_empty()
                && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        };
        if self.regions.is_empty() {
            return Err("name at least one region".to_owned());
        }
        if let Some(name) = self.everywhere().find(|name| !plain(name)) {
            return Err(format!("{name:?} is no region"));
        }
        if let Some(name) = self.types.iter().find(|name| !plain(&name.replace('.', "-"))) {
            return Err(format!("{name:?} is neither a family nor a type of instances"));
        }
        if self.types.is_empty() || self.types.len() > MOST_TYPES {
            return Err(format!("name 1 to {MOST_TYPES} families or types"));
        }
        if self.disk_gb == 0 || self.start_allowance < Duration::from_secs(60) {
            return Err("an instance has 1 GB or more, and a minute or more to start".to_owned());
        }
        if let Access::Keys(keys) = &self.access
            && (keys.id.is_empty() || keys.secret.is_empty())
        {
            return Err("an access key or its secret is empty".to_owned());
        }
        Ok(())
    }

    /// Names of all regions that are looked through.
    pub(super) fn everywhere(&self) -> impl Iterator<Item = &str> {
        let now = self.regions.iter().map(|region| region.name.as_str());
        now.chain(self.former.iter().map(String::as_str).filter(|name| self.is_former(name)))
    }

    /// Whether nothing is bought there.
    pub(super) fn is_former(&self, name: &str) -> bool {
        self.region(name).is_none()
    }

    pub(super) fn region(&self, name: &str) -> Option<&AwsRegion> {
        self.regions.iter().find(|region| region.name == name)
    }

    /// What is paid beside the instance itself: micro-dollars an hour, rounded up.
    pub(super) fn extras(&self) -> i64 {
        (self.disk_monthly().micros() + 729) / 730 + self.address_hourly().micros()
    }

    /// A month of its disk.
    pub(super) fn disk_monthly(&self) -> Usd {
        Usd::from_micros(i64::from(self.disk_gb) * i64::from(self.disk_micros_per_gb_month))
    }

    /// An hour of its public address, where it has one.
    pub(super) fn address_hourly(&self) -> UsdPerHour {
        let micros = match self.address {
            Address::Public => i64::from(self.address_micros_per_hour),
            Address::Private => 0,
        };
        UsdPerHour::from_micros(micros).unwrap_or_default()
    }

    /// As filters of AWS's take them: `g6.*`, `c7a.xlarge`.
    pub(super) fn patterns(&self) -> Vec<String> {
        let pattern = |name: &String| match name.contains('.') {
            true => name.clone(),
            false => format!("{name}.*"),
        };
        self.types.iter().map(pattern).collect()
    }
}

/// Most values of one filter of AWS's.
const MOST_TYPES: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AwsConfig {
        let keys = AwsKeys::new(" id ", "canary", None);
        AwsConfig::new("aws", Access::Keys(keys), &["us-east-1"])
    }

    #[test]
    fn keys_are_not_printed() {
        let keys = AwsKeys::new("AKIAcanary", "canary-secret\n", Some("canary-session"));
        let printed = format!("{:?}", AwsConfig { access: Access::Keys(keys), ..config() });
        assert!(!printed.contains("canary"), "{printed}");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(config().check(), Ok(()));
        let types = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        for odd in [
            AwsConfig { regions: Vec::new(), ..config() },
            AwsConfig { types: Vec::new(), ..config() },
            AwsConfig { types: types(&["g6;rm"]), ..config() },
            AwsConfig { types: types(&["G6"]), ..config() },
            AwsConfig { disk_gb: 0, ..config() },
            AwsConfig { start_allowance: Duration::ZERO, ..config() },
            AwsConfig { access: Access::Keys(AwsKeys::new(" ", "x", None)), ..config() },
        ] {
            assert!(odd.check().is_err(), "{odd:?}");
        }
        let mut elsewhere = config();
        elsewhere.regions[0].name = "evil.example/".into();
        assert!(elsewhere.check().is_err());
        let elsewhere = AwsConfig { former: vec!["evil.example/".into()], ..config() };
        assert!(elsewhere.check().is_err());
    }

    #[test]
    fn the_disk_and_the_address_are_paid_beside_the_instance() {
        assert_eq!(config().extras(), 10_959 + 5_000);
        assert_eq!(AwsConfig { address: Address::Private, ..config() }.extras(), 10_959);
    }
}
