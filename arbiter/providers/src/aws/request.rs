//! The purchase of an instance: complete before it is sent, the enrolment token aside. Pure.
//!
//! One type, one subnet, one instance a call. A repeat sends the same bytes with the same
//! `ClientToken`, which AWS answers with the same instance.

use std::collections::BTreeMap;

use aws_sdk_ec2::operation::run_instances::RunInstancesInput;
use aws_sdk_ec2::operation::run_instances::builders::RunInstancesInputBuilder;
use aws_sdk_ec2::types::{
    BlockDeviceMapping, EbsBlockDevice, HttpTokensState, IamInstanceProfileSpecification,
    InstanceInterruptionBehavior, InstanceMarketOptionsRequest, InstanceMetadataEndpointState,
    InstanceMetadataOptionsRequest, InstanceType, MarketType, ResourceType, ShutdownBehavior,
    SpotInstanceType, SpotMarketOptions, Tag, TagSpecification, VolumeType,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use petaflop_arbiter::claim::{FrozenRequest, Identity};
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::{Arch, Capacity, Offer};
use serde::{Deserialize, Serialize};

use super::config::{AwsConfig, AwsRegion};
use super::tags;
use super::user_data::{self, Host};
use crate::machine::{AgentDownload, EnrolmentToken, Machine, env};
use crate::price;
use crate::provider::identity_text;

/// Least that AWS takes as the highest price of a spot instance.
const LEAST_BID_MICROS: i64 = 1_001;

/// The frozen request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Frozen {
    pub(super) region: String,
    /// The zone's id; for what is to be remembered of a refusal.
    pub(super) zone: String,
    pub(super) instance_type: String,
    pub(super) image: String,
    pub(super) subnet: String,
    security_groups: Vec<String>,
    instance_profile: Option<String>,
    /// Highest price of a spot instance, in dollars an hour; `None`: on demand.
    pub(super) spot: Option<String>,
    pub(super) client_token: String,
    tags: BTreeMap<String, String>,
    root_device: String,
    disk_gb: u32,
    /// Without the token.
    user_data: String,
}

impl Frozen {
    /// Reads what [`freeze`] wrote.
    pub(super) fn read(request: &FrozenRequest) -> Result<Self, String> {
        serde_json::from_str(&request.body).map_err(|error| error.to_string())
    }

    pub(super) fn capacity(&self) -> Capacity {
        if self.spot.is_some() { Capacity::Spot } else { Capacity::OnDemand }
    }

    /// What is sent: with the one secret.
    ///
    /// # Errors
    /// When the token is none.
    pub(super) fn input(&self, token: &EnrolmentToken) -> Result<RunInstancesInputBuilder, String> {
        let Self {
            region: _,
            zone: _,
            instance_type,
            image,
            subnet,
            security_groups,
            instance_profile,
            spot,
            client_token,
            tags,
            root_device,
            disk_gb,
            user_data,
        } = self;
        let script = user_data::with_token(user_data, token)?;
        let disk = EbsBlockDevice::builder()
            .volume_size(i32::try_from(*disk_gb).unwrap_or(i32::MAX))
            .volume_type(VolumeType::Gp3)
            .delete_on_termination(true);
        let root = BlockDeviceMapping::builder().device_name(root_device).ebs(disk.build());
        // Without a token nobody is told anything, and a container is one hop farther than its host.
        let metadata = InstanceMetadataOptionsRequest::builder()
            .http_endpoint(InstanceMetadataEndpointState::Enabled)
            .http_tokens(HttpTokensState::Required)
            .http_put_response_hop_limit(2);
        let mut tagged = vec![ResourceType::Instance, ResourceType::Volume];
        let market = spot.as_ref().map(|most| {
            tagged.push(ResourceType::SpotInstancesRequest);
            let options = SpotMarketOptions::builder()
                .max_price(most)
                .spot_instance_type(SpotInstanceType::OneTime)
                .instance_interruption_behavior(InstanceInterruptionBehavior::Terminate);
            InstanceMarketOptionsRequest::builder()
                .market_type(MarketType::Spot)
                .spot_options(options.build())
                .build()
        });
        let tags: Vec<Tag> =
            tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        let tagged = tagged.into_iter().map(|what| {
            TagSpecification::builder().resource_type(what).set_tags(Some(tags.clone())).build()
        });
        let profile = instance_profile
            .as_ref()
            .map(|name| IamInstanceProfileSpecification::builder().name(name).build());
        let groups = Some(security_groups.clone()).filter(|groups| !groups.is_empty());
        Ok(RunInstancesInput::builder()
            .image_id(image)
            .instance_type(InstanceType::from(instance_type.as_str()))
            .min_count(1)
            .max_count(1)
            .client_token(client_token)
            .subnet_id(subnet)
            .set_security_group_ids(groups)
            .set_iam_instance_profile(profile)
            .set_instance_market_options(market)
            .set_tag_specifications(Some(tagged.collect()))
            // A shutdown from within ends the bill, too: the default is to stop, and pay for the disk.
            .instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate)
            .block_device_mappings(root.build())
            .metadata_options(metadata.build())
            .user_data(STANDARD.encode(script)))
    }
}

/// What an instance needs beside the order: both were looked up for it.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    pub(super) region: &'a AwsRegion,
    pub(super) subnet: &'a str,
    pub(super) image: &'a str,
}

/// Fixes the request.
///
/// # Errors
/// What of the order cannot be had, in words.
pub(super) fn freeze(
    config: &AwsConfig,
    identity: &Identity,
    offer: &Offer,
    machine: &Machine,
    place: &Place<'_>,
) -> Result<FrozenRequest, String> {
    let quoted = price::quoted(offer.price, config.price_adjustment_percent);
    let spot = match offer.capacity {
        Capacity::Spot => Some(most(config, quoted).to_string()),
        Capacity::OnDemand => None,
        Capacity::Owned => return Err(format!("offer {} is of an owned machine", offer.id)),
    };
    let mut environment = machine.bootstrap.environment();
    environment.insert(env::IDENTITY.to_owned(), identity_text(identity));
    let host = Host {
        agent: agent(config, offer)?,
        image: &machine.image,
        accelerated: offer.accelerators.is_some(),
        environment,
        grace_seconds: machine.grace_seconds,
    };
    // Dialled there, if it is dialled.
    let port = Some(machine.bootstrap.port).filter(|_| machine.bootstrap.endpoint.is_none());
    let frozen = Frozen {
        region: place.region.name.clone(),
        zone: offer.zone.clone(),
        instance_type: offer.instance_type.clone(),
        image: place.image.to_owned(),
        subnet: place.subnet.to_owned(),
        security_groups: place.region.security_groups.clone(),
        instance_profile: config.instance_profile.clone(),
        spot,
        // Of the claim's uid, which has one offer for all its life, and the attempt.
        client_token: identity.token(),
        tags: tags::write(identity, offer.price, port, &machine.labels),
        root_device: config.root_device.clone(),
        disk_gb: config.disk_gb,
        user_data: user_data::render(config, host)?,
    };
    let body = serde_json::to_string(&frozen).map_err(|error| error.to_string())?;
    Ok(FrozenRequest { body })
}

/// Whether the order can be had at all: before anything is looked up for it.
///
/// # Errors
/// What cannot, in words.
pub(super) fn fits(config: &AwsConfig, offer: &Offer, machine: &Machine) -> Result<(), String> {
    if offer.provider != config.name {
        return Err(format!("offer {} is not of {}", offer.id, config.name));
    }
    agent(config, offer)?;
    // Exhaustive: what a machine may be asked for is honoured or refused.
    let Machine {
        image: _, // looked at where it is written down
        agent: _, // fetched
        bootstrap: _,
        cpu_millis,
        memory,
        ephemeral,
        ports: _, // the host's own, which the security groups open
        service_account,
        image_pull_secrets,
        volumes,
        grace_seconds: _, // the agent's, and the host timer's
        labels: _,        // tags, where they are short enough
    } = machine;
    if !volumes.is_empty() {
        return Err("volumes of the cluster cannot be had on an instance of AWS's".to_owned());
    }
    if service_account.is_some() {
        return Err("accounts of the cluster mean nothing on an instance of AWS's: give it an \
                    instance profile"
            .to_owned());
    }
    if !image_pull_secrets.is_empty() {
        return Err(
            "imagePullSecrets of the cluster are not sent to AWS: the image must be public"
                .to_owned(),
        );
    }
    if let Some(has) = offer.vcpu_milli.filter(|has| *cpu_millis > *has) {
        return Err(format!("{} has {has}m processors, not {cpu_millis}m", offer.id));
    }
    if let Some(has) = offer.memory.filter(|has| *memory > *has) {
        return Err(format!("{} has {has} bytes of memory, not {memory}", offer.id));
    }
    let disk = u64::from(config.disk_gb) * 1_000_000_000;
    if let Some(wanted) = ephemeral.filter(|wanted| *wanted > disk) {
        return Err(format!(
            "instances of {} have {disk} bytes of disk, not {wanted}",
            config.name
        ));
    }
    Ok(())
}

fn agent<'a>(config: &'a AwsConfig, offer: &Offer) -> Result<&'a AgentDownload, String> {
    let agent = match offer.arch {
        Arch::X86_64 => &config.agent,
        Arch::Aarch64 => &config.agent_arm,
    };
    let nobody = || format!("nobody said where {} fetches the agent for {}", offer.id, offer.arch);
    agent.as_ref().ok_or_else(nobody)
}

/// Highest price at which a spot instance is kept: what was decided on, without what is paid beside
/// it, and some room.
fn most(config: &AwsConfig, quoted: UsdPerHour) -> UsdPerHour {
    let instance = (quoted.micros() - config.extras()).max(0);
    let room = i128::from(instance) * i128::from(config.spot_headroom_percent) / 100;
    let micros = instance.saturating_add(i64::try_from(room).unwrap_or(i64::MAX));
    UsdPerHour::from_micros(micros.max(LEAST_BID_MICROS)).unwrap_or(quoted)
}

#[cfg(test)]
mod tests {
    use super::super::offers::tests::config;
    use super::*;
    use crate::machine::{AgentSource, Bootstrap, Volume, VolumeSource};

    pub(super) fn machine() -> Machine {
        Machine {
            image: "ghcr.io/example/job:1".into(),
            agent: AgentSource::Image("example.org/agent:1".into()),
            bootstrap: Bootstrap { operator_key: "a2V5".into(), endpoint: None, port: 7443 },
            cpu_millis: 1000,
            memory: 1 << 30,
            ephemeral: None,
            ports: Vec::new(),
            service_account: None,
            image_pull_secrets: Vec::new(),
            volumes: Vec::new(),
            grace_seconds: 30,
            labels: BTreeMap::from([("team".to_owned(), "a".to_owned())]),
        }
    }

    fn identity() -> Identity {
        Identity {
            installation: "installation".into(),
            namespace: "default".into(),
            claim: "trj-a-1-0".into(),
            claim_uid: "uid".into(),
            attempt: 1,
        }
    }

    fn offer(capacity: Capacity) -> Offer {
        Offer {
            id: Offer::id_of("aws", "us-east-1", "use1-az1", "g6.xlarge", capacity),
            provider: "aws".into(),
            region: "us-east-1".into(),
            zone: "use1-az1".into(),
            instance_type: "g6.xlarge".into(),
            accelerators: None,
            arch: Arch::X86_64,
            vcpu_milli: Some(4000),
            memory: Some(16 << 30),
            capacity,
            price: "0.41".parse().expect("a price"),
            quoted_at: jiff::Timestamp::UNIX_EPOCH,
            ttl_seconds: 600,
            owner: petaflop_arbiter::offer::HostOwner::Known,
            sale: petaflop_arbiter::offer::Sale::Buyable,
            measured: None,
            slots: None,
            shares: Vec::new(),
            interruptions_per_hour: None,
        }
    }

    fn frozen(config: &AwsConfig, capacity: Capacity) -> Frozen {
        let place = Place { region: &config.regions[0], subnet: "subnet-1", image: "ami-1" };
        let request = freeze(config, &identity(), &offer(capacity), &machine(), &place);
        Frozen::read(&request.expect("a request")).expect("it reads")
    }

    #[test]
    fn a_spot_instance_is_asked_for_once_and_may_cost_what_was_decided_and_some_room() {
        let config = config();
        let frozen = frozen(&config, Capacity::Spot);
        // 0.41 less a cent of disk, and a fifth more.
        assert_eq!(frozen.spot.as_deref(), Some("0.48"));
        let input = frozen.input(&EnrolmentToken::new("t0")).expect("it builds");
        let input = input.build().expect("complete");
        let market = input.instance_market_options().expect("a market");
        assert_eq!(market.market_type(), Some(&MarketType::Spot));
        let spot = market.spot_options().expect("options");
        assert_eq!(spot.max_price(), Some("0.48"));
        assert_eq!(spot.spot_instance_type(), Some(&SpotInstanceType::OneTime));
        assert_eq!(
            spot.instance_interruption_behavior(),
            Some(&InstanceInterruptionBehavior::Terminate)
        );
        assert_eq!((input.min_count(), input.max_count()), (Some(1), Some(1)));
        assert_eq!(input.client_token(), Some(identity().token().as_str()));
        let kinds: Vec<_> = input
            .tag_specifications()
            .iter()
            .filter_map(|tagged| Some(tagged.resource_type()?.as_str().to_owned()))
            .collect();
        assert_eq!(kinds, ["instance", "volume", "spot-instances-request"]);
    }

    #[test]
    fn whatever_is_bought_ends_with_a_shutdown_and_leaves_no_volume() {
        let config = config();
        for capacity in [Capacity::Spot, Capacity::OnDemand] {
            let input = frozen(&config, capacity).input(&EnrolmentToken::new("t0"));
            let input = input.expect("it builds").build().expect("complete");
            assert_eq!(
                input.instance_initiated_shutdown_behavior(),
                Some(&ShutdownBehavior::Terminate)
            );
            let disk = input.block_device_mappings()[0].ebs().expect("a disk");
            assert_eq!(disk.delete_on_termination(), Some(true));
            let metadata = input.metadata_options().expect("metadata");
            assert_eq!(metadata.http_tokens(), Some(&HttpTokensState::Required));
            assert_eq!(metadata.http_put_response_hop_limit(), Some(2));
            assert_eq!(input.instance_market_options().is_some(), capacity == Capacity::Spot);
        }
    }

    #[test]
    fn the_same_order_is_the_same_bytes_and_no_secret_is_frozen() {
        let config = config();
        let place = Place { region: &config.regions[0], subnet: "s", image: "ami-1" };
        let freeze = || {
            freeze(&config, &identity(), &offer(Capacity::Spot), &machine(), &place)
                .expect("a request")
        };
        assert_eq!(freeze(), freeze());
        let input =
            Frozen::read(&freeze()).expect("it reads").input(&EnrolmentToken::new("canary"));
        let input = input.expect("it builds").build().expect("complete");
        let script = STANDARD.decode(input.user_data().expect("user-data")).expect("base64");
        assert!(String::from_utf8(script).expect("text").contains("PETAFLOP_TOKEN=canary\n"));
        assert!(!freeze().body.contains("canary"));
    }

    #[test]
    fn what_cannot_be_had_is_refused_before_anything_is_asked() {
        let config = config();
        let offer = offer(Capacity::Spot);
        assert_eq!(fits(&config, &offer, &machine()), Ok(()));
        let source = VolumeSource::ConfigMap("x".into());
        let volume = Volume { name: "v".into(), mount_path: "/v".into(), read_only: false, source };
        for odd in [
            Machine { volumes: vec![volume], ..machine() },
            Machine { service_account: Some("x".into()), ..machine() },
            Machine { image_pull_secrets: vec!["x".into()], ..machine() },
            Machine { cpu_millis: 4001, ..machine() },
            Machine { memory: 17 << 30, ..machine() },
            Machine { ephemeral: Some(1 << 50), ..machine() },
        ] {
            assert!(fits(&config, &offer, &odd).is_err(), "{odd:?}");
        }
        assert!(
            fits(&config, &Offer { arch: Arch::Aarch64, ..offer.clone() }, &machine()).is_err()
        );
        assert!(fits(&config, &Offer { provider: "rp".into(), ..offer }, &machine()).is_err());
    }
}
