//! `RunInstances`.

use petaflop_cloud_box::ec2::keys::Policy;
use petaflop_cloud_box::ec2::kinds::Family;
use petaflop_cloud_box::ec2::quota::Quotas;

use crate::fixture::{Fixture, HOME, HOUR, KIND, SECOND, Signer, ZONE, own};

const TAGS: [(&str, &str); 8] = [
    ("TagSpecification.1.ResourceType", "instance"),
    ("TagSpecification.1.Tag.1.Key", "petaflop.dev/cluster-id"),
    ("TagSpecification.1.Tag.1.Value", "one"),
    ("TagSpecification.1.Tag.2.Key", "petaflop.dev/owner-uid"),
    ("TagSpecification.1.Tag.2.Value", "u & <v>"),
    ("TagSpecification.2.ResourceType", "volume"),
    ("TagSpecification.2.Tag.1.Key", "petaflop.dev/cluster-id"),
    ("TagSpecification.2.Tag.1.Value", "one"),
];

#[tokio::test]
async fn a_launch_answers_pending_with_its_tags_and_runs_a_while_later() {
    let fixture = Fixture::new();
    let seen = fixture.spot(&TAGS).await;
    assert_eq!((seen.status, seen.body.name()), (200, "RunInstancesResponse"));
    assert!(
        !seen.body.at("requestId").is_empty() && seen.body.at("reservationId").starts_with("r-0")
    );
    let item = seen.body.all("instancesSet/item").remove(0);
    assert_eq!((item.at("instanceState/code"), item.at("instanceState/name")), ("0", "pending"));
    assert_eq!(item.at("instanceLifecycle"), "spot");
    assert!(item.at("spotInstanceRequestId").starts_with("sir-"));
    assert_eq!((item.at("instanceType"), item.at("placement/availabilityZoneId")), (KIND, ZONE));
    let tags = item.all("tagSet/item").into_iter().map(|tag| (tag.at("key"), tag.at("value")));
    let tags: Vec<_> = tags.collect();
    let wanted = [("petaflop.dev/cluster-id", "one"), ("petaflop.dev/owner-uid", "u & <v>")];
    assert_eq!(tags, wanted);
    let id = seen.ids().remove(0);
    assert!(id.starts_with("i-0") && id.len() == 19);
    fixture.clock.advance(SECOND * 10);
    assert_eq!(fixture.state(&id).await, "running");
    let on_demand = fixture.launch(&[]).await;
    assert!(!on_demand.body.has("instancesSet/item/instanceLifecycle"));
}

#[tokio::test]
async fn a_fresh_instance_is_unknown_and_unlisted_for_a_while() {
    let fixture = Fixture::with(|setup| setup.pace.appear = SECOND * 60);
    let id = fixture.launch(&[]).await.ids().remove(0);
    fixture.clock.advance(SECOND * 59);
    assert!(fixture.listed(&[]).await.is_empty());
    for action in ["DescribeInstances", "TerminateInstances"] {
        let seen = fixture.ask(action, &[("InstanceId.1", &id)]).await;
        assert_eq!((seen.status, seen.code()), (400, "InvalidInstanceID.NotFound"));
        assert_eq!(seen.message(), format!("The instance ID '{id}' does not exist"));
    }
    fixture.clock.advance(SECOND);
    assert_eq!(fixture.listed(&[]).await, [id.as_str()]);
    assert_eq!(fixture.state(&id).await, "running");
}

#[tokio::test]
async fn the_same_token_and_parameters_are_the_same_instance() {
    let fixture = Fixture::new();
    let token = [("ClientToken", "claim-1")];
    let (one, two) = (fixture.launch(&token).await, fixture.launch(&token).await);
    assert_eq!(one.ids(), two.ids());
    assert_eq!(one.body.at("reservationId"), two.body.at("reservationId"));
    assert_eq!(fixture.machines().len(), 1);
    let id = one.ids().remove(0);
    fixture.clock.advance(SECOND * 10);
    fixture.terminate(&id).await;
    fixture.clock.advance(HOUR / 2);
    let again = fixture.launch(&token).await;
    assert_eq!(again.ids(), [id], "also when it is gone");
    assert_eq!(again.body.at("instancesSet/item/instanceState/name"), "terminated");
    fixture.clock.advance(HOUR * 25);
    assert_eq!(fixture.launch(&token).await.status, 200);
    assert_eq!(fixture.machines().len(), 2, "it is not remembered for ever");
}

#[tokio::test]
async fn the_same_token_with_other_parameters_is_a_mismatch() {
    let fixture = Fixture::new();
    assert_eq!(fixture.launch(&[("ClientToken", "a")]).await.status, 200);
    let fields = [("ClientToken", "a"), ("InstanceType", "c7i.xlarge")];
    let other = fixture.launch(&fields).await;
    assert_eq!((other.status, other.code()), (400, "IdempotentParameterMismatch"));
    assert_eq!(fixture.machines().len(), 1);
}

#[tokio::test]
async fn a_token_whose_launch_failed_may_be_used_again() {
    let fixture = Fixture::new();
    let product = fixture.product(false);
    let before = fixture.cloud.engine(|e| std::mem::take(&mut e.product_mut(product).capacity));
    let failed = fixture.launch(&[("ClientToken", "a")]).await;
    assert_eq!(failed.code(), "InsufficientInstanceCapacity");
    fixture.cloud.engine(|engine| engine.product_mut(product).capacity = before);
    let fields = [("ClientToken", "a"), ("MetadataOptions.HttpTokens", "required")];
    assert_eq!(fixture.launch(&fields).await.status, 200);
}

#[tokio::test]
async fn a_token_counts_in_its_region_alone() {
    let fixture = Fixture::new();
    let launch = async |region: &str| {
        let image = fixture.image(region, false);
        let fields = [
            ("ImageId", image.as_str()),
            ("InstanceType", KIND),
            ("MinCount", "1"),
            ("MaxCount", "1"),
            ("ClientToken", "a"),
        ];
        fixture.ask_in(region, "RunInstances", &fields).await.ids()
    };
    assert_ne!(launch(HOME).await, launch("us-east-1").await);
    fixture.clock.advance(SECOND * 10);
    assert_eq!(fixture.listed(&[]).await.len(), 1, "each region has its own instances");
}

#[tokio::test]
async fn a_rehearsal_says_whether_one_may_and_does_nothing() {
    let fixture = Fixture::with(|setup| {
        let policy = Policy::only(&["ec2:DescribeInstances"]);
        let key = petaflop_cloud_box::ec2::keys::Key { policy, ..setup.keys["AKIDBOX"].clone() };
        setup.keys.insert("AKIDLOOK".to_owned(), key);
    });
    let may = fixture.launch(&[("DryRun", "true")]).await;
    assert_eq!((may.status, may.code()), (412, "DryRunOperation"));
    let look = Signer::of("AKIDLOOK", "secret");
    for action in ["RunInstances", "TerminateInstances", "DescribeSpotPriceHistory"] {
        let seen = fixture.ask_as(&look, HOME, action, &[("DryRun", "true")]).await.unwrap();
        assert_eq!((seen.status, seen.code()), (403, "UnauthorizedOperation"), "{action}");
        assert!(seen.message().contains(&format!("ec2:{action}")));
    }
    let seen = fixture.ask_as(&look, HOME, "DescribeInstances", &[("DryRun", "true")]).await;
    assert_eq!(seen.unwrap().code(), "DryRunOperation");
    assert!(fixture.machines().is_empty());
}

#[tokio::test]
async fn what_breaks_the_contract_is_400_and_says_which() {
    let fixture = Fixture::new();
    let long = "QUFB".repeat(16 * 1024 / 3 + 1);
    let other_subnet = fixture.subnet(HOME, ZONE);
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[("ImageId", "")], "MissingParameter"),
        (&[("MinCount", "")], "MissingParameter"),
        (&[("MinCount", "2")], "InvalidParameterValue"),
        (&[("InstanceType", "c99.large")], "InvalidParameterValue"),
        (&[("ImageId", "ami-00000000000000000")], "InvalidAMIID.NotFound"),
        (&[("ImageId", "image")], "InvalidAMIID.Malformed"),
        (&[("SubnetId", "subnet-0")], "InvalidSubnetID.NotFound"),
        (&[("SecurityGroupId.1", "sg-0")], "InvalidGroup.NotFound"),
        (&[("UserData", "no base64!")], "InvalidUserData.Malformed"),
        (&[("UserData", &long)], "InvalidParameterValue"),
        (&[("InstanceType", "c7g.large")], "InvalidParameterValue"),
        (&[("Nonsense", "1")], "UnknownParameter"),
        (&[("InstanceInitiatedShutdownBehavior", "explode")], "InvalidParameterValue"),
        (&[("IamInstanceProfile.Name", "nobody")], "InvalidParameterValue"),
        (
            &[
                ("NetworkInterface.1.SubnetId", &other_subnet),
                ("NetworkInterface.1.DeviceIndex", "0"),
            ],
            "InvalidParameterCombination",
        ),
        (
            &[
                ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
                ("BlockDeviceMapping.1.Ebs.VolumeSize", "4"),
            ],
            "InvalidBlockDeviceMapping",
        ),
        (
            &[
                ("TagSpecification.1.ResourceType", "instance"),
                ("TagSpecification.1.Tag.1.Key", "aws:mine"),
                ("TagSpecification.1.Tag.1.Value", "x"),
            ],
            "InvalidParameterValue",
        ),
    ];
    fixture.clock.advance(HOUR);
    for (fields, code) in cases {
        let seen = fixture.launch(fields).await;
        assert_eq!((seen.status, seen.code()), (400, *code), "{fields:?}: {}", seen.message());
        fixture.clock.advance(SECOND);
    }
    assert!(fixture.machines().is_empty());
}

#[tokio::test]
async fn an_image_may_be_named_by_its_parameter() {
    let fixture = Fixture::new();
    let path = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64";
    let seen = fixture.launch(&[("ImageId", &format!("resolve:ssm:{path}"))]).await;
    assert_eq!(seen.body.at("instancesSet/item/imageId"), fixture.image(HOME, false));
}

#[tokio::test]
async fn a_mapping_of_the_images_root_is_its_root_and_any_other_one_more_volume() {
    let fixture = Fixture::new();
    let path = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id";
    let ubuntu =
        fixture.cloud.catalog(|catalog| catalog.region(HOME).unwrap().parameters[path].clone());
    let launch = async |device: &str| {
        let fields = [
            ("ImageId", ubuntu.as_str()),
            ("BlockDeviceMapping.1.DeviceName", device),
            ("BlockDeviceMapping.1.Ebs.VolumeSize", "80"),
        ];
        let seen = fixture.launch(&fields).await;
        let root = seen.body.at("instancesSet/item/rootDeviceName").to_owned();
        let mapped = seen.body.all("instancesSet/item/blockDeviceMapping/item");
        assert!(mapped.iter().all(|disk| disk.at("ebs/deleteOnTermination") == "true"));
        (root, seen.body.all("instancesSet/item/blockDeviceMapping/item").len())
    };
    assert_eq!(launch("/dev/sda1").await, ("/dev/sda1".to_owned(), 1));
    assert_eq!(launch("/dev/xvda").await, ("/dev/sda1".to_owned(), 2));
}

#[tokio::test]
async fn no_capacity_fails_at_once_as_a_servers_error_and_leaves_nothing() {
    let fixture = Fixture::new();
    for spot in [false, true] {
        let product = fixture.product(spot);
        fixture.cloud.engine(|engine| engine.product_mut(product).capacity = 0);
    }
    let seen = [fixture.launch(&[]).await, fixture.spot(&[]).await];
    for each in &seen {
        assert_eq!((each.status, each.code()), (500, "InsufficientInstanceCapacity"));
    }
    assert!(seen[0].message().contains("We currently do not have sufficient c7i.large capacity"));
    assert!(seen[1].message().contains("no Spot capacity available"));
    fixture.clock.advance(SECOND * 10);
    assert!(fixture.listed(&[]).await.is_empty() && fixture.machines().is_empty());
    let volumes = fixture.ask("DescribeVolumes", &[]).await;
    let requests = fixture.ask("DescribeSpotInstanceRequests", &[]).await;
    assert!(volumes.body.all("volumeSet/item").is_empty());
    assert!(requests.body.all("spotInstanceRequestSet/item").is_empty());
}

#[tokio::test]
async fn a_bid_below_the_price_is_too_low_and_one_above_pays_the_price() {
    let fixture = Fixture::new();
    let bid = "InstanceMarketOptions.SpotOptions.MaxPrice";
    let seen = fixture.spot(&[(bid, "0.0011")]).await;
    assert_eq!((seen.status, seen.code()), (400, "SpotMaxPriceTooLow"));
    assert!(seen.message().contains("0.001100"));
    assert_eq!(fixture.spot(&[(bid, "0.001")]).await.code(), "InvalidParameterValue");
    assert_eq!(fixture.spot(&[(bid, "cheap")]).await.code(), "InvalidParameterValue");
    let price = fixture.price();
    let id = fixture.running(true, &[(bid, "0.0888")]).await;
    fixture.clock.advance(HOUR);
    assert_eq!(fixture.billed(&id), price, "an hour of it");
}

#[tokio::test]
async fn spot_and_on_demand_have_quotas_of_their_own_by_family_and_region() {
    let fixture = Fixture::with(|setup| {
        setup.quotas = Quotas::default();
        setup.quotas.set(true, Family::Standard, 4);
        setup.quotas.set_in(HOME, false, Family::Standard, 2);
    });
    assert_eq!(fixture.launch(&[]).await.status, 200);
    let seen = fixture.launch(&[]).await;
    assert_eq!((seen.status, seen.code()), (400, "VcpuLimitExceeded"));
    assert!(seen.message().contains("current vCPU limit of 2"));
    let first = fixture.spot(&[]).await.ids().remove(0);
    assert_eq!(fixture.spot(&[]).await.status, 200);
    fixture.clock.advance(SECOND * 10);
    let seen = fixture.spot(&[]).await;
    assert_eq!((seen.status, seen.code()), (400, "MaxSpotInstanceCountExceeded"));
    fixture.terminate(&first).await;
    assert_eq!(fixture.spot(&[]).await.status, 200, "what ends leaves its place");
}

#[tokio::test]
async fn a_new_account_has_no_quota_for_accelerators() {
    let fixture = Fixture::with(|setup| setup.quotas = Quotas::new_account());
    let kind = fixture.cloud.catalog(|catalog| catalog.kind("g6.4xlarge").unwrap().name);
    let seen = fixture.spot(&[("InstanceType", kind)]).await;
    assert_eq!(seen.code(), "MaxSpotInstanceCountExceeded");
    assert_eq!(fixture.spot(&[]).await.status, 200);
}

#[tokio::test]
async fn a_type_that_a_zone_has_not_is_unsupported_there() {
    let fixture = Fixture::new();
    let kind = "p5.4xlarge";
    let seen = fixture.spot(&[("InstanceType", kind)]).await;
    assert_eq!((seen.status, seen.code()), (400, "Unsupported"));
    assert!(seen.message().contains("p5.4xlarge"));
}

#[tokio::test]
async fn a_full_subnet_has_a_code_of_its_own() {
    let fixture = Fixture::new();
    fixture.cloud.catalog(|catalog| {
        let region = catalog.regions.iter_mut().find(|region| region.name == HOME).unwrap();
        region.subnets.iter_mut().for_each(|subnet| subnet.addresses = 1);
    });
    let first = fixture.running(false, &[]).await;
    let seen = fixture.launch(&[]).await;
    assert_eq!((seen.status, seen.code()), (400, "InsufficientFreeAddressesInSubnet"));
    fixture.terminate(&first).await;
    fixture.clock.advance(SECOND * 40);
    assert_eq!(fixture.launch(&[]).await.status, 200);
}

#[tokio::test]
async fn several_are_launched_as_far_as_there_are_enough() {
    let fixture = Fixture::new();
    let product = fixture.product(false);
    fixture.cloud.engine(|engine| engine.product_mut(product).capacity = 3);
    let seen = fixture.launch(&[("MinCount", "2"), ("MaxCount", "5")]).await;
    assert_eq!(seen.ids().len(), 3);
    let seen = fixture.launch(&[("MinCount", "1"), ("MaxCount", "1")]).await;
    assert_eq!(seen.code(), "InsufficientInstanceCapacity");
}

#[tokio::test]
async fn an_instance_profile_needs_the_right_to_pass_it() {
    let fixture = Fixture::with(|setup| {
        setup.roles.insert("agent".to_owned(), Policy::only(&["ssm:GetParameter"]));
        let policy = Policy::only(&["ec2:RunInstances"]);
        let key = petaflop_cloud_box::ec2::keys::Key { policy, ..setup.keys["AKIDBOX"].clone() };
        setup.keys.insert("AKIDRUN".to_owned(), key);
    });
    let profile = [("IamInstanceProfile.Name", "agent"), ("ImageId", "ami-0"), ("MinCount", "1")];
    let fields: Vec<_> = profile.into_iter().chain([("MaxCount", "1")]).collect();
    let run = Signer::of("AKIDRUN", "secret");
    let seen = fixture.ask_as(&run, HOME, "RunInstances", &fields).await.unwrap();
    assert!(seen.code() == "UnauthorizedOperation" && seen.message().contains("iam:PassRole"));
    let seen = fixture.launch(&[("IamInstanceProfile.Name", "agent")]).await;
    let arn = seen.body.at("instancesSet/item/iamInstanceProfile/arn").to_owned();
    assert_eq!(arn, "arn:aws:iam::111122223333:instance-profile/agent");
    // What the machine is given is good for what its role may do.
    let boot = fixture.machines().remove(0).order.boot;
    let role = boot.metadata.unwrap().role.unwrap().1;
    let mut own = own();
    (own.key, own.secret, own.token) = (role.id, role.secret, Some(role.token));
    let seen = fixture.ask_as(&own, HOME, "DescribeInstances", &[]).await.unwrap();
    assert_eq!(seen.code(), "UnauthorizedOperation");
    own.token = None;
    let seen = fixture.ask_as(&own, HOME, "DescribeInstances", &[]).await.unwrap();
    assert_eq!(seen.code(), "AuthFailure", "without its token it is nobody's key");
}
