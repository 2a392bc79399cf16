//! A slice of a node, and the name it has as an offer's instance type:
//! `node-a:cpu=4`, `node-a:cpu=all`, `node-b:nvidia.com/gpu=2`. The name says
//! everything that a Pod needs to be placed, so nothing has to be looked up or
//! remembered between quote and launch.

use std::fmt;
use std::str::FromStr;

/// A part of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    /// Name of the node.
    pub(super) node: String,
    /// Which part.
    pub(super) part: Part,
}

/// Which part of a node. Processors and memory go with each by its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// So many whole processors.
    Processors(u32),
    /// Everything that is free, devices aside.
    Rest,
    /// So many devices of a device plugin's resource.
    Devices {
        /// Name of the extended resource.
        resource: String,
        /// How many.
        count: u32,
    },
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = &self.node;
        match &self.part {
            Part::Processors(count) => write!(f, "{node}:cpu={count}"),
            Part::Rest => write!(f, "{node}:cpu=all"),
            Part::Devices { resource, count } => write!(f, "{node}:{resource}={count}"),
        }
    }
}

/// The text names no slice of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoSlice;

impl FromStr for Slice {
    type Err = NoSlice;

    fn from_str(text: &str) -> Result<Self, NoSlice> {
        // Names of nodes have no colon, names of resources no equals sign.
        let (node, part) = text.split_once(':').ok_or(NoSlice)?;
        let (resource, count) = part.split_once('=').ok_or(NoSlice)?;
        let number = || count.parse::<u32>().ok().filter(|n| *n > 0).ok_or(NoSlice);
        let part = match resource {
            "cpu" if count == "all" => Part::Rest,
            "cpu" => Part::Processors(number()?),
            other if other.contains('/') => {
                Part::Devices { resource: other.to_owned(), count: number()? }
            }
            _ => return Err(NoSlice),
        };
        if node.is_empty() { Err(NoSlice) } else { Ok(Self { node: node.to_owned(), part }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_survives_its_name() {
        for name in
            ["node-a:cpu=4", "a.b.c:cpu=all", "gpu-1:nvidia.com/gpu=2", "g:amd.com/cpx_nps4=1"]
        {
            assert_eq!(name.parse::<Slice>().map(|slice| slice.to_string()), Ok(name.to_owned()));
        }
        for name in ["", "node-a", "node-a:cpu", "node-a:cpu=0", ":cpu=1", "a:gpu=1", "a:x/y=-1"] {
            assert_eq!(name.parse::<Slice>(), Err(NoSlice), "{name}");
        }
    }
}
