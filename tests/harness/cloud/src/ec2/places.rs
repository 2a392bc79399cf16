//! Zones, subnets, security groups, images.

use super::catalog::{Group, Image, Subnet, Zone};
use super::error::Error;
use super::filter;
use super::page;
use super::world::{Ask, World};
use super::xml::Xml;

/// `DescribeAvailabilityZones`: the Local Zone, to which this account opted in, among them.
pub(crate) fn zones(_: &World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let form = ask.form;
    let (names, ids) = (form.list("ZoneName"), form.list("ZoneId"));
    let filters = form.filters(&[
        "zone-name",
        "zone-id",
        "zone-type",
        "region-name",
        "state",
        "opt-in-status",
        "group-name",
    ])?;
    form.flag("AllAvailabilityZones")?;
    ask.ready()?;
    let region = ask.region;
    let known = |name: &&String| region.zone(name).is_some();
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let message = format!("Invalid availability zone: [{unknown}]");
        return Err(Error::client("InvalidParameterValue", message));
    }
    let status = |zone: &Zone| if zone.local { "opted-in" } else { "opt-in-not-required" };
    let kind = |zone: &Zone| if zone.local { "local-zone" } else { "availability-zone" };
    let group = |zone: &Zone| match zone.local {
        true => zone.name.trim_end_matches(|letter: char| letter.is_ascii_lowercase()).to_owned(),
        false => region.name.clone(),
    };
    let fits = region.zones.iter().filter(|zone| {
        (names.is_empty() || names.contains(&zone.name))
            && (ids.is_empty() || ids.contains(&zone.id))
            && filter::all(&filters, |name| {
                vec![match name {
                    "zone-name" => zone.name.clone(),
                    "zone-id" => zone.id.clone(),
                    "zone-type" => kind(zone).to_owned(),
                    "region-name" => region.name.clone(),
                    "opt-in-status" => status(zone).to_owned(),
                    "group-name" => group(zone),
                    _ => "available".to_owned(),
                }]
            })
    });
    let mut xml = Xml::default();
    xml.items("availabilityZoneInfo", fits, |xml, zone| {
        xml.leaf("zoneName", &zone.name)
            .leaf("zoneId", &zone.id)
            .leaf("zoneState", "available")
            .leaf("zoneType", kind(zone))
            .leaf("regionName", &region.name)
            .leaf("groupName", group(zone))
            .leaf("networkBorderGroup", group(zone))
            .leaf("optInStatus", status(zone))
            .within("messageSet", |_| {});
    });
    Ok(xml)
}

/// `DescribeSubnets`.
pub(crate) fn subnets(world: &World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let ids = ask.form.list("SubnetId");
    let filters = ask.form.filters(&[
        "tag:*",
        "tag-key",
        "subnet-id",
        "vpc-id",
        "availability-zone",
        "availability-zone-id",
        "default-for-az",
        "state",
    ])?;
    let page = page::read(ask, 5..=1000)?;
    ask.ready()?;
    let region = ask.region;
    let known = |id: &&String| region.subnets.iter().any(|subnet| subnet.id == **id);
    if let Some(id) = ids.iter().find(|id| !known(id)) {
        let message = format!("The subnet ID '{id}' does not exist");
        return Err(Error::client("InvalidSubnetID.NotFound", message));
    }
    let zone_id = |subnet: &Subnet| region.zone(&subnet.zone).map_or("", |zone| zone.id.as_str());
    let fits = region.subnets.iter().filter(|subnet| {
        (ids.is_empty() || ids.contains(&subnet.id))
            && filter::all(&filters, |name| match name {
                "subnet-id" => vec![subnet.id.clone()],
                "vpc-id" => vec![region.vpc.clone()],
                "availability-zone" => vec![subnet.zone.clone()],
                "availability-zone-id" => vec![zone_id(subnet).to_owned()],
                "default-for-az" => vec!["true".to_owned()],
                "state" => vec!["available".to_owned()],
                name => filter::tagged(world.tags_of(&subnet.id), name),
            })
    });
    let (found, next) = page.cut(ask, world.page, fits.collect::<Vec<_>>())?;
    let mut xml = Xml::default();
    xml.items("subnetSet", found, |xml, subnet| {
        xml.leaf("subnetId", &subnet.id)
            .leaf("state", "available")
            .leaf("vpcId", &region.vpc)
            .leaf("cidrBlock", format!("172.31.{}.0/20", subnet.net))
            .leaf("availableIpAddressCount", world.addresses(subnet))
            .leaf("availabilityZone", &subnet.zone)
            .leaf("availabilityZoneId", zone_id(subnet))
            .leaf("defaultForAz", true)
            .leaf("mapPublicIpOnLaunch", subnet.public)
            .leaf("ownerId", &world.account)
            .tags(world.tags_of(&subnet.id));
    });
    xml.maybe("nextToken", next);
    Ok(xml)
}

/// `DescribeSecurityGroups`.
pub(crate) fn groups(world: &World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let (ids, names) = (ask.form.list("GroupId"), ask.form.list("GroupName"));
    let filters = ask.form.filters(&["tag:*", "tag-key", "group-id", "group-name", "vpc-id"])?;
    let page = page::read(ask, 5..=1000)?;
    ask.ready()?;
    let region = ask.region;
    let has = |wanted: &String, of: fn(&Group) -> &String| {
        region.groups.iter().any(|group| of(group) == wanted)
    };
    let missing = ids.iter().find(|id| !has(id, |group| &group.id));
    let missing = missing.or_else(|| names.iter().find(|name| !has(name, |group| &group.name)));
    if let Some(missing) = missing {
        let message = format!("The security group '{missing}' does not exist");
        return Err(Error::client("InvalidGroup.NotFound", message));
    }
    let fits = region.groups.iter().filter(|group| {
        (ids.is_empty() || ids.contains(&group.id))
            && (names.is_empty() || names.contains(&group.name))
            && filter::all(&filters, |name| match name {
                "group-id" => vec![group.id.clone()],
                "group-name" => vec![group.name.clone()],
                "vpc-id" => vec![region.vpc.clone()],
                name => filter::tagged(world.tags_of(&group.id), name),
            })
    });
    let (found, next) = page.cut(ask, world.page, fits.collect::<Vec<_>>())?;
    let mut xml = Xml::default();
    xml.items("securityGroupInfo", found, |xml, group| {
        xml.leaf("ownerId", &world.account)
            .leaf("groupId", &group.id)
            .leaf("groupName", &group.name)
            .leaf("groupDescription", &group.name)
            .leaf("vpcId", &region.vpc)
            .items("ipPermissions", &group.ports, |xml, port| {
                xml.leaf("ipProtocol", "tcp").leaf("fromPort", port).leaf("toPort", port).items(
                    "ipRanges",
                    ["0.0.0.0/0"],
                    |xml, range| {
                        xml.leaf("cidrIp", range);
                    },
                );
            })
            .tags(world.tags_of(&group.id));
    });
    xml.maybe("nextToken", next);
    Ok(xml)
}

/// `DescribeImages`.
pub(crate) fn images(world: &World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let (ids, owners) = (ask.form.list("ImageId"), ask.form.list("Owner"));
    let filters = ask.form.filters(&["image-id", "name", "architecture", "state"])?;
    let page = page::read(ask, 5..=1000)?;
    ask.ready()?;
    let known = |id: &&String| ask.region.images.iter().any(|image| image.id == **id);
    if let Some(id) = ids.iter().find(|id| !known(id)) {
        let message = format!("The image id '[{id}]' does not exist");
        return Err(Error::client("InvalidAMIID.NotFound", message));
    }
    let public = owners.is_empty() || owners.iter().any(|owner| owner == "amazon");
    let fits = ask.region.images.iter().filter(|image: &&Image| {
        public
            && (ids.is_empty() || ids.contains(&image.id))
            && filter::all(&filters, |name| {
                vec![match name {
                    "image-id" => image.id.clone(),
                    "name" => image.name.clone(),
                    "architecture" => image.architecture.to_owned(),
                    _ => "available".to_owned(),
                }]
            })
    });
    let (found, next) = page.cut(ask, world.page, fits.collect::<Vec<_>>())?;
    let mut xml = Xml::default();
    xml.items("imagesSet", found, |xml, image| {
        xml.leaf("imageId", &image.id)
            .leaf("name", &image.name)
            .leaf("imageState", "available")
            .leaf("imageOwnerAlias", "amazon")
            .leaf("isPublic", true)
            .leaf("architecture", image.architecture)
            .leaf("imageType", "machine")
            .leaf("platformDetails", "Linux/UNIX")
            .leaf("rootDeviceType", "ebs")
            .leaf("rootDeviceName", image.root)
            .leaf("virtualizationType", "hvm")
            .items("blockDeviceMapping", [image.size], |xml, size| {
                xml.leaf("deviceName", image.root).within("ebs", |xml| {
                    xml.leaf("volumeSize", size)
                        .leaf("volumeType", "gp3")
                        .leaf("deleteOnTermination", true);
                });
            });
    });
    xml.maybe("nextToken", next);
    Ok(xml)
}
