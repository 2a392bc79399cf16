//! `RunInstances`: whether it may be bought, and the purchase. It succeeds or fails at once, and of
//! what failed nothing stays.

use std::net::Ipv4Addr;

use jiff::SignedDuration;

use super::catalog::{Image, Region, Subnet, Zone, long};
use super::error::Error;
use super::instances;
use super::keys::Key;
use super::kinds::Kind;
use super::launch::Launch;
use super::world::{Ask, Instance, Remembered, SpotRequest, Volume, World, dollars};
use super::xml::Xml;
use crate::engine::Refusal;
use crate::engine::machine::{AtEnd, Order, Outcome};
use crate::engine::product::{ProductId, Sale};
use crate::faults::Fault;
use crate::host::{Boot, Credentials, Metadata};

/// Where the root volume is.
const ROOT: &str = "/dev/xvda";
/// Micro-dollars a GB and month.
const GP3: i64 = 80_000;
const GP2: i64 = 100_000;
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

/// Where it can go: the zone, its subnet, what is sold there.
struct Place<'a> {
    zone: &'a Zone,
    subnet: &'a Subnet,
    product: ProductId,
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
    let taken = world.instances.iter().filter(|(id, it)| {
        let machine = world.engine.machine(id);
        it.subnet == place.subnet.id && machine.is_some_and(|machine| machine.ended.is_none())
    });
    let taken = u32::try_from(taken.count()).unwrap_or(u32::MAX);
    if place.subnet.addresses.saturating_sub(taken) < count {
        let message = format!(
            "There are not enough free addresses in subnet '{}' to satisfy the requested number of \
             instances.",
            place.subnet.id
        );
        return Err(Error::client("InsufficientFreeAddressesInSubnet", message));
    }
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

fn image<'a>(region: &'a Region, wanted: &str, kind: &Kind) -> Result<&'a Image, Error> {
    let id = match wanted.strip_prefix("resolve:ssm:") {
        Some(path) => region.parameters.get(path).map(String::as_str).ok_or_else(|| {
            let message = format!("The parameter '{path}' could not be resolved");
            Error::client("InvalidParameterValue", message)
        })?,
        None => wanted,
    };
    if !id.starts_with("ami-") {
        let message = format!("Invalid id: \"{id}\" (expecting \"ami-...\")");
        return Err(Error::client("InvalidAMIID.Malformed", message));
    }
    let Some(image) = region.images.iter().find(|image| image.id == id) else {
        let message = format!("The image id '[{id}]' does not exist");
        return Err(Error::client("InvalidAMIID.NotFound", message));
    };
    if image.architecture != kind.architecture() {
        let message = format!(
            "The architecture '{}' of the specified instance type does not match the architecture \
             '{}' of the specified AMI.",
            kind.architecture(),
            image.architecture
        );
        return Err(Error::client("InvalidParameterValue", message));
    }
    Ok(image)
}

/// Ids, names and opened ports of the wanted groups; of the default one where none is named.
fn groups(region: &Region, wanted: &[String]) -> Result<Vec<super::catalog::Group>, Error> {
    if wanted.is_empty() {
        return Ok(region.groups.iter().filter(|group| group.name == "default").cloned().collect());
    }
    let found = wanted.iter().map(|id| {
        region.groups.iter().find(|group| group.id == *id).cloned().ok_or_else(|| {
            let message = format!("The security group '{id}' does not exist");
            Error::client("InvalidGroup.NotFound", message)
        })
    });
    found.collect()
}

/// A volume that will be made.
struct Made {
    device: String,
    size: u32,
    kind: String,
    dies: bool,
}

fn disks(launch: &Launch, image: &Image) -> Result<Vec<Made>, Error> {
    let mut made = vec![Made {
        device: ROOT.to_owned(),
        size: image.size,
        kind: "gp3".to_owned(),
        dies: true,
    }];
    for disk in &launch.disks {
        if disk.device == ROOT {
            let size = disk.size.unwrap_or(image.size);
            if size < image.size {
                let message = format!(
                    "Volume of size {size}GB is smaller than snapshot of the image, expect size >= \
                     {}GB",
                    image.size
                );
                return Err(Error::client("InvalidBlockDeviceMapping", message));
            }
            let (kind, dies) = (disk.kind.clone(), disk.dies.unwrap_or(true));
            made[0] = Made { device: ROOT.to_owned(), size, kind, dies };
        } else {
            let size = disk.size.ok_or_else(|| Error::missing("size"))?;
            let (kind, dies) = (disk.kind.clone(), disk.dies.unwrap_or(false));
            made.push(Made { device: disk.device.clone(), size, kind, dies });
        }
    }
    Ok(made)
}

/// Where it may go, as wished; in the order of the subnets where nothing was wished.
fn places<'a>(
    world: &World,
    region: &'a Region,
    launch: &Launch,
    kind: &Kind,
) -> Result<Vec<Place<'a>>, Error> {
    let subnets: Vec<&Subnet> = match (&launch.subnet, &launch.zone) {
        (Some(id), _) => {
            let found = region.subnets.iter().find(|subnet| subnet.id == *id);
            let missing = || {
                let message = format!("The subnet ID '{id}' does not exist");
                Error::client("InvalidSubnetID.NotFound", message)
            };
            vec![found.ok_or_else(missing)?]
        }
        (None, Some(wanted)) => {
            let zone = region.zones.iter().find(|zone| zone.name == *wanted || zone.id == *wanted);
            let Some(zone) = zone else {
                let message = format!("Invalid availability zone: [{wanted}]");
                return Err(Error::client("InvalidParameterValue", message));
            };
            region.subnets.iter().filter(|subnet| subnet.zone == zone.name).collect()
        }
        (None, None) => region.subnets.iter().collect(),
    };
    let mut places = Vec::new();
    for subnet in &subnets {
        let Some(zone) = region.zone(&subnet.zone) else { continue };
        if let Some((product, _)) = world.product(kind.name, &zone.id, launch.spot) {
            places.push(Place { zone, subnet, product });
        }
    }
    if places.is_empty() {
        let elsewhere = world.zones_of(region, kind.name);
        let elsewhere: Vec<&str> = elsewhere.iter().map(|zone| zone.name.as_str()).collect();
        let zones: Vec<&str> = subnets.iter().map(|subnet| subnet.zone.as_str()).collect();
        let message = format!(
            "Your requested instance type ({}) is not supported in your requested Availability Zone \
             ({}). Please retry your request by not specifying an Availability Zone or choosing {}.",
            kind.name,
            zones.join(", "),
            elsewhere.join(", ")
        );
        return Err(Error::client("Unsupported", message));
    }
    Ok(places)
}

/// How many the quota allows, at least the least that is wanted.
fn within_quota(
    world: &World,
    region: &Region,
    launch: &Launch,
    kind: &Kind,
) -> Result<u32, Error> {
    let family = kind.family(launch.spot);
    let limit = world.quotas.of(&region.name, launch.spot, family);
    let used = world.engine.machines().iter().filter(|machine| machine.holds_units());
    let used = used.filter_map(|machine| {
        let instance = world.instances.get(&machine.id)?;
        let kind = world.catalog.kind(&instance.kind)?;
        let same = instance.region == region.name
            && instance.request.is_some() == launch.spot
            && kind.family(launch.spot) == family;
        same.then_some(kind.vcpus)
    });
    let left = limit.saturating_sub(used.sum()) / kind.vcpus;
    if left >= launch.least {
        return Ok(left.min(launch.most));
    }
    Err(if launch.spot {
        Error::client("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
    } else {
        let message = format!(
            "You have requested more vCPU capacity than your current vCPU limit of {limit} allows \
             for the instance bucket that the specified instance type belongs to. Please visit \
             http://aws.amazon.com/contact-us/ec2-request to request an adjustment to this limit."
        );
        Error::client("VcpuLimitExceeded", message)
    })
}

/// What was quoted costs another price now.
fn raise(world: &mut World, places: &[Place<'_>], spot: bool, permille: u32) {
    for place in places {
        let permille = i64::from(permille);
        match world.engine.spot_price(place.product).filter(|_| spot) {
            Some(price) => {
                world.engine.set_spot(place.product, price.saturating_mul(permille) / 1000);
            }
            None => {
                let product = world.engine.product_mut(place.product);
                product.on_demand = product.on_demand.saturating_mul(permille) / 1000;
            }
        }
    }
}

/// The first place whose price the bid reaches and that has enough.
fn with_capacity<'a, 'b>(
    world: &World,
    ask: &Ask<'_>,
    launch: &Launch,
    kind: &Kind,
    places: &'b [Place<'a>],
) -> Result<&'b Place<'a>, Error> {
    let mut lowest = None;
    let mut reached = Vec::new();
    for place in places {
        match world.engine.spot_price(place.product).filter(|_| launch.spot) {
            Some(price) if launch.bid.is_some_and(|bid| bid < price) => {
                lowest = lowest.into_iter().chain([price]).min();
            }
            _ => reached.push(place),
        }
    }
    if let (true, Some(price)) = (reached.is_empty(), lowest) {
        let message = format!(
            "Your Spot request price of {} is lower than the minimum required Spot request \
             fulfillment price of {}.",
            dollars(launch.bid.unwrap_or_default()),
            dollars(price)
        );
        return Err(Error::client("SpotMaxPriceTooLow", message));
    }
    let gone = ask.faults.contains(&Fault::CapacityGone);
    let has = |place: &&&Place<'_>| !gone && world.engine.free(place.product) >= launch.least;
    let free = reached.iter().find(has).copied();
    free.ok_or_else(|| no_capacity(launch, kind, places))
}

/// A server's error, 500: a client that retries those retries this.
fn no_capacity(launch: &Launch, kind: &Kind, places: &[Place<'_>]) -> Error {
    let zone = places.first().map_or("", |place| place.zone.name.as_str());
    let message = if launch.spot {
        "There is no Spot capacity available that matches your request.".to_owned()
    } else {
        format!(
            "We currently do not have sufficient {} capacity in the Availability Zone you requested \
             ({zone}). Our system will be working on provisioning additional capacity.",
            kind.name
        )
    };
    Error::new(500, "InsufficientInstanceCapacity", message)
}

/// What all instances of a purchase share.
struct Bought<'a> {
    region: &'a Region,
    image: &'a Image,
    kind: &'a Kind,
    groups: &'a [super::catalog::Group],
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
            let credentials = credentials(world, &format!("assumed-role/{name}/instance"), policy);
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
            let price = if disk.kind == "gp2" { GP2 } else { GP3 };
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
    policy: super::keys::Policy,
) -> Credentials {
    let chance = world.engine.chance();
    let id = format!("ASIA{}", chance.word(16).to_uppercase());
    let (secret, token) = (chance.word(40), chance.word(120));
    let key = Key {
        secret: secret.clone(),
        token: Some(token.clone()),
        principal: principal.to_owned(),
        policy,
    };
    world.keys.insert(id.clone(), key);
    Credentials { id, secret, token }
}
