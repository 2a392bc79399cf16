//! `RunInstances`: what is asked for. How it is bought: `buy`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::error::Error;
use super::form::{Form, Tag};
use super::world::{Ask, MetadataOptions, micros};

/// Bytes of user-data before they are encoded.
const LONGEST_USER_DATA: usize = 16 * 1024;
/// A bid must be above this, micro-dollars an hour.
const LOWEST_BID: i64 = 1000;

/// A volume that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) device: String,
    pub(crate) size: Option<u32>,
    pub(crate) kind: String,
    /// It goes with its instance.
    pub(crate) dies: bool,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) image: String,
    pub(crate) kind: String,
    pub(crate) least: u32,
    pub(crate) most: u32,
    pub(crate) token: Option<String>,
    pub(crate) subnet: Option<String>,
    /// By name or by id.
    pub(crate) zone: Option<String>,
    pub(crate) groups: Vec<String>,
    /// Nothing: the subnet says.
    pub(crate) public: Option<bool>,
    pub(crate) spot: bool,
    /// The most that is paid; nothing: what it costs on demand.
    pub(crate) bid: Option<i64>,
    /// Kind of resource, and its tags.
    pub(crate) tags: Vec<(String, Vec<Tag>)>,
    pub(crate) user_data: Vec<u8>,
    pub(crate) profile: Option<String>,
    pub(crate) disks: Vec<Disk>,
    pub(crate) ends_when_shut_down: bool,
    pub(crate) protected: bool,
    pub(crate) metadata: MetadataOptions,
}

impl Launch {
    /// Reads it and holds it against the contract; whether what it names exists is not asked here.
    pub(crate) fn read(ask: &Ask<'_>) -> Result<Self, Error> {
        let form = ask.form;
        let image = form.need("ImageId")?;
        let kind = form.text("InstanceType").unwrap_or_else(|| "m1.small".to_owned());
        let count = |name: &str| form.read::<u32>(name)?.ok_or_else(|| Error::missing(name));
        let (least, most) = (count("MinCount")?, count("MaxCount")?);
        if least == 0 || least > most {
            return Err(Error::value(&least.to_string(), "MinCount"));
        }
        let token = form.text("ClientToken");
        if token.as_ref().is_some_and(|token| token.len() > 64 || !token.is_ascii()) {
            return Err(Error::value(&token.unwrap_or_default(), "clientToken"));
        }
        let (spot, bid) = market(form)?;
        let Network { subnet, groups, public } = network(form)?;
        let zone = form.text("Placement.AvailabilityZone");
        let zone = zone.or_else(|| form.text("Placement.AvailabilityZoneId"));
        let tenancy = form.text("Placement.Tenancy");
        if tenancy.is_some_and(|tenancy| tenancy != "default") {
            return Err(Error::not_served("dedicated tenancy"));
        }
        let behavior = form.text("InstanceInitiatedShutdownBehavior");
        let ends_when_shut_down = match behavior.as_deref() {
            None | Some("stop") => false,
            Some("terminate") => true,
            Some(other) => return Err(Error::value(other, "InstanceInitiatedShutdownBehavior")),
        };
        let name = form.text("IamInstanceProfile.Name");
        let arn = form.text("IamInstanceProfile.Arn");
        let profile = name.or_else(|| Some(arn?.rsplit('/').next()?.to_owned()));
        // They change nothing that the box models.
        for ignored in ["KeyName", "EbsOptimized", "Monitoring.Enabled"] {
            form.text(ignored);
        }
        let launch = Self {
            image,
            kind,
            least,
            most,
            token,
            subnet,
            zone,
            groups,
            public,
            spot,
            bid,
            tags: tags(form)?,
            user_data: user_data(form)?,
            profile,
            disks: disks(form)?,
            ends_when_shut_down,
            protected: form.flag("DisableApiTermination")?,
            metadata: metadata(form)?,
        };
        if launch.profile.is_some() {
            ask.may("iam:PassRole")?;
        }
        if !launch.tags.is_empty() {
            ask.may("ec2:CreateTags")?;
        }
        Ok(launch)
    }

    /// Tags of one kind of resource.
    pub(crate) fn tags_of(&self, resource: &str) -> Vec<Tag> {
        let meant = self.tags.iter().filter(|(kind, _)| kind == resource);
        meant.flat_map(|(_, tags)| tags.clone()).collect()
    }
}

fn market(form: &Form) -> Result<(bool, Option<i64>), Error> {
    let options = "InstanceMarketOptions.SpotOptions";
    let option = |name: &str| form.text(&format!("{options}.{name}"));
    let spot = match form.text("InstanceMarketOptions.MarketType").as_deref() {
        None => false,
        Some("spot") => true,
        Some("capacity-block" | "interruptible-capacity-reservation") => {
            return Err(Error::not_served("markets other than spot"));
        }
        Some(other) => return Err(Error::value(other, "MarketType")),
    };
    match option("SpotInstanceType").as_deref() {
        None | Some("one-time") => {}
        Some("persistent") => return Err(Error::not_served("persistent spot requests")),
        Some(other) => return Err(Error::value(other, "SpotInstanceType")),
    }
    match option("InstanceInterruptionBehavior").as_deref() {
        None | Some("terminate") => {}
        Some("stop" | "hibernate") => {
            // A one-time request cannot be restarted.
            return Err(Error::combination(
                "Stop and hibernate interruption behaviors need a persistent request",
            ));
        }
        Some(other) => return Err(Error::value(other, "InstanceInterruptionBehavior")),
    }
    let bid = match option("MaxPrice") {
        None => None,
        Some(text) => match micros(&text) {
            Some(bid) if bid > LOWEST_BID => Some(bid),
            _ => return Err(Error::value(&text, "SpotPrice")),
        },
    };
    Ok((spot, bid))
}

struct Network {
    subnet: Option<String>,
    groups: Vec<String>,
    public: Option<bool>,
}

/// What the instance says of it, or its only interface.
fn network(form: &Form) -> Result<Network, Error> {
    let subnet = form.text("SubnetId");
    let groups = form.list("SecurityGroupId");
    let interfaces = form.numbers("NetworkInterface");
    let Some(first) = interfaces.first() else {
        return Ok(Network { subnet, groups, public: None });
    };
    if subnet.is_some() || !groups.is_empty() {
        return Err(Error::combination(
            "Network interfaces and an instance-level subnet ID or security groups may not be \
             specified on the same request",
        ));
    }
    if interfaces.len() > 1 {
        return Err(Error::not_served("more than one network interface"));
    }
    let own = |name: &str| format!("NetworkInterface.{first}.{name}");
    if form.text(&own("DeviceIndex")).is_some_and(|index| index != "0") {
        return Err(Error::not_served("a first network interface at another place than 0"));
    }
    form.flag(&own("DeleteOnTermination"))?;
    let public = form.read(&own("AssociatePublicIpAddress"))?;
    let (subnet, groups) = (form.text(&own("SubnetId")), form.list(&own("SecurityGroupId")));
    Ok(Network { subnet, groups, public })
}

fn tags(form: &Form) -> Result<Vec<(String, Vec<Tag>)>, Error> {
    let numbers = form.numbers("TagSpecification").into_iter();
    let tags = numbers.map(|number| {
        let prefix = format!("TagSpecification.{number}");
        let resource = form.need(&format!("{prefix}.ResourceType"))?;
        let served = ["instance", "volume", "network-interface", "spot-instances-request"];
        if !served.contains(&resource.as_str()) {
            let message = format!("'{resource}' is not a valid taggable resource type.");
            return Err(Error::client("InvalidParameterValue", message));
        }
        let tags = form.tags(&format!("{prefix}.Tag"));
        if tags.is_empty() {
            return Err(Error::missing("Tag"));
        }
        match tags.iter().find(|(key, _)| key.starts_with("aws:")) {
            Some((key, _)) => Err(reserved(key)),
            None => Ok((resource, tags)),
        }
    });
    tags.collect()
}

/// A key that only AWS may set.
pub(crate) fn reserved(key: &str) -> Error {
    let message = format!("Tag keys starting with 'aws:' are reserved for internal use: '{key}'");
    Error::client("InvalidParameterValue", message)
}

fn user_data(form: &Form) -> Result<Vec<u8>, Error> {
    let Some(text) = form.text("UserData") else { return Ok(Vec::new()) };
    let bytes = STANDARD.decode(text).map_err(|_| {
        Error::client("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data.")
    })?;
    if bytes.len() > LONGEST_USER_DATA {
        let message = "User data is limited to 16384 bytes";
        return Err(Error::client("InvalidParameterValue", message));
    }
    Ok(bytes)
}

fn disks(form: &Form) -> Result<Vec<Disk>, Error> {
    let numbers = form.numbers("BlockDeviceMapping").into_iter();
    let disks = numbers.map(|number| {
        let own = |name: &str| format!("BlockDeviceMapping.{number}.{name}");
        let kind = form.text(&own("Ebs.VolumeType")).unwrap_or_else(|| "gp3".to_owned());
        if !["gp2", "gp3"].contains(&kind.as_str()) {
            return Err(Error::not_served("volumes other than gp2 and gp3"));
        }
        form.flag(&own("Ebs.Encrypted"))?;
        Ok(Disk {
            device: form.need(&own("DeviceName"))?,
            size: form.read(&own("Ebs.VolumeSize"))?,
            kind,
            // Of whatever is made at launch by the API, data volumes too.
            dies: form.read(&own("Ebs.DeleteOnTermination"))?.unwrap_or(true),
        })
    });
    disks.collect()
}

fn metadata(form: &Form) -> Result<MetadataOptions, Error> {
    let tokens = form.text("MetadataOptions.HttpTokens").unwrap_or_else(|| "optional".to_owned());
    if !["optional", "required"].contains(&tokens.as_str()) {
        return Err(Error::value(&tokens, "HttpTokens"));
    }
    let endpoint = form.text("MetadataOptions.HttpEndpoint");
    if endpoint.is_some_and(|endpoint| endpoint != "enabled") {
        return Err(Error::not_served("instances without a metadata service"));
    }
    let hops = form.read("MetadataOptions.HttpPutResponseHopLimit")?.unwrap_or(1);
    if !(1..=64).contains(&hops) {
        return Err(Error::value(&hops.to_string(), "HttpPutResponseHopLimit"));
    }
    Ok(MetadataOptions { tokens, hop_limit: hops })
}
