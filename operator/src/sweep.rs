//! The sweep, in both directions: claims that nobody works for, and instances of this
//! installation that no claim wants. The provider is listed first, then each claim is
//! read; what is missing from an incomplete listing is not gone.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::claim::Phase as ClaimPhase;

use crate::claims::Claims;
use crate::config::Config;
use crate::home::{Home, HomeError};
use crate::job::Folder;
use crate::observe::Providers;
use crate::operate;
use petaflop_providers::{Provider, ProviderError};

/// Younger instances may belong to a launch that is being written down.
const GRACE: SignedDuration = SignedDuration::from_secs(10);

/// What was found and set right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Jobs and services whose operator was started again.
    pub restarted: Vec<String>,
    /// Instances without a claim that were told to end.
    pub orphans: Vec<String>,
}

/// Why the sweep could not be done.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The home refuses.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The provider does not answer.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

/// Sets right what crashes left behind.
pub async fn sweep(home: &Home, runtime: &Path) -> Result<Swept, SweepError> {
    let providers = Providers::of(home, &Config::read(home)?, runtime.to_owned())?;
    let provider: &dyn Provider = &providers.host;
    let listing = provider.list(home.installation()).await?;
    let claims = Claims::of(home);
    let mut swept = Swept::default();
    let now = Timestamp::now();
    for instance in listing.instances {
        let Some(identity) = &instance.identity else {
            continue;
        };
        let young = instance.started.is_none_or(|at| now.duration_since(at) < GRACE);
        if !instance.state.may_bill() || young {
            continue;
        }
        let claim = claims.get(&identity.namespace, &identity.claim)?;
        if claim.is_none_or(|stored| stored.claim.uid != identity.claim_uid) {
            provider.terminate(&instance.id).await?;
            swept.orphans.push(instance.id.to_string());
        }
    }
    for stored in claims.list()? {
        let owner = &stored.claim.spec.owner;
        let folder = Folder::of(home, owner.kind, &owner.namespace, &owner.name);
        let known = folder.admission()?.is_some_and(|admission| admission.uid == owner.uid);
        if known {
            if !folder.is_operated() {
                operate::start(home, &folder)?;
                swept.restarted.push(folder.reference());
            }
            continue;
        }
        // Its object is gone or another: nobody will ever want it.
        let command = petaflop_providers::Command {
            argv: Vec::new(),
            env: Default::default(),
            dir: String::new(),
            log: String::new(),
            memory: 0,
            grace_seconds: 0,
        };
        let provider = providers.seller(&stored.claim.spec.offer.provider);
        let actor = crate::act::Actor { home, provider, command: &command };
        let reason = match &stored.claim.phase {
            ClaimPhase::Ending { reason, .. } => *reason,
            _ => petaflop_arbiter::reason::Reason::Suspended,
        };
        let wanted = petaflop_arbiter::launch::Wanted::No(reason);
        match actor.drive(stored, wanted).await {
            Ok((crate::act::Driven::Over(stored, _), _)) => claims.release(&stored)?,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "a claim without an owner"),
        }
    }
    Ok(swept)
}
