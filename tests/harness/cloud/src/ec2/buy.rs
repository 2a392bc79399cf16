//! `RunInstances`: the purchase. It succeeds or fails at once, and of what failed nothing stays.

use std::net::Ipv4Addr;

use jiff::{SignedDuration, Timestamp};

use super::catalog::{Group, Image, Region, Zone, long};
use super::error::Error;
use super::instances;
use super::keys::{Key, Policy};
use super::kinds::Kind;
use super::launch::Launch;
use super::place::{
    Made, Place, disks, groups, image, places, raise, with_addresses, with_capacity, within_quota,
};
use super::world::{Ask, Instance, Remembered, SpotRequest, Volume, World};
use super::xml::Xml;
use crate::engine::Refusal;
use crate::engine::machine::{AtEnd, Order, Outcome};
use crate::engine::product::Sale;
use crate::faults::Fault;
use crate::host::{Boot, Credentials, Metadata};

/// A token is remembered for so long, and for as long as its instances can be seen.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);

/// `RunInstances`.
pub(crate) fn run(world: &mut World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let launch = Launch::read(ask)?;
    ask.ready()?;
    let key = launch.token.as_ref().map(|token| (ask.region.name.clone(), token.clone()));
    let parameters = ask.form.parameters();
    if let Some(known) = key.as_ref().and_then(|key| world.remembered(key)) {
        if known.parameters == parameters {
            return Ok(world.reservation(ask.region, &known.reservation));
        }
        let message = "Arguments on this idempotent request are inconsistent with arguments used \
                       in previous request(s).";
        return Err(Error::client("IdempotentParameterMismatch", message));
    }
    let reservation = buy(world, ask, &launch)?;
    if let Some(key) = key {
        let at = world.engine.now();
        let remembered = Remembered { parameters, reservation: reservation.clone(), at };
        world.tokens.insert(key, remembered);
    }
    Ok(world.reservation(ask.region, &reservation))
}

impl World {
    /// A launch of this token, unless that was too long ago.
    fn remembered(&self, key: &(String, String)) -> Option<Remembered> {
        let known = self.tokens.get(key)?;
        let young = self.engine.now().duration_since(known.at) < REMEMBERED;
        let there = || self.seen(&key.0).any(|(_, it)| it.reservation == known.reservation);
        (young || there()).then(|| known.clone())
    }

    /// A reservation as `RunInstances` answers it, also while no listing shows it.
    fn reservation(&self, region: &Region, id: &str) -> Xml {
        let machines = self.engine.machines().iter();
        let own = machines.filter_map(|machine| {
            let instance = self.instances.get(&machine.id)?;
            (instance.region == region.name && instance.reservation == id)
                .then_some((machine, instance))
        });
        let own: Vec<_> = own.collect();
        let mut xml = Xml::default();
        instances::reservation(&mut xml, self, id, &own);
        xml
    }
}

fn buy(world: &mut World, ask: &Ask<'_>, launch: &Launch) -> Result<String, Error> {
    let region = ask.region;
    let Some(kind) = world.catalog.kind(&launch.kind).cloned() else {
        return Err(Error::value(&launch.kind, "InstanceType"));
    };
    let image = image(region, &launch.image, &kind)?;
    let groups = groups(region, &launch.groups)?;
    if launch.profile.as_ref().is_some_and(|name| !world.roles.contains_key(name)) {
        let name = launch.profile.clone().unwrap_or_default();
        let message = format!(
            "Value ({name}) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance \
             Profile name"
        );
        return Err(Error::client("InvalidParameterValue", message));
    }
    let disks = disks(launch, image)?;
    let places = places(world, region, launch, &kind)?;
    let count = within_quota(world, region, launch, &kind)?;
    for fault in ask.faults {
        if let Fault::PriceChanged(permille) = fault {
            raise(world, &places, launch.spot, *permille);
        }
    }
    let place = with_capacity(world, ask, launch, &kind, &places)?;
    let count = count.min(world.engine.free(place.product));
    with_addresses(world, place.subnet, count)?;
    if !world.bucket(&region.name, "launched", world.limits.launched, count) {
        return Err(Error::throttled());
    }
    let reservation = long("r", world.engine.chance());
    for _ in 0..count {
        let bought = Bought { region, image, kind: &kind, groups: &groups, disks: &disks };
        bought.one(world, ask, launch, place, &reservation)?;
    }
    Ok(reservation)
}

/// What all instances of a purchase share.
struct Bought<'a> {
    region: &'a Region,
    image: &'a Image,
    kind: &'a Kind,
    groups: &'a [Group],
    disks: &'a [Made],
}

impl Bought<'_> {
    fn one(
        &self,
        world: &mut World,
        ask: &Ask<'_>,
        launch: &Launch,
        place: &Place<'_>,
        reservation: &str,
    ) -> Result<(), Error> {
        let on_demand = world.engine.product(place.product).on_demand;
        let bid = launch.bid.unwrap_or(on_demand);
        // A one-time request has nothing that could be started again.
        let ends = launch.ends_when_shut_down || launch.spot;
        let program = if ends { Outcome::Ends } else { Outcome::Stops };
        let order = Order {
            name: launch.token.clone().unwrap_or_default(),
            product: place.product,
            units: 1,
            sale: if launch.spot { Sale::Spot { bid } } else { Sale::OnDemand },
            disk: 0,
            volume: 0,
            boot: self.boot(world, launch, place.zone),
            stop_after: None,
            end_after: None,
            at_end: AtEnd { program, eviction: Outcome::Ends },
        };
        let id = world.engine.buy(order).map_err(|refusal| match refusal {
            Refusal::Bid => Error::client("SpotMaxPriceTooLow", refusal),
            Refusal::NoCapacity => Error::new(500, "InsufficientInstanceCapacity", refusal),
            _ => Error::internal(),
        })?;
        if ask.faults.contains(&Fault::NeverStarts) {
            world.engine.get_stuck(&id);
        }
        world.tag(&id, &launch.tags_of("instance"));
        self.volumes(world, launch, place.zone, &id);
        let request = launch.spot.then(|| self.request(world, launch, place.zone, &id, bid));
        let number = u16::try_from(world.instances.len()).unwrap_or(u16::MAX) + 4;
        let [high, low] = number.to_be_bytes();
        let public = launch.public.unwrap_or(place.subnet.public);
        let groups = self.groups.iter().map(|group| (group.id.clone(), group.name.clone()));
        let instance = Instance {
            region: self.region.name.clone(),
            zone: place.zone.clone(),
            kind: launch.kind.clone(),
            architecture: self.image.architecture,
            image: self.image.id.clone(),
            root: self.image.root,
            vpc: self.region.vpc.clone(),
            subnet: place.subnet.id.clone(),
            groups: groups.collect(),
            reservation: reservation.to_owned(),
            token: launch.token.clone(),
            request,
            profile: launch.profile.clone(),
            private: Ipv4Addr::new(172, 31, place.subnet.net + high % 16, low),
            public: public.then(|| Ipv4Addr::new(203, 0, 113, low)),
            metadata: launch.metadata.clone(),
            protected: launch.protected,
        };
        world.instances.insert(id, instance);
        Ok(())
    }

    /// What starts, and what its metadata service tells.
    fn boot(&self, world: &mut World, launch: &Launch, zone: &Zone) -> Boot {
        let role = launch.profile.as_ref().and_then(|name| {
            let policy = world.roles.get(name)?.clone();
            let credentials =
                credentials(world, &format!("assumed-role/{name}/instance"), policy, None);
            Some((name.clone(), credentials))
        });
        let metadata = Metadata {
            user_data: launch.user_data.clone(),
            account: world.account.clone(),
            region: self.region.name.clone(),
            zone: zone.name.clone(),
            zone_id: zone.id.clone(),
            instance_type: launch.kind.clone(),
            spot: launch.spot,
            role,
            hop_limit: launch.metadata.hop_limit,
        };
        Boot {
            image: self.image.id.clone(),
            ports: self.groups.iter().flat_map(|group| group.ports.clone()).collect(),
            cpu_millis: self.kind.vcpus * 1000,
            memory: u64::from(self.kind.memory) << 30,
            metadata: Some(metadata),
            ..Boot::default()
        }
    }

    fn volumes(&self, world: &mut World, launch: &Launch, zone: &Zone, instance: &str) {
        for disk in self.disks {
            let id = long("vol", world.engine.chance());
            let gp3 = world.engine.rules().volume_running;
            let price = if disk.kind == "gp2" { gp3 * 5 / 4 } else { gp3 };
            world.engine.attach(&id, instance, disk.size, disk.dies, price);
            world.tag(&id, &launch.tags_of("volume"));
            let volume = Volume {
                region: self.region.name.clone(),
                zone: zone.clone(),
                device: disk.device.clone(),
                kind: disk.kind.clone(),
                instance: instance.to_owned(),
            };
            world.volumes.insert(id, volume);
        }
    }

    fn request(
        &self,
        world: &mut World,
        launch: &Launch,
        zone: &Zone,
        instance: &str,
        bid: i64,
    ) -> String {
        let id = format!("sir-{}", world.engine.chance().word(8));
        world.tag(&id, &launch.tags_of("spot-instances-request"));
        let request = SpotRequest {
            region: self.region.name.clone(),
            zone: zone.name.clone(),
            instance: instance.to_owned(),
            bid,
            created: world.engine.now(),
            cancelled: None,
        };
        world.requests.insert(id.clone(), request);
        id
    }
}

/// Credentials that are good for what a role may do.
pub(crate) fn credentials(
    world: &mut World,
    principal: &str,
    policy: Policy,
    expires: Option<Timestamp>,
) -> Credentials {
    let chance = world.engine.chance();
    let id = format!("ASIA{}", chance.word(16).to_uppercase());
    let (secret, token) = (chance.word(40), chance.word(120));
    let key = Key {
        secret: secret.clone(),
        token: Some(token.clone()),
        expires,
        principal: principal.to_owned(),
        policy,
    };
    world.keys.insert(id.clone(), key);
    Credentials { id, secret, token }
}
