//! Who this installation is: the uid that its machines carry, and the root of its keys. Kept in a
//! Secret of a cluster, or in files of a home.

use petaflop_agent_api::keys::OperatorRoot;
use petaflop_arbiter::claim::Identity;
use petaflop_providers::EnrolmentToken;

/// One installation.
#[derive(Debug)]
pub struct Installation {
    /// What its machines carry.
    pub uid: String,
    /// From which its keys are derived.
    pub root: OperatorRoot,
}

impl Installation {
    /// With this the agent of a machine proves its key, once: the same for the same claim and attempt.
    pub fn token(&self, identity: &Identity) -> EnrolmentToken {
        let token = self.root.token(&identity.claim_uid, identity.attempt);
        EnrolmentToken::new(token.expose().as_str())
    }
}
