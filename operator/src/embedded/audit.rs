//! [`crate::audit`] of the accounts of `petaflop run`: of this home's machines, or of those of an
//! installation whose home, or cluster, is gone.

use petaflop_agent_api::clock::Clock;

use crate::audit::{Audit, Findings};
use crate::claims::ClaimsError;
use crate::embedded::claims::FileClaims;
use crate::embedded::config::Config;
use crate::embedded::home::{Home, HomeError};
use crate::embedded::live::{self, LiveError};
use crate::ledger;

/// Why nothing is known.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The home refuses.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// There is nobody to ask.
    #[error(transparent)]
    Live(#[from] LiveError),
    /// The claims refuse.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    /// The ledger refuses.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
}

/// Looks at every provider whose key there is, and ends what is to be ended. `gone` is the uid of an
/// installation that is no more: no claim of its machines is left, and none of its ledger.
///
/// # Errors
/// No provider can be asked, or the home cannot be read.
pub async fn run(home: &Home, gone: Option<&str>, terminate: bool) -> Result<Findings, AuditError> {
    let config = Config::read(home)?;
    let providers = live::providers(home.root(), &config, |name| std::env::var(name).ok())?;
    let ledger = home.ledger()?;
    let (clock, claims) = (Clock::system(), FileClaims::of(home));
    let gone = gone.filter(|uid| *uid != home.installation());
    let audit = Audit {
        clock: &clock,
        installation: gone.unwrap_or(home.installation()),
        claims: &claims,
        // Whoever works for a job here renews its lease, and is started again by the next command.
        lapsed: false,
        all: gone.is_some(),
        terminate,
        ledger: gone.is_none().then_some(&ledger),
    };
    let mut findings = Findings::default();
    for provider in providers {
        audit.look(provider.as_ref(), &mut findings).await?;
    }
    Ok(findings)
}
