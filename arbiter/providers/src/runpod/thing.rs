//! What a pod is, and the name it has as an offer's instance type:
//! `2x NVIDIA GeForce RTX 4090 COMMUNITY`, `4 vCPU cpu5g SECURE`. The name says everything
//! that a request needs, so nothing has to be remembered between quote and launch. Secure and
//! Community are different things: other machines, other owners, other prices.

use std::fmt;
use std::str::FromStr;

/// Whose machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Cloud {
    /// Of data centres.
    Secure,
    /// Of whoever rents theirs out.
    Community,
}

impl Cloud {
    pub(super) const ALL: [Self; 2] = [Self::Secure, Self::Community];

    /// As the API writes it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Secure => "SECURE",
            Self::Community => "COMMUNITY",
        }
    }
}

/// A kind of pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Thing {
    pub(super) cloud: Cloud,
    pub(super) what: What,
}

/// What computes in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum What {
    /// So many accelerators of a type.
    Gpu { id: String, count: u32 },
    /// So many processors of a flavour.
    Cpu { id: String, vcpus: u32 },
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cloud = self.cloud.as_str();
        match &self.what {
            What::Gpu { id, count } => write!(f, "{count}x {id} {cloud}"),
            What::Cpu { id, vcpus } => write!(f, "{vcpus} vCPU {id} {cloud}"),
        }
    }
}

/// The text names no kind of pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoThing;

impl FromStr for Thing {
    type Err = NoThing;

    fn from_str(text: &str) -> Result<Self, NoThing> {
        let (rest, cloud) = text.rsplit_once(' ').ok_or(NoThing)?;
        let cloud = Cloud::ALL.into_iter().find(|c| c.as_str() == cloud).ok_or(NoThing)?;
        let (first, rest) = rest.split_once(' ').ok_or(NoThing)?;
        let number = |text: &str| text.parse::<u32>().ok().filter(|n| *n > 0).ok_or(NoThing);
        let what = match first.strip_suffix('x') {
            Some(count) => What::Gpu { count: number(count)?, id: rest.to_owned() },
            None => {
                let id = rest.strip_prefix("vCPU ").ok_or(NoThing)?.to_owned();
                What::Cpu { vcpus: number(first)?, id }
            }
        };
        match &what {
            What::Gpu { id, .. } | What::Cpu { id, .. } if id.trim().is_empty() => Err(NoThing),
            _ => Ok(Self { cloud, what }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_pod_survives_its_name() {
        for text in [
            "1x NVIDIA GeForce RTX 4090 COMMUNITY",
            "8x NVIDIA H100 80GB HBM3 SECURE",
            // An odd leftover among the ids, two blanks and all.
            "1x NVIDIA  RTX A4500 SECURE",
            "16 vCPU cpu5g SECURE",
        ] {
            assert_eq!(text.parse::<Thing>().map(|thing| thing.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn other_names_are_none() {
        for text in [
            "",
            "p5.48xlarge",
            "0x L4 SECURE",
            "1x L4 ALL",
            "1x  SECURE",
            "-1x L4 SECURE",
            "x vCPU y SECURE",
        ] {
            assert_eq!(text.parse::<Thing>(), Err(NoThing), "{text}");
        }
    }
}
