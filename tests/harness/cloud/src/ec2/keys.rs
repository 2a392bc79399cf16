//! Access keys and roles: what each may do.

use std::collections::BTreeSet;

use jiff::Timestamp;

/// What a key or role may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Everything.
    #[default]
    Everything,
    /// These actions alone: `ec2:RunInstances`.
    Only(BTreeSet<String>),
    /// These actions alone, and of those that end or delete, only on what has this tag.
    Owned {
        /// `ec2:TerminateInstances`.
        actions: BTreeSet<String>,
        /// Key and value.
        tag: (String, String),
    },
}

impl Policy {
    /// These actions alone.
    pub fn only(actions: &[&str]) -> Self {
        Self::Only(actions.iter().map(|action| (*action).to_owned()).collect())
    }

    /// These actions alone, where they end or delete on what has this tag.
    pub fn owned(actions: &[&str], key: &str, value: &str) -> Self {
        let actions = actions.iter().map(|action| (*action).to_owned()).collect();
        Self::Owned { actions, tag: (key.to_owned(), value.to_owned()) }
    }

    pub(crate) fn allows(&self, action: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Only(actions) | Self::Owned { actions, .. } => actions.contains(action),
        }
    }
}

/// An access key, or credentials that a role gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its secret.
    pub secret: String,
    /// Token that goes with it, of credentials that a role gave.
    pub token: Option<String>,
    /// Until when it is good.
    pub expires: Option<Timestamp>,
    /// The user or role: `user/petaflop`.
    pub principal: String,
    /// What it may do.
    pub policy: Policy,
}
