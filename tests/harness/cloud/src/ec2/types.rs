//! Instance types, and where they are offered.

use std::collections::BTreeSet;

use super::catalog::Zone;
use super::error::Error;
use super::filter;
use super::kinds::Kind;
use super::page;
use super::world::{Ask, World};
use super::xml::Xml;

/// `DescribeInstanceTypes`: those of the region.
pub(crate) fn describe(world: &World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let wanted = ask.form.list("InstanceType");
    let elsewhere = ask.form.flag("IncludeUnsupportedInRegion")?;
    let filters = ask.form.filters(&[
        "instance-type",
        "supported-usage-class",
        "processor-info.supported-architecture",
        "current-generation",
    ])?;
    let page = page::read(ask, 5..=100)?;
    if !wanted.is_empty() && page.is_asked() {
        let message = "The parameter instanceTypes cannot be used with the parameter maxResults";
        return Err(Error::combination(message));
    }
    ask.ready()?;
    let sold = sold(world, ask);
    let here = |kind: &&Kind| elsewhere || sold.iter().any(|(name, _)| *name == kind.name);
    let kinds: Vec<&Kind> = world.catalog.kinds.iter().filter(here).collect();
    let known = |name: &&String| kinds.iter().any(|kind| kind.name == **name);
    let unknown: Vec<&str> =
        wanted.iter().filter(|name| !known(name)).map(String::as_str).collect();
    if !unknown.is_empty() {
        let message =
            format!("The following supplied instance types do not exist: [{}]", unknown.join(", "));
        return Err(Error::client("InvalidInstanceType", message));
    }
    let fits = kinds.into_iter().filter(|kind| {
        (wanted.is_empty() || wanted.iter().any(|name| name == kind.name))
            && filter::all(&filters, |name| match name {
                "instance-type" => vec![kind.name.to_owned()],
                "supported-usage-class" => {
                    usage(kind).iter().map(|class| (*class).to_owned()).collect()
                }
                "processor-info.supported-architecture" => vec![kind.architecture().to_owned()],
                _ => vec![is_current(kind).to_string()],
            })
    });
    let (kinds, next) = page.cut(ask, world.page, fits.collect::<Vec<_>>())?;
    let mut xml = Xml::default();
    xml.items("instanceTypeSet", kinds, view);
    xml.maybe("nextToken", next);
    Ok(xml)
}

/// What is sold in the region in any way: type and id of the zone.
fn sold<'a>(world: &'a World, ask: &Ask<'_>) -> BTreeSet<(&'a str, &'a str)> {
    let here = world.engine.products().filter(|(_, product)| product.region == ask.region.name);
    here.filter_map(|(_, product)| Some((product.kind.as_str(), product.zone.as_deref()?)))
        .collect()
}

/// What has no list price is sold in capacity blocks alone.
fn usage(kind: &Kind) -> &'static [&'static str] {
    match (kind.name, kind.price) {
        (_, 0) => &["capacity-block"],
        ("p5.4xlarge", _) => &["on-demand"],
        _ => &["on-demand", "spot"],
    }
}

fn is_current(kind: &Kind) -> bool {
    !kind.name.starts_with("p3")
}

fn view(xml: &mut Xml, kind: &Kind) {
    xml.leaf("instanceType", kind.name)
        .leaf("currentGeneration", is_current(kind))
        .texts("supportedUsageClasses", usage(kind))
        .texts("supportedRootDeviceTypes", ["ebs"])
        .leaf("bareMetal", kind.name.ends_with(".metal"))
        .within("processorInfo", |xml| {
            xml.texts("supportedArchitectures", [kind.architecture()]);
        })
        .within("vCpuInfo", |xml| {
            xml.leaf("defaultVCpus", kind.vcpus);
        })
        .within("memoryInfo", |xml| {
            xml.leaf("sizeInMiB", kind.memory * 1024);
        });
    let Some(accelerator) = &kind.accelerator else { return };
    let (whole, logical) = (accelerator.permille / 1000, (accelerator.permille / 1000).max(1));
    let total = logical * accelerator.mib;
    let memory = |xml: &mut Xml| {
        xml.leaf("sizeInMiB", accelerator.mib);
    };
    if accelerator.maker() == "AWS" {
        xml.within("neuronInfo", |xml| {
            xml.items("neuronDevices", [()], |xml, ()| {
                xml.leaf("count", whole)
                    .leaf("name", accelerator.name)
                    .within("memoryInfo", memory);
            });
            xml.leaf("totalNeuronDeviceMemoryInMiB", total);
        });
        return;
    }
    xml.within("gpuInfo", |xml| {
        xml.items("gpus", [()], |xml, ()| {
            // A part of one counts as none, and as one that is only thought.
            xml.leaf("name", accelerator.name)
                .leaf("manufacturer", accelerator.maker())
                .leaf("count", whole)
                .leaf("logicalGpuCount", logical)
                .leaf("gpuPartitionSize", f64::from(accelerator.permille.min(1000)) / 1000.0)
                .within("memoryInfo", memory);
        });
        xml.leaf("totalGpuMemoryInMiB", total);
    });
}

/// `DescribeInstanceTypeOfferings`.
pub(crate) fn offerings(world: &World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let location = ask.form.text("LocationType").unwrap_or_else(|| "region".to_owned());
    let filters = ask.form.filters(&["instance-type", "location"])?;
    let page = page::read(ask, 5..=1000)?;
    ask.ready()?;
    let name: fn(&Zone) -> &str = match location.as_str() {
        "availability-zone" => |zone| &zone.name,
        "availability-zone-id" => |zone| &zone.id,
        "region" => |_| "",
        "outpost" => return Err(Error::not_served("outposts")),
        other => return Err(Error::value(other, "LocationType")),
    };
    let mut rows: Vec<(&str, &str)> = Vec::new();
    let sold = sold(world, ask);
    for kind in &world.catalog.kinds {
        for zone in ask.region.zones.iter().filter(|zone| sold.contains(&(kind.name, &zone.id))) {
            let place = if location == "region" { ask.region.name.as_str() } else { name(zone) };
            rows.push((kind.name, place));
        }
    }
    rows.dedup();
    rows.retain(|(kind, place)| {
        filter::all(&filters, |name| {
            vec![if name == "location" { (*place).to_owned() } else { (*kind).to_owned() }]
        })
    });
    let (rows, next) = page.cut(ask, world.page, rows)?;
    let mut xml = Xml::default();
    xml.items("instanceTypeOfferingSet", rows, |xml, (kind, place)| {
        xml.leaf("instanceType", kind).leaf("locationType", &location).leaf("location", place);
    });
    xml.maybe("nextToken", next);
    Ok(xml)
}
