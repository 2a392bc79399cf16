//! What is listed: instances by filters and pages, types, places, volumes, requests, tags.

use std::collections::BTreeSet;

use crate::fixture::{Fixture, HOME, SECOND, ZONE};
use crate::xml::Node;

/// Items of a set.
async fn items(
    fixture: &Fixture,
    region: &str,
    action: &str,
    set: &str,
    fields: &[(&str, &str)],
) -> Vec<Node> {
    let seen = fixture.ask_in(region, action, fields).await;
    assert_eq!(seen.status, 200, "{}", seen.text);
    seen.body.all(&format!("{set}/item")).into_iter().cloned().collect()
}

fn texts(items: &[Node], name: &str) -> BTreeSet<String> {
    items.iter().map(|item| item.at(name).to_owned()).collect()
}

#[tokio::test]
async fn instances_are_found_by_tag_state_token_and_life_cycle() {
    let fixture = Fixture::new();
    let tag = |value: &'static str| {
        [
            ("TagSpecification.1.ResourceType", "instance"),
            ("TagSpecification.1.Tag.1.Key", "petaflop.dev/cluster-id"),
            ("TagSpecification.1.Tag.1.Value", value),
        ]
    };
    let mut one = tag("one").to_vec();
    one.push(("ClientToken", "token-1"));
    let spot = fixture.running(true, &one).await;
    let on_demand = fixture.running(false, &tag("two")).await;
    let ended = fixture.running(false, &tag("one")).await;
    fixture.terminate(&ended).await;
    let found = async |filters: &[(&str, &[&str])]| -> BTreeSet<String> {
        let mut fields = Vec::new();
        for (number, (name, values)) in (1..).zip(filters) {
            fields.push((format!("Filter.{number}.Name"), (*name).to_owned()));
            for (place, value) in (1..).zip(*values) {
                fields.push((format!("Filter.{number}.Value.{place}"), (*value).to_owned()));
            }
        }
        let fields: Vec<_> = fields.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        fixture.listed(&fields).await.into_iter().collect()
    };
    let set = |ids: &[&String]| ids.iter().map(|id| (*id).clone()).collect::<BTreeSet<_>>();
    let own = ("tag:petaflop.dev/cluster-id", &["one"] as &[&str]);
    assert_eq!(found(&[own]).await, set(&[&spot, &ended]));
    let alive = ("instance-state-name", &["pending", "running", "stopping", "stopped"] as &[&str]);
    assert_eq!(found(&[own, alive]).await, set(&[&spot]));
    assert_eq!(found(&[("tag-key", &["petaflop.dev/*"])]).await.len(), 3);
    assert_eq!(found(&[("client-token", &["token-1"])]).await, set(&[&spot]));
    assert_eq!(found(&[("instance-id", &[&on_demand])]).await, set(&[&on_demand]));
    assert_eq!(found(&[("instance-lifecycle", &["spot"])]).await, set(&[&spot]));
    let unknown = [("Filter.1.Name", "colour"), ("Filter.1.Value.1", "red")];
    let seen = fixture.ask("DescribeInstances", &unknown).await;
    assert_eq!((seen.status, seen.code()), (400, "InvalidParameterValue"));
}

#[tokio::test]
async fn instances_come_in_pages_until_there_is_no_token() {
    let fixture = Fixture::new();
    fixture.launch(&[("MinCount", "12"), ("MaxCount", "12")]).await;
    fixture.clock.advance(SECOND * 10);
    let (mut token, mut ids, mut pages) = (String::new(), BTreeSet::new(), 0);
    loop {
        let mut fields = vec![("MaxResults", "5")];
        if !token.is_empty() {
            fields.push(("NextToken", &token));
        }
        let seen = fixture.ask("DescribeInstances", &fields).await;
        let page = seen.body.all("reservationSet/item/instancesSet/item");
        ids.extend(page.into_iter().map(|item| item.at("instanceId").to_owned()));
        pages += 1;
        token = seen.body.at("nextToken").to_owned();
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((ids.len(), pages), (12, 3));
    let seen = fixture.ask("DescribeInstances", &[("MaxResults", "4")]).await;
    assert_eq!(seen.code(), "InvalidParameterValue");
    let id = ids.into_iter().next().unwrap();
    let both = [("MaxResults", "5"), ("InstanceId.1", id.as_str())];
    let seen = fixture.ask("DescribeInstances", &both).await;
    assert_eq!(seen.code(), "InvalidParameterCombination");
}

#[tokio::test]
async fn a_status_is_told_of_what_runs_unless_all_are_asked_for() {
    let fixture = Fixture::new();
    let runs = fixture.running(false, &[]).await;
    let ends = fixture.running(false, &[]).await;
    fixture.terminate(&ends).await;
    let status = async |fields: &[(&str, &str)]| {
        items(&fixture, HOME, "DescribeInstanceStatus", "instanceStatusSet", fields).await
    };
    let seen = status(&[]).await;
    assert_eq!((seen.len(), seen[0].at("instanceId")), (1, runs.as_str()));
    assert_eq!(seen[0].at("systemStatus/status"), "ok");
    let all = status(&[("IncludeAllInstances", "true")]).await;
    let gone = all.iter().find(|item| item.at("instanceId") == ends).unwrap();
    assert_eq!((all.len(), gone.at("instanceStatus/status")), (2, "not-applicable"));
}

#[tokio::test]
async fn zone_names_are_the_accounts_own_and_a_local_zone_says_so() {
    let fixture = Fixture::new();
    let action = "DescribeAvailabilityZones";
    let zones = items(&fixture, "us-east-1", action, "availabilityZoneInfo", &[]).await;
    let id = |name: &str| {
        let own = zones.iter().find(|zone| zone.at("zoneName") == name);
        own.map(|zone| zone.at("zoneId").to_owned())
    };
    assert_eq!(id("us-east-1a").as_deref(), Some("use1-az4"), "a is not 1");
    let local = zones.iter().find(|zone| zone.at("zoneType") == "local-zone").unwrap();
    assert_eq!(local.at("zoneId"), "use1-atl2-az1");
    assert_eq!((local.at("optInStatus"), local.at("zoneState")), ("opted-in", "available"));
    let filter = [("Filter.1.Name", "zone-type"), ("Filter.1.Value.1", "availability-zone")];
    let home = items(&fixture, "us-east-1", action, "availabilityZoneInfo", &filter).await;
    assert_eq!(home.len(), 4);
    assert!(texts(&home, "optInStatus").contains("opt-in-not-required"));
}

#[tokio::test]
async fn a_part_of_a_gpu_counts_as_none_and_names_are_short() {
    let fixture = Fixture::new();
    let mut seen = Vec::new();
    for region in [HOME, "us-east-1", "eu-west-2"] {
        let filter = [
            ("Filter.1.Name", "instance-type"),
            ("Filter.1.Value.1", "g6f.2xlarge"),
            ("Filter.1.Value.2", "p4d*.24xlarge"),
            ("Filter.1.Value.3", "g6.xlarge"),
        ];
        seen.extend(
            items(&fixture, region, "DescribeInstanceTypes", "instanceTypeSet", &filter).await,
        );
    }
    let gpu = |name: &str, field: &str| {
        let kind = seen.iter().find(|kind| kind.at("instanceType") == name).unwrap();
        kind.at(&format!("gpuInfo/gpus/item/{field}")).to_owned()
    };
    assert_eq!(gpu("g6f.2xlarge", "count"), "0");
    assert_eq!(gpu("g6f.2xlarge", "logicalGpuCount"), "1");
    assert_eq!(gpu("g6f.2xlarge", "gpuPartitionSize"), "0.25");
    assert_eq!(
        (gpu("p4d.24xlarge", "name"), gpu("p4de.24xlarge", "name")),
        ("A100".into(), "A100".into())
    );
    assert_eq!(gpu("p4d.24xlarge", "memoryInfo/sizeInMiB"), "40960");
    assert_eq!(gpu("p4de.24xlarge", "memoryInfo/sizeInMiB"), "81920");
    let l4 = seen.iter().find(|kind| kind.at("instanceType") == "g6.xlarge").unwrap();
    assert_eq!((l4.at("vCpuInfo/defaultVCpus"), l4.at("memoryInfo/sizeInMiB")), ("4", "16384"));
    assert_eq!(l4.at("gpuInfo/totalGpuMemoryInMiB"), "22888");
    assert_eq!(l4.all("supportedUsageClasses/item").len(), 2);
}

#[tokio::test]
async fn types_come_in_pages_or_by_name_and_an_unknown_one_is_an_error() {
    let fixture = Fixture::new();
    let action = "DescribeInstanceTypes";
    let named = [("InstanceType.1", "c7g.large"), ("InstanceType.2", "m7i.large")];
    let seen = items(&fixture, HOME, action, "instanceTypeSet", &named).await;
    assert_eq!(texts(&seen, "processorInfo/supportedArchitectures/item").len(), 2);
    let seen = fixture.ask(action, &[("InstanceType.1", "c99.large")]).await;
    assert_eq!((seen.status, seen.code()), (400, "InvalidInstanceType"));
    let both = [("InstanceType.1", "c7g.large"), ("MaxResults", "50")];
    assert_eq!(fixture.ask(action, &both).await.code(), "InvalidParameterCombination");
    let first = fixture.ask(action, &[("MaxResults", "50")]).await;
    assert_eq!(first.body.all("instanceTypeSet/item").len(), 50);
    assert!(!first.body.at("nextToken").is_empty());
    assert_eq!(fixture.ask(action, &[("MaxResults", "101")]).await.code(), "InvalidParameterValue");
}

#[tokio::test]
async fn offerings_are_told_by_region_zone_or_id_of_the_zone() {
    let fixture = Fixture::new();
    let ask = async |kind: &str| {
        let fields = [
            ("LocationType", kind),
            ("Filter.1.Name", "instance-type"),
            ("Filter.1.Value.1", "c7i.large"),
        ];
        let action = "DescribeInstanceTypeOfferings";
        texts(&items(&fixture, HOME, action, "instanceTypeOfferingSet", &fields).await, "location")
    };
    assert!(ask("region").await.iter().eq([HOME]));
    assert!(ask("availability-zone").await.contains("us-east-2a"));
    assert_eq!(ask("availability-zone-id").await.len(), 3);
    let fields = [("LocationType", "availability-zone-id"), ("MaxResults", "1000")];
    let all =
        items(&fixture, HOME, "DescribeInstanceTypeOfferings", "instanceTypeOfferingSet", &fields)
            .await;
    let offered = |name: &str| all.iter().filter(|row| row.at("instanceType") == name).count();
    assert!(
        all.iter().any(|row| offered(row.at("instanceType")) < 3),
        "not everything is everywhere"
    );
}

#[tokio::test]
async fn subnets_groups_and_images_are_the_regions_own() {
    let fixture = Fixture::new();
    let subnets = items(&fixture, HOME, "DescribeSubnets", "subnetSet", &[]).await;
    assert_eq!(texts(&subnets, "availabilityZoneId").len(), 3, "one in each zone");
    let first = subnets[0].at("subnetId").to_owned();
    let free: u32 = subnets[0].at("availableIpAddressCount").parse().unwrap();
    fixture.launch(&[("SubnetId", &first)]).await;
    let named = [("SubnetId.1", first.as_str())];
    let after = items(&fixture, HOME, "DescribeSubnets", "subnetSet", &named).await;
    assert_eq!(after[0].at("availableIpAddressCount").parse(), Ok(free - 1));
    let missing = fixture.ask("DescribeSubnets", &[("SubnetId.1", "subnet-0")]).await;
    assert_eq!(missing.code(), "InvalidSubnetID.NotFound");
    let groups = items(&fixture, HOME, "DescribeSecurityGroups", "securityGroupInfo", &[]).await;
    assert_eq!(texts(&groups, "groupName").len(), 2);
    let missing = fixture.ask("DescribeSecurityGroups", &[("GroupId.1", "sg-0")]).await;
    assert_eq!(missing.code(), "InvalidGroup.NotFound");
    let image = fixture.image(HOME, true);
    let images =
        items(&fixture, HOME, "DescribeImages", "imagesSet", &[("ImageId.1", &image)]).await;
    assert_eq!((images[0].at("architecture"), images[0].at("imageState")), ("arm64", "available"));
    let elsewhere = fixture.ask_in("us-east-1", "DescribeImages", &[("ImageId.1", &image)]).await;
    assert_eq!(elsewhere.code(), "InvalidAMIID.NotFound");
}

#[tokio::test]
async fn a_volume_that_does_not_go_with_its_instance_stays_and_can_be_deleted() {
    let fixture = Fixture::new();
    let fields = [
        ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.Ebs.VolumeSize", "50"),
        ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "true"),
        ("BlockDeviceMapping.2.DeviceName", "/dev/sdb"),
        ("BlockDeviceMapping.2.Ebs.VolumeSize", "100"),
        ("BlockDeviceMapping.2.Ebs.DeleteOnTermination", "false"),
        ("TagSpecification.1.ResourceType", "volume"),
        ("TagSpecification.1.Tag.1.Key", "petaflop.dev/cluster-id"),
        ("TagSpecification.1.Tag.1.Value", "one"),
    ];
    let id = fixture.running(false, &fields).await;
    let tagged = [("Filter.1.Name", "tag:petaflop.dev/cluster-id"), ("Filter.1.Value.1", "one")];
    let volumes = async || items(&fixture, HOME, "DescribeVolumes", "volumeSet", &tagged).await;
    let seen = volumes().await;
    assert_eq!(texts(&seen, "size"), ["50".to_owned(), "100".to_owned()].into());
    assert!(seen.iter().all(|volume| volume.at("attachmentSet/item/instanceId") == id));
    let data = seen.iter().find(|volume| volume.at("size") == "100").unwrap();
    let data = data.at("volumeId").to_owned();
    let busy = fixture.ask("DeleteVolume", &[("VolumeId", &data)]).await;
    assert_eq!((busy.status, busy.code()), (400, "VolumeInUse"));
    fixture.terminate(&id).await;
    fixture.clock.advance(SECOND * 40);
    let left = volumes().await;
    assert_eq!((left.len(), left[0].at("volumeId")), (1, data.as_str()));
    assert_eq!(left[0].at("status"), "available");
    assert!(fixture.cloud.engine(|engine| engine.invoice().open() == [data.as_str()]));
    let deleted = fixture.ask("DeleteVolume", &[("VolumeId", &data)]).await;
    assert_eq!(deleted.body.at("return"), "true");
    let again = fixture.ask("DeleteVolume", &[("VolumeId", &data)]).await;
    assert_eq!(again.code(), "InvalidVolume.NotFound");
    assert!(fixture.cloud.engine(|engine| engine.invoice().open().is_empty()));
}

#[tokio::test]
async fn cancelling_a_spot_request_leaves_its_instance_running() {
    let fixture = Fixture::new();
    let id = fixture.running(true, &[]).await;
    let request = fixture.instance(&id).await.at("spotInstanceRequestId").to_owned();
    let named = [("SpotInstanceRequestId.1", request.as_str())];
    let seen = fixture.ask("CancelSpotInstanceRequests", &named).await;
    assert_eq!(seen.body.at("spotInstanceRequestSet/item/state"), "cancelled");
    let action = "DescribeSpotInstanceRequests";
    let seen = items(&fixture, HOME, action, "spotInstanceRequestSet", &named).await;
    assert_eq!(seen[0].at("status/code"), "request-canceled-and-instance-running");
    assert_eq!(fixture.state(&id).await, "running");
    let unknown = [("SpotInstanceRequestId.1", "sir-nothing")];
    let seen = fixture.ask("CancelSpotInstanceRequests", &unknown).await;
    assert_eq!(seen.code(), "InvalidSpotInstanceRequestID.NotFound");
}

#[tokio::test]
async fn a_request_of_one_that_was_terminated_is_closed_by_the_user() {
    let fixture = Fixture::new();
    let id = fixture.running(true, &[("InstanceMarketOptions.SpotOptions.MaxPrice", "0.05")]).await;
    fixture.terminate(&id).await;
    let filter = [("Filter.1.Name", "state"), ("Filter.1.Value.1", "closed")];
    let action = "DescribeSpotInstanceRequests";
    let seen = items(&fixture, HOME, action, "spotInstanceRequestSet", &filter).await;
    assert_eq!(seen[0].at("status/code"), "instance-terminated-by-user");
    assert_eq!((seen[0].at("spotPrice"), seen[0].at("instanceId")), ("0.050000", id.as_str()));
}

#[tokio::test]
async fn tags_are_added_or_changed_later() {
    let fixture = Fixture::new();
    let id = fixture.running(false, &[]).await;
    for value in ["one", "two"] {
        let fields = [("ResourceId.1", id.as_str()), ("Tag.1.Key", "k"), ("Tag.1.Value", value)];
        assert_eq!(fixture.ask("CreateTags", &fields).await.body.at("return"), "true");
    }
    let seen = fixture.instance(&id).await;
    let tags = seen.all("tagSet/item");
    assert_eq!((tags.len(), tags[0].at("value")), (1, "two"));
    let unknown = [("ResourceId.1", "i-0123456789abcdef0"), ("Tag.1.Key", "k")];
    assert_eq!(fixture.ask("CreateTags", &unknown).await.code(), "InvalidInstanceID.NotFound");
    assert_eq!(seen.at("placement/availabilityZoneId"), ZONE);
}
