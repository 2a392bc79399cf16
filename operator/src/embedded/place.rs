//! The placement pass: observe → [`World`] → [`decide`] → claims. One at a time for a
//! whole home, so that two jobs never take the same slot or the same last dollar.

use jiff::Timestamp;
use petaflop_arbiter::decide::decide;
use petaflop_arbiter::decision::{Action, Decision, Outcome};
use petaflop_arbiter::workload::Workload;
use petaflop_arbiter::world::{Recorded, World};

use crate::claims::{Claims, ClaimsError, StoredClaim};
use crate::embedded::claims::FileClaims;
use crate::embedded::home::{self, Home, HomeError};
use crate::embedded::job::{Admission, Folder, Place, Status};
use crate::embedded::live;
use crate::embedded::observe::{self, Providers};

/// What came of a pass for the workload that asked.
#[derive(Debug)]
pub struct Placed {
    /// The decision, with reasons.
    pub decision: Decision,
    /// The claims that were written for it.
    pub claims: Vec<StoredClaim>,
}

/// Why there was no pass.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The home refuses.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The claims refuse.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    /// The specification cannot be carried out.
    #[error("{0}")]
    Spec(String),
    /// There is nothing to choose from.
    #[error("no provider answers: {0}")]
    NoOffers(String),
}

/// What the arbiter is asked for an admitted object.
pub fn workload_of(admission: &Admission, status: &Status) -> Result<Workload, PlaceError> {
    admission.workload(status, false).map_err(|errors| {
        PlaceError::Spec(
            errors
                .iter()
                .map(|e| format!("{}: {}", e.path, e.message))
                .collect::<Vec<_>>()
                .join("; "),
        )
    })
}

/// The world as it is now, with this workload in it.
pub async fn look(
    home: &Home,
    providers: &Providers,
    workload: Workload,
    now: Timestamp,
) -> Result<World, PlaceError> {
    let (offers, errors) = providers.offers().await;
    if offers.is_empty() {
        let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
        return Err(PlaceError::NoOffers(said.join("; ")));
    }
    for error in &errors {
        tracing::warn!(%error, reason = %error.reason(), "left out");
    }
    let world = observe::world(home, providers, offers, workload, now)?;
    if world.market.doubles() > 0 {
        tracing::warn!(offers = world.market.doubles(), "left out: quoted twice under one id");
    }
    Ok(world)
}

/// Where a job that has a machine should rather be, if anywhere: what its own decision says.
pub async fn better_place(
    home: &Home,
    providers: &Providers,
    folder: &Folder,
    admission: &Admission,
    status: &Status,
) -> Result<Option<Outcome>, PlaceError> {
    let workload = workload_of(admission, status)?;
    let world = look(home, providers, workload, Timestamp::now()).await?;
    let plan = decide(&world, Timestamp::now());
    folder.write_watched(&admission.uid, &plan.watched)?;
    providers.spot.take_in(&plan);
    let mut own = plan.decisions.into_iter().filter(|d| d.workload.uid == admission.uid);
    Ok(own.next().map(|own| own.outcome).filter(|it| matches!(it, Outcome::Moves { .. })))
}

/// Decides, and writes the claims that were decided on for this workload.
pub async fn place(
    home: &Home,
    providers: &Providers,
    folder: &Folder,
    admission: &Admission,
    status: &mut Status,
) -> Result<Placed, PlaceError> {
    // Asking the providers takes time; nobody else need wait for that.
    let _one_at_a_time = home::lock(&home.root().join("placement.lock"))?;
    let now = Timestamp::now();
    let world = look(home, providers, workload_of(admission, status)?, now).await?;
    let seen = Recorded { now: Timestamp::now(), world };
    let plan = decide(&seen.world, seen.now);
    let decision = plan
        .decisions
        .iter()
        .find(|d| d.workload.uid == admission.uid)
        .cloned()
        .ok_or_else(|| PlaceError::Spec("the decision leaves this workload out".to_owned()))?;
    let decision = Decision { world: Some(seen.hash()), ..decision };
    folder.write_decision(&seen, &decision)?;
    folder.write_watched(&admission.uid, &plan.watched)?;
    providers.spot.take_in(&plan);
    let mut claims = Vec::new();
    for action in plan.actions {
        // Others' claims are their own operators' to write and to end.
        let Action::CreateClaim(spec) = action else {
            continue;
        };
        if spec.owner.uid != admission.uid {
            continue;
        }
        live::claimed_in(home.root(), &spec.offer)?;
        if let Some(stored) = FileClaims::of(home).create(spec).await? {
            claims.push(stored);
        }
    }
    if let Some(first) = claims.first() {
        let spec = &first.claim.spec;
        status.placements = status.placements.max(spec.placement);
        status.place = Some(Place {
            claim: spec.name.clone(),
            offer: spec.offer.id.to_string(),
            provider: spec.offer.provider.clone(),
            instance_type: spec.offer.instance_type.clone(),
            capacity: spec.offer.capacity,
            price: spec.offer.price,
        });
    }
    match &decision.outcome {
        Outcome::Placed { .. } | Outcome::Settled { .. } | Outcome::Moves { .. } => {
            status.reason = decision.warning;
            status.message.clear();
        }
        Outcome::Waiting { reason, message } => {
            status.reason = Some(*reason);
            status.message.clone_from(message);
        }
    }
    Ok(Placed { decision, claims })
}
