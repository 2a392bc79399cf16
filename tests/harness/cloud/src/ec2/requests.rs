//! Spot requests, each the shadow of its instance; and tags.

use super::error::Error;
use super::filter;
use super::launch::reserved;
use super::page;
use super::world::{Ask, SpotRequest, World, dollars, iso};
use super::xml::Xml;
use crate::engine::machine::{Machine, Why};
use jiff::Timestamp;

/// State, code of the status, its words, and when it came to that.
fn status(
    request: &SpotRequest,
    machine: &Machine,
) -> (&'static str, &'static str, &'static str, Timestamp) {
    let ended = |code, message| ("closed", code, message);
    let ((state, code, message), at) = match (machine.leaving, machine.noticed) {
        (Some((at, why)), _) => {
            let status = match why {
                Why::Price => ended(
                    "instance-terminated-by-price",
                    "Your Spot instance was terminated because the Spot price exceeded your bid.",
                ),
                Why::Evicted => ended(
                    "instance-terminated-no-capacity",
                    "Your Spot instance was terminated because there is no Spot capacity available.",
                ),
                _ => ended(
                    "instance-terminated-by-user",
                    "Your Spot instance was terminated because you terminated it.",
                ),
            };
            (status, at)
        }
        (None, Some(notice)) => {
            let message = "Your Spot instance is marked for termination.";
            (("active", "marked-for-termination", message), notice.given)
        }
        (None, None) => {
            let message = "Your spot request is fulfilled.";
            (("active", "fulfilled", message), request.created)
        }
    };
    match (request.cancelled, machine.leaving) {
        (Some(at), None) => (
            "cancelled",
            "request-canceled-and-instance-running",
            "Your Spot request is canceled, but your instance is still running.",
            at,
        ),
        (Some(_), Some(_)) => ("cancelled", code, message, at),
        (None, _) => (state, code, message, at),
    }
}

impl World {
    /// Spot requests of a region that can be seen: those whose instances can be.
    fn spot_requests<'a>(
        &'a self,
        region: &'a str,
    ) -> impl Iterator<Item = (&'a String, &'a SpotRequest, &'a Machine)> {
        let own = self.requests.iter().filter(move |(_, request)| request.region == region);
        own.filter_map(|(id, request)| {
            let machine = self.engine.machine(&request.instance)?;
            self.engine.shows(machine).then_some((id, request, machine))
        })
    }
}

/// `DescribeSpotInstanceRequests`.
pub(crate) fn describe(world: &World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let ids = ask.form.list("SpotInstanceRequestId");
    let filters = ask.form.filters(&[
        "tag:*",
        "tag-key",
        "state",
        "status-code",
        "instance-id",
        "spot-instance-request-id",
    ])?;
    let page = page::read(ask, 5..=1000)?;
    ask.ready()?;
    let seen: Vec<_> = world.spot_requests(&ask.region.name).collect();
    known(&ids, seen.iter().map(|(id, ..)| *id))?;
    let fits = seen.into_iter().filter(|(id, request, machine)| {
        (ids.is_empty() || ids.contains(id))
            && filter::all(&filters, |name| match name {
                "state" => vec![status(request, machine).0.to_owned()],
                "status-code" => vec![status(request, machine).1.to_owned()],
                "instance-id" => vec![request.instance.clone()],
                "spot-instance-request-id" => vec![(*id).clone()],
                name => filter::tagged(world.tags_of(id), name),
            })
    });
    let (found, next) = page.cut(ask, world.page, fits.collect::<Vec<_>>())?;
    let mut xml = Xml::default();
    xml.items("spotInstanceRequestSet", found, |xml, (id, request, machine)| {
        let (state, code, message, at) = status(request, machine);
        xml.leaf("spotInstanceRequestId", id)
            .leaf("spotPrice", dollars(request.bid))
            .leaf("type", "one-time")
            .leaf("state", state)
            .within("status", |xml| {
                xml.leaf("code", code).leaf("message", message).leaf("updateTime", iso(at));
            })
            .leaf("instanceId", &request.instance)
            .leaf("createTime", iso(request.created))
            .leaf("productDescription", "Linux/UNIX")
            .leaf("launchedAvailabilityZone", &request.zone)
            .leaf("instanceInterruptionBehavior", "terminate")
            .tags(world.tags_of(id));
    });
    xml.maybe("nextToken", next);
    Ok(xml)
}

/// `CancelSpotInstanceRequests`: the instance runs on.
pub(crate) fn cancel(world: &mut World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let ids = ask.form.list("SpotInstanceRequestId");
    if ids.is_empty() {
        return Err(Error::missing("SpotInstanceRequestId"));
    }
    ask.ready()?;
    let seen: Vec<_> = world.spot_requests(&ask.region.name).map(|(id, ..)| id.clone()).collect();
    known(&ids, seen.iter())?;
    ask.owns("ec2:CancelSpotInstanceRequests", &ids, world)?;
    let now = world.engine.now();
    for id in &ids {
        if let Some(request) = world.requests.get_mut(id) {
            request.cancelled.get_or_insert(now);
        }
    }
    let mut xml = Xml::default();
    xml.items("spotInstanceRequestSet", &ids, |xml, id| {
        xml.leaf("spotInstanceRequestId", id).leaf("state", "cancelled");
    });
    Ok(xml)
}

fn known<'a>(ids: &[String], seen: impl Iterator<Item = &'a String> + Clone) -> Result<(), Error> {
    match ids.iter().find(|id| !seen.clone().any(|known| known == *id)) {
        None => Ok(()),
        Some(id) => {
            let message = format!("The spot instance request ID '{id}' does not exist");
            Err(Error::client("InvalidSpotInstanceRequestID.NotFound", message))
        }
    }
}

/// `CreateTags`.
pub(crate) fn tag(world: &mut World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let (ids, tags) = (ask.form.list("ResourceId"), ask.form.tags("Tag"));
    if ids.is_empty() {
        return Err(Error::missing("ResourceIdSet"));
    }
    if tags.is_empty() {
        return Err(Error::missing("TagSet"));
    }
    if let Some((key, _)) = tags.iter().find(|(key, _)| key.starts_with("aws:")) {
        return Err(reserved(key));
    }
    ask.ready()?;
    let region = &ask.region.name;
    for id in &ids {
        if id.starts_with("i-") {
            world.found(region, std::slice::from_ref(id))?;
            continue;
        }
        let there = world.volumes.get(id).is_some_and(|volume| volume.region == *region)
            || world.requests.get(id).is_some_and(|request| request.region == *region)
            || ask.region.subnets.iter().any(|subnet| subnet.id == *id)
            || ask.region.groups.iter().any(|group| group.id == *id);
        if !there {
            let message = format!("The ID '{id}' is not valid");
            return Err(Error::client("InvalidID", message));
        }
    }
    for id in &ids {
        world.tag(id, &tags);
    }
    let mut xml = Xml::default();
    xml.leaf("return", true);
    Ok(xml)
}
