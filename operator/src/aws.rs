//! AWS as objects and settings describe it. Its client is minutes of compile time, so that a program
//! has it only with the feature `aws`: everything that ships does.

use petaflop_crds::compute_provider::AwsProvider;
use petaflop_providers::machine::AgentDownload;

pub(crate) use client::{capabilities, provider};

/// What a Secret with keys holds, and what it may hold.
pub(crate) const KEYS: [&str; 2] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
pub(crate) const OPTIONAL_KEYS: [&str; 1] = ["AWS_SESSION_TOKEN"];

/// How an account is used.
#[cfg_attr(not(feature = "aws"), expect(dead_code, reason = "only AWS's client reads it"))]
#[derive(Clone, Debug)]
pub(crate) struct Account {
    /// Name of its provider, in offers and claims.
    pub(crate) name: String,
    /// Its settings.
    pub(crate) settings: AwsProvider,
    /// Regions that they do not name any more, and in which machines were had.
    pub(crate) former: Vec<String>,
    /// Where hosts with x86 processors fetch the agent, and with Arm.
    pub(crate) agent: Option<AgentDownload>,
    pub(crate) agent_arm: Option<AgentDownload>,
    /// What the owner adds to every price, in per cent.
    pub(crate) price_adjustment_percent: i32,
}

/// Whose rights it is used with.
#[cfg_attr(not(feature = "aws"), expect(dead_code, reason = "only AWS's client reads it"))]
pub(crate) enum Rights<'a> {
    /// An access key, its secret, and the token of its session or nothing.
    Keys(&'a str, &'a str, &'a str),
    /// The role of this Pod or machine.
    Role,
    /// Wherever AWS's own tools look, or this profile of their files.
    Usual(Option<&'a str>),
}

#[cfg(feature = "aws")]
mod client {
    use std::sync::Arc;

    use petaflop_agent_api::clock::Clock;
    use petaflop_crds::compute_provider::{AwsAddress, AwsImages, AwsProvider, AwsRegion};
    use petaflop_providers::aws::{self, Access, Address, Aws, AwsConfig, AwsKeys, HostImages};
    use petaflop_providers::provider::Capabilities;
    use petaflop_providers::{Provider, ProviderError};

    use super::{Account, Rights};

    pub(crate) fn capabilities(_name: &str) -> Result<Capabilities, ProviderError> {
        Ok(aws::CAPABILITIES)
    }

    pub(crate) fn provider(
        account: &Account,
        rights: &Rights<'_>,
        clock: &Clock,
    ) -> Result<Arc<dyn Provider>, ProviderError> {
        let access = match *rights {
            Rights::Keys(id, secret, session) => {
                Access::Keys(AwsKeys::new(id, secret, Some(session)))
            }
            Rights::Role => Access::Role,
            Rights::Usual(profile) => Access::Usual { profile: profile.map(str::to_owned) },
        };
        let clock = clock.clone();
        Ok(Arc::new(Aws::new(config(account, access))?.by_clock(move || clock.now())))
    }

    fn config(account: &Account, access: Access) -> AwsConfig {
        let Account { name, settings, former, agent, agent_arm, price_adjustment_percent } =
            account.clone();
        let AwsProvider {
            regions,
            instance_types,
            edge_zones,
            instance_profile,
            images: AwsImages { gpu_x86, gpu_arm, cpu_x86, cpu_arm, root_device },
            disk_gb,
            spot,
            on_demand,
            spot_headroom_percent,
            egress_price_per_gb: _, // of decisions: `ComputeProvider::state`
            address,
            api_base_url,
        } = settings;
        let region = |AwsRegion { name, subnets, security_groups }| aws::AwsRegion {
            name,
            subnets,
            security_groups,
        };
        let usual = AwsConfig::new(&name, access, &[]);
        let HostImages { gpu_x86: gx, gpu_arm: ga, cpu_x86: cx, cpu_arm: ca } = usual.images;
        AwsConfig {
            endpoint: api_base_url,
            regions: regions.into_iter().map(region).collect(),
            former,
            types: instance_types,
            edge_zones,
            instance_profile,
            images: HostImages {
                gpu_x86: gpu_x86.unwrap_or(gx),
                gpu_arm: gpu_arm.unwrap_or(ga),
                cpu_x86: cpu_x86.unwrap_or(cx),
                cpu_arm: cpu_arm.unwrap_or(ca),
            },
            root_device: root_device.unwrap_or(usual.root_device),
            disk_gb,
            spot,
            on_demand,
            spot_headroom_percent,
            agent,
            agent_arm,
            address: match address {
                AwsAddress::Public => Address::Public,
                AwsAddress::Private => Address::Private,
            },
            price_adjustment_percent,
            name: usual.name,
            access: usual.access,
            disk_micros_per_gb_month: usual.disk_micros_per_gb_month,
            address_micros_per_hour: usual.address_micros_per_hour,
            start_allowance: usual.start_allowance,
            quote_every: usual.quote_every,
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn each_setting_of_an_object_reaches_the_client() {
            let settings = serde_json::from_value(serde_json::json!({
                "regions": [{"name": "eu-west-1", "subnets": ["subnet-1"], "securityGroups": ["sg-1"]}],
                "instanceTypes": ["g6.xlarge"], "edgeZones": ["us-west-2-lax-1a"], "instanceProfile": "profile",
                "images": {"gpuX86": "a", "gpuArm": "b", "cpuX86": "c", "cpuArm": "d", "rootDevice": "/dev/xvda"},
                "diskGb": 40, "spot": false, "onDemand": false, "spotHeadroomPercent": 7, "address": "Private",
                "apiBaseUrl": "https://ec2.example",
            }));
            let account = Account {
                name: "aws".to_owned(),
                settings: settings.expect("settings"),
                former: vec!["us-east-2".to_owned()],
                agent: None,
                agent_arm: None,
                price_adjustment_percent: 5,
            };
            let config = config(&account, Access::Role);
            let aws::AwsRegion { name, subnets, security_groups } = &config.regions[0];
            assert_eq!((name.as_str(), subnets.len(), security_groups.len()), ("eu-west-1", 1, 1));
            assert_eq!((subnets[0].as_str(), security_groups[0].as_str()), ("subnet-1", "sg-1"));
            assert_eq!(config.former, ["us-east-2"]);
            assert_eq!(
                (config.types, config.edge_zones),
                (vec!["g6.xlarge".to_owned()], vec!["us-west-2-lax-1a".to_owned()])
            );
            assert_eq!(config.instance_profile.as_deref(), Some("profile"));
            let HostImages { gpu_x86, gpu_arm, cpu_x86, cpu_arm } = &config.images;
            assert_eq!([gpu_x86, gpu_arm, cpu_x86, cpu_arm], ["a", "b", "c", "d"]);
            assert_eq!(config.root_device, "/dev/xvda");
            assert_eq!((config.disk_gb, config.spot, config.on_demand), (40, false, false));
            assert_eq!((config.spot_headroom_percent, config.price_adjustment_percent), (7, 5));
            assert!(matches!(config.address, Address::Private), "{:?}", config.address);
            assert_eq!(config.endpoint.as_deref(), Some("https://ec2.example"));
        }

        #[test]
        fn what_an_object_leaves_out_is_what_the_client_would_take() {
            let account = Account {
                name: "aws".to_owned(),
                settings: AwsProvider {
                    regions: vec![AwsRegion { name: "us-east-1".into(), ..Default::default() }],
                    ..Default::default()
                },
                former: Vec::new(),
                agent: None,
                agent_arm: None,
                price_adjustment_percent: 0,
            };
            let config = config(&account, Access::Role);
            let usual = AwsConfig::new("aws", Access::Role, &["us-east-1"]);
            assert_eq!(format!("{config:?}"), format!("{usual:?}"));
        }
    }
}

#[cfg(not(feature = "aws"))]
mod client {
    use std::sync::Arc;

    use petaflop_agent_api::clock::Clock;
    use petaflop_providers::provider::Capabilities;
    use petaflop_providers::{Provider, ProviderError};

    use super::{Account, Rights};

    fn none(name: &str) -> ProviderError {
        ProviderError::NotOffered {
            provider: name.to_owned(),
            detail: "this program was built without AWS; take the image that ships, or build it \
                     with --features petaflop-operator/aws"
                .to_owned(),
        }
    }

    pub(crate) fn capabilities(name: &str) -> Result<Capabilities, ProviderError> {
        Err(none(name))
    }

    pub(crate) fn provider(
        account: &Account,
        _rights: &Rights<'_>,
        _clock: &Clock,
    ) -> Result<Arc<dyn Provider>, ProviderError> {
        Err(none(&account.name))
    }
}
