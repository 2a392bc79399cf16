//! API keys: what each may do.

/// What a key may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// Look.
    ReadOnly,
    /// What a pod may do to itself; the provider puts such a key into each pod.
    Pod(String),
}

impl Scope {
    /// May it change this pod, or buy one where there is none?
    pub(crate) fn may_change(&self, pod: Option<&str>) -> bool {
        match self {
            Self::All => true,
            Self::ReadOnly => false,
            Self::Pod(own) => pod == Some(own),
        }
    }
}
