//! Whether a launch can be served, and from where: each that fails has a code of its own.

use super::catalog::{Group, Image, Region, Subnet, Zone};
use super::error::Error;
use super::kinds::Kind;
use super::launch::Launch;
use super::world::{Ask, World, dollars};
use crate::engine::product::ProductId;
use crate::faults::Fault;

/// Where it can go: the zone, its subnet, what is sold there.
pub(crate) struct Place<'a> {
    pub(crate) zone: &'a Zone,
    pub(crate) subnet: &'a Subnet,
    pub(crate) product: ProductId,
}

pub(crate) fn image<'a>(region: &'a Region, wanted: &str, kind: &Kind) -> Result<&'a Image, Error> {
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
pub(crate) fn groups(region: &Region, wanted: &[String]) -> Result<Vec<Group>, Error> {
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
pub(crate) struct Made {
    pub(crate) device: String,
    pub(crate) size: u32,
    pub(crate) kind: String,
    pub(crate) dies: bool,
}

pub(crate) fn disks(launch: &Launch, image: &Image) -> Result<Vec<Made>, Error> {
    let mut made = vec![Made {
        device: image.root.to_owned(),
        size: image.size,
        kind: "gp3".to_owned(),
        dies: true,
    }];
    for disk in &launch.disks {
        if disk.device == image.root {
            let size = disk.size.unwrap_or(image.size);
            if size < image.size {
                let message = format!(
                    "Volume of size {size}GB is smaller than snapshot of the image, expect size >= \
                     {}GB",
                    image.size
                );
                return Err(Error::client("InvalidBlockDeviceMapping", message));
            }
            let (kind, dies) = (disk.kind.clone(), disk.dies);
            made[0] = Made { device: image.root.to_owned(), size, kind, dies };
        } else {
            let size = disk.size.ok_or_else(|| Error::missing("size"))?;
            let (kind, dies) = (disk.kind.clone(), disk.dies);
            made.push(Made { device: disk.device.clone(), size, kind, dies });
        }
    }
    Ok(made)
}

/// Where it may go, as wished; in the order of the subnets where nothing was wished.
pub(crate) fn places<'a>(
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
pub(crate) fn within_quota(
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
pub(crate) fn raise(world: &mut World, places: &[Place<'_>], spot: bool, permille: u32) {
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
pub(crate) fn with_capacity<'a, 'b>(
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

/// Addresses are as scarce as capacity.
pub(crate) fn with_addresses(world: &World, subnet: &Subnet, count: u32) -> Result<(), Error> {
    if world.addresses(subnet) >= count {
        return Ok(());
    }
    let message = format!(
        "There are not enough free addresses in subnet '{}' to satisfy the requested number of \
         instances.",
        subnet.id
    );
    Err(Error::client("InsufficientFreeAddressesInSubnet", message))
}
