//! What is ours at AWS, as instances. Pure.
//!
//! A volume that outlived its instance, and a spot request that may still be fulfilled, bill or may
//! bill without an instance: they are listed beside the instances, so that what no claim wants is
//! ended like them.

use aws_sdk_ec2::primitives::DateTime;
use aws_sdk_ec2::types::{
    Instance as AwsInstance, InstanceLifecycleType, InstanceStateName, SpotInstanceRequest,
    SpotInstanceState, Volume, VolumeState,
};
use jiff::Timestamp;
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::{Arch, Capacity, HostOwner, Offer, Sale};
use petaflop_arbiter::reason::Reason;

use super::config::Address;
use super::{id, tags};
use crate::provider::{Instance, InstanceState, Trouble};

/// Whose things they are, in the eyes of the account.
#[derive(Clone, Copy, Debug)]
pub(super) struct Where<'a> {
    pub(super) provider: &'a str,
    pub(super) region: &'a str,
    pub(super) address: Address,
}

/// An instance; `None` only where it has no id.
pub(super) fn instance(at: Where<'_>, seen: &AwsInstance) -> Option<Instance> {
    let id = id::name(at.region, seen.instance_id()?);
    let carried = tags::read(seen.tags());
    let state = state(seen);
    let address = match at.address {
        Address::Public => seen.public_ip_address(),
        Address::Private => seen.private_ip_address(),
    };
    let address = address.and_then(|text| text.parse::<std::net::IpAddr>().ok());
    let endpoint = address.zip(carried.port);
    let ended = (state == InstanceState::Terminated).then(|| ended(seen)).flatten();
    Some(Instance {
        id,
        identity: carried.identity,
        state,
        started: seen.launch_time().and_then(time),
        ended,
        offer: carried.price.and_then(|price| offer(at, seen, price)),
        hourly: None,
        running: None,
        endpoint: endpoint.map(|(ip, port)| std::net::SocketAddr::new(ip, port).to_string()),
        exit: None,
        trouble: trouble(seen, state),
    })
}

fn state(seen: &AwsInstance) -> InstanceState {
    match seen.state().and_then(|state| state.name()) {
        Some(InstanceStateName::Pending) => InstanceState::Pending,
        Some(InstanceStateName::ShuttingDown) => InstanceState::Terminating,
        Some(InstanceStateName::Terminated) => InstanceState::Terminated,
        // Stopped ones keep a disk that bills, and may be started again. Whatever else there will
        // be: it is there.
        _ => InstanceState::Running,
    }
}

/// What it says of its end, or of being stopped.
fn trouble(seen: &AwsInstance, state: InstanceState) -> Option<Trouble> {
    let stopped = matches!(
        seen.state().and_then(|state| state.name()),
        Some(InstanceStateName::Stopping | InstanceStateName::Stopped)
    );
    let reason = seen.state_reason();
    let code = reason.and_then(|reason| reason.code()).unwrap_or_default();
    let words = reason.and_then(|reason| reason.message()).unwrap_or(code);
    let over = matches!(state, InstanceState::Terminating | InstanceState::Terminated);
    let kind = match code {
        // Ours, or a person's.
        "Client.UserInitiatedShutdown" if over => return None,
        "Server.SpotInstanceTermination" | "Server.SpotInstanceShutdown" => Reason::SpotInterrupted,
        "Server.InsufficientInstanceCapacity" => Reason::InsufficientCapacity,
        // From within: its work was done, or nobody renewed its lease.
        "Client.InstanceInitiatedShutdown" => Reason::HeartbeatLost,
        "Client.VolumeLimitExceeded" => Reason::QuotaExceeded,
        "Client.InternalError" | "Client.InvalidSnapshot.NotFound" => Reason::InvalidSpec,
        // A host that failed, and whatever else: AWS took it.
        _ if over && code.starts_with("Server.") => Reason::SpotInterrupted,
        _ if stopped => Reason::ProviderUnavailable,
        _ => return None,
    };
    Some(Trouble { reason: kind, message: words.to_owned() })
}

/// `User initiated (2026-11-20 10:00:00 GMT)`.
fn ended(seen: &AwsInstance) -> Option<Timestamp> {
    let text = seen.state_transition_reason()?;
    let (_, rest) = text.rsplit_once('(')?;
    let time = rest.strip_suffix(')')?.strip_suffix(" GMT")?;
    let time: jiff::civil::DateTime = time.parse().ok()?;
    time.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|time| time.timestamp())
}

/// What was bought, as far as the instance remembers: enough to tell what it cost.
fn offer(at: Where<'_>, seen: &AwsInstance, price: UsdPerHour) -> Option<Offer> {
    let name = seen.instance_type()?.as_str();
    let zone = seen.placement().and_then(|place| place.availability_zone_id()).unwrap_or_default();
    let spot = seen.instance_lifecycle() == Some(&InstanceLifecycleType::Spot);
    let capacity = if spot { Capacity::Spot } else { Capacity::OnDemand };
    let arm = seen.architecture().is_some_and(|arch| arch.as_str().starts_with("arm64"));
    Some(Offer {
        id: Offer::id_of(at.provider, at.region, zone, name, capacity),
        provider: at.provider.to_owned(),
        region: at.region.to_owned(),
        zone: zone.to_owned(),
        instance_type: name.to_owned(),
        accelerators: None,
        arch: if arm { Arch::Aarch64 } else { Arch::X86_64 },
        vcpu_milli: None,
        memory: None,
        capacity,
        price,
        quoted_at: seen.launch_time().and_then(time).unwrap_or(Timestamp::UNIX_EPOCH),
        ttl_seconds: 0,
        owner: HostOwner::Known,
        sale: Sale::Buyable,
        measured: None,
        slots: None,
        shares: Vec::new(),
        interruptions_per_hour: None,
    })
}

/// A volume of ours that hangs on no instance; `None` where it does, or is going.
pub(super) fn volume(at: Where<'_>, seen: &Volume) -> Option<Instance> {
    let left = matches!(seen.state(), Some(VolumeState::Available | VolumeState::Error));
    let id = seen.volume_id().filter(|_| left)?;
    Some(leftover(at, id, seen.tags(), seen.create_time()))
}

/// When the instance of a spot request ended, if that is what the request says.
pub(super) fn request_ended(seen: &SpotInstanceRequest) -> Option<Timestamp> {
    let status = seen.status()?;
    let ended = status.code()?.starts_with("instance-terminated");
    status.update_time().filter(|_| ended).and_then(time)
}

/// A spot request of ours that may still be fulfilled, or has what nobody ends; `None` where it has
/// its instance, with which it closes.
pub(super) fn spot_request(at: Where<'_>, seen: &SpotInstanceRequest) -> Option<Instance> {
    let open = match seen.state()? {
        SpotInstanceState::Open => true,
        SpotInstanceState::Active => seen.instance_id().is_none(),
        _ => false,
    };
    let id = seen.spot_instance_request_id().filter(|_| open)?;
    Some(leftover(at, id, seen.tags(), seen.create_time()))
}

fn leftover(
    at: Where<'_>,
    id: &str,
    tags: &[aws_sdk_ec2::types::Tag],
    made: Option<&DateTime>,
) -> Instance {
    Instance {
        id: id::name(at.region, id),
        identity: tags::read(tags).identity,
        state: InstanceState::Running,
        started: made.and_then(time),
        ended: None,
        offer: None,
        hourly: None,
        running: None,
        endpoint: None,
        exit: None,
        trouble: None,
    }
}

fn time(time: &DateTime) -> Option<Timestamp> {
    let nanos = i32::try_from(time.subsec_nanos()).ok()?;
    Timestamp::new(time.secs(), nanos).ok()
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{InstanceState as AwsState, InstanceType, StateReason, Tag};
    use petaflop_arbiter::claim::Identity;

    use super::*;

    const HERE: Where<'static> =
        Where { provider: "aws", region: "us-east-1", address: Address::Public };

    fn identity() -> Identity {
        Identity {
            installation: "i".into(),
            namespace: "default".into(),
            claim: "trj-a-1-0".into(),
            claim_uid: "uid".into(),
            attempt: 1,
        }
    }

    fn tags() -> Vec<Tag> {
        let price = "0.41".parse().expect("a price");
        tags::write(&identity(), price, Some(7443), &std::collections::BTreeMap::new())
            .into_iter()
            .map(|(key, value)| Tag::builder().key(key).value(value).build())
            .collect()
    }

    fn seen(state: &str, reason: &str) -> AwsInstance {
        AwsInstance::builder()
            .instance_id("i-1")
            .instance_type(InstanceType::from("g6.xlarge"))
            .instance_lifecycle(InstanceLifecycleType::Spot)
            .public_ip_address("203.0.113.7")
            .private_ip_address("10.0.0.7")
            .launch_time(DateTime::from_secs(1_790_000_000))
            .state(AwsState::builder().name(InstanceStateName::from(state)).build())
            .state_reason(StateReason::builder().code(reason).message("words").build())
            .state_transition_reason("User initiated (2026-11-20 10:00:00 GMT)")
            .set_tags(Some(tags()))
            .build()
    }

    #[test]
    fn an_instance_is_what_its_state_and_its_reason_say() {
        use InstanceState::{Pending, Running, Terminated, Terminating};
        for (state, reason, expected, trouble) in [
            ("pending", "pending", Pending, None),
            ("running", "", Running, None),
            (
                "stopping",
                "Client.UserInitiatedShutdown",
                Running,
                Some(Reason::ProviderUnavailable),
            ),
            ("stopped", "", Running, Some(Reason::ProviderUnavailable)),
            ("something-new", "", Running, None),
            (
                "shutting-down",
                "Server.SpotInstanceTermination",
                Terminating,
                Some(Reason::SpotInterrupted),
            ),
            (
                "terminated",
                "Server.SpotInstanceShutdown",
                Terminated,
                Some(Reason::SpotInterrupted),
            ),
            (
                "terminated",
                "Server.InsufficientInstanceCapacity",
                Terminated,
                Some(Reason::InsufficientCapacity),
            ),
            ("terminated", "Server.InternalError", Terminated, Some(Reason::SpotInterrupted)),
            (
                "terminated",
                "Client.InstanceInitiatedShutdown",
                Terminated,
                Some(Reason::HeartbeatLost),
            ),
            ("terminated", "Client.UserInitiatedShutdown", Terminated, None),
            ("terminated", "Client.VolumeLimitExceeded", Terminated, Some(Reason::QuotaExceeded)),
            ("terminated", "Client.InternalError", Terminated, Some(Reason::InvalidSpec)),
        ] {
            let found = instance(HERE, &seen(state, reason)).expect("an instance");
            assert_eq!(found.state, expected, "{state} {reason}");
            assert_eq!(found.trouble.map(|it| it.reason), trouble, "{state} {reason}");
        }
    }

    #[test]
    fn it_says_whose_it_is_where_and_what_it_costs() {
        let found = instance(HERE, &seen("running", "")).expect("an instance");
        assert_eq!(found.id.0, "us-east-1/i-1");
        assert_eq!(found.identity, Some(identity()));
        assert_eq!(found.endpoint.as_deref(), Some("203.0.113.7:7443"));
        let offer = found.offer.expect("an offer");
        assert_eq!((offer.price.to_string().as_str(), offer.capacity), ("0.41", Capacity::Spot));
        assert_eq!(found.ended, None);
        let private = Where { address: Address::Private, ..HERE };
        let found = instance(private, &seen("terminated", "")).expect("an instance");
        assert_eq!(found.endpoint.as_deref(), Some("10.0.0.7:7443"));
        assert_eq!(found.ended, "2026-11-20T10:00:00Z".parse().ok());
    }

    #[test]
    fn odd_fields_hide_no_instance() {
        let bare = AwsInstance::builder().instance_id("i-1").build();
        let found = instance(HERE, &bare).expect("an instance");
        assert!(found.state.may_bill());
        assert_eq!((found.identity, found.endpoint, found.offer), (None, None, None));
        let odd = AwsInstance::builder()
            .instance_id("i-1")
            .public_ip_address("nowhere")
            .state_transition_reason("User initiated (")
            .set_tags(Some(tags()));
        let found = instance(HERE, &odd.build()).expect("an instance");
        assert_eq!((found.endpoint, found.ended), (None, None));
    }

    #[test]
    fn what_outlived_its_instance_is_listed_like_one() {
        let with = |state| {
            Volume::builder().volume_id("vol-1").state(state).set_tags(Some(tags())).build()
        };
        let left = volume(HERE, &with(VolumeState::Available)).expect("a leftover");
        assert_eq!((left.id.0.as_str(), left.identity), ("us-east-1/vol-1", Some(identity())));
        assert!(left.state.may_bill());
        for busy in [VolumeState::Creating, VolumeState::InUse, VolumeState::Deleting] {
            assert_eq!(volume(HERE, &with(busy)), None);
        }
        let request = |state, instance: Option<&str>| {
            let request = SpotInstanceRequest::builder().spot_instance_request_id("sir-1");
            let request = request.state(state).set_instance_id(instance.map(str::to_owned));
            spot_request(HERE, &request.build()).is_some()
        };
        assert!(request(SpotInstanceState::Open, None));
        assert!(request(SpotInstanceState::Active, None));
        assert!(!request(SpotInstanceState::Active, Some("i-1")));
        assert!(!request(SpotInstanceState::Closed, None));
        assert!(!request(SpotInstanceState::Cancelled, Some("i-1")));
    }
}
