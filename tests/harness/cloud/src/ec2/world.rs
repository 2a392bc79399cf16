//! Everything of the account that changes, and what all actions ask of it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use jiff::Timestamp;

use super::catalog::{Catalog, ON_DEMAND, Region, SPOT, Subnet, Zone};
use super::error::Error;
use super::form::{Form, Tag};
use super::keys::{Key, Policy};
use super::limits::{Buckets, Limits};
use super::quota::Quotas;
use crate::engine::Engine;
use crate::engine::machine::{Life, Machine};
use crate::engine::product::{Product, ProductId};
use crate::faults::{Fault, Faults};
use crate::shell::Call;

/// What EC2 knows of an instance that the engine does not.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) region: String,
    pub(crate) zone: Zone,
    pub(crate) kind: String,
    pub(crate) architecture: &'static str,
    pub(crate) image: String,
    /// Device of its root volume.
    pub(crate) root: &'static str,
    pub(crate) vpc: String,
    pub(crate) subnet: String,
    /// Ids and names.
    pub(crate) groups: Vec<(String, String)>,
    pub(crate) reservation: String,
    pub(crate) token: Option<String>,
    /// Its spot request.
    pub(crate) request: Option<String>,
    pub(crate) profile: Option<String>,
    pub(crate) private: Ipv4Addr,
    pub(crate) public: Option<Ipv4Addr>,
    pub(crate) metadata: MetadataOptions,
    /// It may not be terminated by the API.
    pub(crate) protected: bool,
}

/// `MetadataOptions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetadataOptions {
    pub(crate) tokens: String,
    pub(crate) hop_limit: u32,
}

/// What EC2 knows of a volume that the engine does not.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    pub(crate) region: String,
    pub(crate) zone: Zone,
    pub(crate) device: String,
    pub(crate) kind: String,
    /// Machine that it was made with.
    pub(crate) instance: String,
}

/// A spot request; its state is that of its instance.
#[derive(Clone, Debug)]
pub(crate) struct SpotRequest {
    pub(crate) region: String,
    pub(crate) zone: String,
    pub(crate) instance: String,
    /// Micro-dollars an hour.
    pub(crate) bid: i64,
    pub(crate) created: Timestamp,
    pub(crate) cancelled: Option<Timestamp>,
}

/// A launch that succeeded, for the one who asks the same again.
#[derive(Clone, Debug)]
pub(crate) struct Remembered {
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) reservation: String,
    pub(crate) at: Timestamp,
}

/// Everything that changes.
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) catalog: Catalog,
    pub(crate) account: String,
    pub(crate) faults: Faults,
    pub(crate) keys: BTreeMap<String, Key>,
    pub(crate) roles: BTreeMap<String, Policy>,
    pub(crate) identities: BTreeMap<String, String>,
    pub(crate) quotas: Quotas,
    pub(crate) limits: Limits,
    pub(crate) buckets: Buckets,
    /// Rows of a page; `None`: as many as were asked for.
    pub(crate) page: Option<usize>,
    pub(crate) instances: BTreeMap<String, Instance>,
    pub(crate) volumes: BTreeMap<String, Volume>,
    pub(crate) requests: BTreeMap<String, SpotRequest>,
    pub(crate) tags: BTreeMap<String, Vec<Tag>>,
    /// By region and token.
    pub(crate) tokens: BTreeMap<(String, String), Remembered>,
    pub(crate) calls: Vec<Call>,
}

/// A request that came through authentication and quota.
pub(crate) struct Ask<'a> {
    pub(crate) form: &'a Form,
    pub(crate) region: &'a Region,
    pub(crate) key: &'a Key,
    pub(crate) faults: &'a [Fault],
}

impl Ask<'_> {
    /// All parameters are read: nothing is left over, and it is not a rehearsal.
    pub(crate) fn ready(&self) -> Result<(), Error> {
        let rehearsal = self.form.flag("DryRun")?;
        self.form.finish()?;
        if rehearsal { Err(Error::dry_run()) } else { Ok(()) }
    }

    /// # Errors
    /// When the key may not.
    pub(crate) fn may(&self, action: &str) -> Result<(), Error> {
        if self.key.policy.allows(action) { Ok(()) } else { Err(Error::unauthorized(action)) }
    }

    /// # Errors
    /// When the key may do that to its own alone, and one of these is not.
    pub(crate) fn owns(&self, action: &str, ids: &[String], world: &World) -> Result<(), Error> {
        let Policy::Owned { tag, .. } = &self.key.policy else { return Ok(()) };
        let own = ids.iter().all(|id| world.tags_of(id).contains(tag));
        if own { Ok(()) } else { Err(Error::unauthorized(action)) }
    }
}

impl World {
    /// Instances of a region that can be seen, in the order in which they were bought.
    pub(crate) fn seen<'a>(
        &'a self,
        region: &str,
    ) -> impl Iterator<Item = (&'a Machine, &'a Instance)> {
        let listed = self.engine.listed();
        listed.filter_map(move |machine| {
            let instance = self.instances.get(&machine.id)?;
            (instance.region == region).then_some((machine, instance))
        })
    }

    /// The instances of these ids.
    ///
    /// # Errors
    /// When one is unknown there, or not yet, or no longer.
    pub(crate) fn found(
        &self,
        region: &str,
        ids: &[String],
    ) -> Result<Vec<(&Machine, &Instance)>, Error> {
        for id in ids {
            let digits = id.strip_prefix("i-").unwrap_or_default();
            let hexadecimal = digits.chars().all(|letter| letter.is_ascii_hexdigit());
            if ![8, 17].contains(&digits.len()) || !hexadecimal {
                return Err(Error::client(
                    "InvalidInstanceID.Malformed",
                    format!("Invalid id: \"{id}\""),
                ));
            }
        }
        let seen: BTreeMap<&str, _> =
            self.seen(region).map(|(machine, it)| (machine.id.as_str(), (machine, it))).collect();
        let missing: Vec<String> =
            ids.iter().filter(|id| !seen.contains_key(id.as_str())).cloned().collect();
        if !missing.is_empty() {
            return Err(Error::not_found("InvalidInstanceID.NotFound", "instance", &missing));
        }
        Ok(ids.iter().filter_map(|id| seen.get(id.as_str()).copied()).collect())
    }

    /// The product of a type in a zone.
    pub(crate) fn product(
        &self,
        kind: &str,
        zone: &str,
        spot: bool,
    ) -> Option<(ProductId, &Product)> {
        let pool = if spot { SPOT } else { ON_DEMAND };
        self.engine.products().find(|(_, product)| {
            product.kind == kind && product.pool == pool && product.zone.as_deref() == Some(zone)
        })
    }

    /// Zones of a region in which a type is sold in any way.
    pub(crate) fn zones_of<'a>(&self, region: &'a Region, kind: &str) -> Vec<&'a Zone> {
        let zones = region.zones.iter();
        let sold = |zone: &&Zone| {
            [false, true].iter().any(|spot| self.product(kind, &zone.id, *spot).is_some())
        };
        zones.filter(sold).collect()
    }

    /// Addresses of a subnet that no instance has.
    pub(crate) fn addresses(&self, subnet: &Subnet) -> u32 {
        let own = self.instances.iter().filter(|(_, it)| it.subnet == subnet.id);
        let alive = own.filter(|(id, _)| {
            self.engine.machine(id).is_some_and(|machine| machine.ended.is_none())
        });
        subnet.addresses.saturating_sub(u32::try_from(alive.count()).unwrap_or(u32::MAX))
    }

    pub(crate) fn tags_of(&self, id: &str) -> &[Tag] {
        self.tags.get(id).map_or(&[], Vec::as_slice)
    }

    /// Sets tags; one that is there gets another value.
    pub(crate) fn tag(&mut self, id: &str, tags: &[Tag]) {
        let known = self.tags.entry(id.to_owned()).or_default();
        for (key, value) in tags {
            known.retain(|(name, _)| name != key);
            known.push((key.clone(), value.clone()));
        }
    }
}

/// The state of an instance: its code and name.
pub(crate) fn state(machine: &Machine) -> (u16, &'static str) {
    match machine.life {
        // It is up as far as EC2 can see; nothing comes from within.
        Life::Provisioning | Life::Starting if machine.stuck && machine.started.is_some() => {
            (16, "running")
        }
        Life::Provisioning | Life::Starting => (0, "pending"),
        Life::Running => (16, "running"),
        Life::Ending => (32, "shutting-down"),
        Life::Terminated => (48, "terminated"),
        Life::Exited => (80, "stopped"),
    }
}

/// A time as EC2 writes it: to the second.
pub(crate) fn iso(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.000Z").to_string()
}

/// Dollars with six places.
pub(crate) fn dollars(micros: i64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros.rem_euclid(1_000_000))
}

/// Micro-dollars of a decimal text; what is below a micro-dollar is cut off.
pub(crate) fn micros(text: &str) -> Option<i64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.chars().all(|letter| letter.is_ascii_digit());
    if (whole.is_empty() && part.is_empty()) || !digits(whole) || !digits(part) {
        return None;
    }
    let part: String = part.chars().chain("000000".chars()).take(6).collect();
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    whole.checked_mul(1_000_000)?.checked_add(part.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::{dollars, micros};

    #[test]
    fn dollars_are_decimal_texts() {
        assert_eq!(micros("0.541"), Some(541_000));
        assert_eq!(micros("12"), Some(12_000_000));
        assert_eq!(micros(".0000019"), Some(1));
        assert_eq!([micros(""), micros("."), micros("-1"), micros("1e3")], [None; 4]);
        assert_eq!(dollars(1_000_001), "1.000001");
    }
}
