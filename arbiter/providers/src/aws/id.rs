//! Names of what is ours at AWS, as the rest of the program has them: `us-east-1/i-0123`. Ids of
//! AWS's are good in one region, so the region is part of the name. Pure.

use std::fmt;

use crate::provider::InstanceId;

/// What bills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Instance,
    /// A volume that outlived its instance.
    Volume,
    /// A request for a spot instance that may still be fulfilled.
    SpotRequest,
}

/// Something of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Id {
    pub(super) region: String,
    pub(super) kind: Kind,
    /// AWS's own.
    pub(super) id: String,
}

impl Id {
    /// `None` for what is no name of ours.
    pub(super) fn read(text: &InstanceId) -> Option<Self> {
        let (region, id) = text.0.split_once('/')?;
        let (prefix, digits) = id.split_once('-')?;
        let kind = match prefix {
            "i" => Kind::Instance,
            "vol" => Kind::Volume,
            "sir" => Kind::SpotRequest,
            _ => return None,
        };
        // It becomes part of a host's name.
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let sound = !region.is_empty()
            && region.chars().all(plain)
            && !digits.is_empty()
            && digits.chars().all(|c| c.is_ascii_alphanumeric());
        sound.then(|| Self { region: region.to_owned(), kind, id: id.to_owned() })
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.region, self.id)
    }
}

/// The name of a thing in a region.
pub(super) fn name(region: &str, id: &str) -> InstanceId {
    InstanceId(format!("{region}/{id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_where_and_what() {
        for (text, kind) in [
            ("us-east-1/i-0abc12", Kind::Instance),
            ("eu-west-2/vol-0abc12", Kind::Volume),
            ("eu-west-2/sir-0abc12", Kind::SpotRequest),
        ] {
            let id = Id::read(&InstanceId(text.to_owned())).expect("a name");
            assert_eq!((id.kind, id.to_string().as_str()), (kind, text));
        }
        for odd in
            ["", "i-0abc", "us-east-1/", "us-east-1/x-1", "/i-1", "r/i-", "a.b/i-1", "r/i-1/i-2"]
        {
            assert_eq!(Id::read(&InstanceId(odd.to_owned())), None, "{odd}");
        }
    }
}
