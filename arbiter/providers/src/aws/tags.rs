//! What an instance, its volume and its spot request carry, from their first moment: whose they
//! are, and what was decided on. Pure.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::Tag;
use petaflop_arbiter::claim::Identity;
use petaflop_arbiter::money::UsdPerHour;

/// Uid of the installation.
pub(super) const INSTALLATION: &str = "petaflop.dev/installation";
/// Uid of the claim.
pub(super) const CLAIM_UID: &str = "petaflop.dev/claim-uid";
const NAMESPACE: &str = "petaflop.dev/namespace";
const CLAIM: &str = "petaflop.dev/claim";
const ATTEMPT: &str = "petaflop.dev/attempt";
/// Dollars an hour that were decided on.
const PRICE: &str = "petaflop.dev/price";
/// Where its agent is dialled.
const PORT: &str = "petaflop.dev/port";
/// What AWS's console shows.
const NAME: &str = "Name";

/// AWS's limits.
const MOST: usize = 50;
const LONGEST_KEY: usize = 128;
const LONGEST_VALUE: usize = 256;

/// Ours first; of the labels those that AWS takes.
pub(super) fn write(
    identity: &Identity,
    price: UsdPerHour,
    port: Option<u16>,
    labels: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let Identity { installation, namespace, claim, claim_uid, attempt } = identity;
    let name: String =
        format!("petaflop {namespace}/{claim}").chars().take(LONGEST_VALUE).collect();
    let mut tags: BTreeMap<String, String> = [
        (INSTALLATION, installation.clone()),
        (NAMESPACE, namespace.clone()),
        (CLAIM, claim.clone()),
        (CLAIM_UID, claim_uid.clone()),
        (ATTEMPT, attempt.to_string()),
        (PRICE, price.to_string()),
        (NAME, name),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    if let Some(port) = port {
        tags.insert(PORT.to_owned(), port.to_string());
    }
    for (key, value) in labels {
        let fits = key.len() <= LONGEST_KEY && value.len() <= LONGEST_VALUE && !key.is_empty();
        if fits && !key.starts_with("aws:") && tags.len() < MOST {
            tags.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    tags
}

/// What something carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) identity: Option<Identity>,
    pub(super) price: Option<UsdPerHour>,
    pub(super) port: Option<u16>,
}

/// Reads what [`write`] wrote. What cannot be read is absent.
pub(super) fn read(tags: &[Tag]) -> Carried {
    let tag = |key: &str| tags.iter().find(|tag| tag.key() == Some(key))?.value();
    let identity = || {
        Some(Identity {
            installation: tag(INSTALLATION)?.to_owned(),
            namespace: tag(NAMESPACE)?.to_owned(),
            claim: tag(CLAIM)?.to_owned(),
            claim_uid: tag(CLAIM_UID)?.to_owned(),
            attempt: tag(ATTEMPT)?.parse().ok()?,
        })
    };
    Carried {
        identity: identity(),
        price: tag(PRICE).and_then(|price| price.parse().ok()),
        port: tag(PORT).and_then(|port| port.parse().ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            installation: "i".into(),
            namespace: "default".into(),
            claim: "trj-a-1-0".into(),
            claim_uid: "uid".into(),
            attempt: 2,
        }
    }

    fn back(tags: &BTreeMap<String, String>) -> Carried {
        let tags: Vec<Tag> =
            tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        read(&tags)
    }

    #[test]
    fn identity_price_and_port_survive_their_tags() {
        let price = "0.41".parse().expect("a price");
        let carried = back(&write(&identity(), price, Some(7443), &BTreeMap::new()));
        let whole = Carried { identity: Some(identity()), price: Some(price), port: Some(7443) };
        assert_eq!(carried, whole);
    }

    #[test]
    fn labels_never_displace_what_makes_an_instance_findable() {
        let mut labels: BTreeMap<String, String> =
            (0..100).map(|n| (format!("label-{n}"), "x".to_owned())).collect();
        labels.insert(CLAIM_UID.to_owned(), "another".to_owned());
        labels.insert("aws:x".to_owned(), "x".to_owned());
        labels.insert("a".repeat(129), "x".to_owned());
        let tags = write(&identity(), UsdPerHour::ZERO, None, &labels);
        assert_eq!(tags.len(), MOST);
        assert_eq!(back(&tags).identity, Some(identity()));
        assert!(!tags.contains_key("aws:x"));
    }

    #[test]
    fn damaged_tags_are_no_identity_and_hide_nothing_else() {
        let mut tags = write(&identity(), UsdPerHour::ZERO, Some(1), &BTreeMap::new());
        tags.insert(ATTEMPT.to_owned(), "many".to_owned());
        let carried = back(&tags);
        assert_eq!((carried.identity, carried.port), (None, Some(1)));
        assert_eq!(read(&[]), Carried::default());
    }
}
