//! Volumes: they come with an instance, and may outlive it and go on billing.

use super::error::Error;
use super::filter;
use super::page;
use super::world::{Ask, Volume, World, iso};
use super::xml::Xml;
use crate::engine::Refusal;
use crate::engine::disk::Disk;

/// `DescribeVolumes`.
pub(crate) fn describe(world: &World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let ids = ask.form.list("VolumeId");
    let filters = ask.form.filters(&[
        "tag:*",
        "tag-key",
        "status",
        "volume-id",
        "availability-zone",
        "attachment.instance-id",
        "attachment.delete-on-termination",
    ])?;
    let page = page::read(ask, 5..=500)?;
    ask.ready()?;
    let there = world.engine.disks().iter().filter(|disk| disk.deleted.is_none());
    let there: Vec<(&Disk, &Volume)> = there
        .filter_map(|disk| Some((disk, world.volumes.get(&disk.id)?)))
        .filter(|(_, volume)| volume.region == ask.region.name)
        .collect();
    let known = |id: &&String| there.iter().any(|(disk, _)| disk.id == **id);
    if let Some(id) = ids.iter().find(|id| !known(id)) {
        return Err(unknown(id));
    }
    let status = |disk: &Disk| if disk.machine.is_some() { "in-use" } else { "available" };
    let fits = there.into_iter().filter(|(disk, volume)| {
        (ids.is_empty() || ids.contains(&disk.id))
            && filter::all(&filters, |name| match name {
                "status" => vec![status(disk).to_owned()],
                "volume-id" => vec![disk.id.clone()],
                "availability-zone" => vec![volume.zone.name.clone()],
                "attachment.instance-id" => disk.machine.iter().cloned().collect(),
                "attachment.delete-on-termination" => {
                    disk.machine.iter().map(|_| disk.dies_with_machine.to_string()).collect()
                }
                name => filter::tagged(world.tags_of(&disk.id), name),
            })
    });
    let (found, next) = page.cut(ask, world.page, fits.collect::<Vec<_>>())?;
    let mut xml = Xml::default();
    xml.items("volumeSet", found, |xml, (disk, volume)| {
        xml.leaf("volumeId", &disk.id)
            .leaf("size", disk.size)
            .leaf("availabilityZone", &volume.zone.name)
            .leaf("availabilityZoneId", &volume.zone.id)
            .leaf("status", status(disk))
            .leaf("createTime", iso(disk.created))
            .leaf("volumeType", &volume.kind)
            .leaf("encrypted", false)
            .items("attachmentSet", &disk.machine, |xml, machine| {
                xml.leaf("volumeId", &disk.id)
                    .leaf("instanceId", machine)
                    .leaf("device", &volume.device)
                    .leaf("status", "attached")
                    .leaf("attachTime", iso(disk.created))
                    .leaf("deleteOnTermination", disk.dies_with_machine);
            })
            .tags(world.tags_of(&disk.id));
    });
    xml.maybe("nextToken", next);
    Ok(xml)
}

/// `DeleteVolume`.
pub(crate) fn delete(world: &mut World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let id = ask.form.need("VolumeId")?;
    ask.ready()?;
    let here = world.volumes.get(&id).filter(|volume| volume.region == ask.region.name);
    let Some(instance) = here.map(|volume| volume.instance.clone()) else {
        return Err(unknown(&id));
    };
    ask.owns("ec2:DeleteVolume", std::slice::from_ref(&id), world)?;
    world.engine.delete_disk(&id).map_err(|refusal| match refusal {
        Refusal::State => {
            let message = format!("Volume {id} is currently attached to {instance}");
            Error::client("VolumeInUse", message)
        }
        _ => unknown(&id),
    })?;
    let mut xml = Xml::default();
    xml.leaf("return", true);
    Ok(xml)
}

fn unknown(id: &str) -> Error {
    Error::client("InvalidVolume.NotFound", format!("The volume '{id}' does not exist."))
}
