//! Replicas that failed: each is counted once, the next machine waits, and a model that cannot be
//! loaded is not bought for again. All of it stands in the status, so that it outlives whoever counts.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use petaflop_arbiter::claim::Phase as ClaimPhase;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::InferenceServiceStatus;

use super::revision::Revision;
use super::{Failure, Model, Next, Replica, Seen, names};
use crate::cluster::status::time;
use crate::restart;
use crate::run::End;

/// What earlier failures allow.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tries {
    /// Why no other machine is tried until somebody changes something.
    pub(super) blocked: Option<String>,
    /// No other machine is bought before.
    pub(super) not_before: Option<Timestamp>,
}

/// Counts how replicas ended, and says what follows.
pub(super) fn settle(seen: &Seen, revision: &Revision, next: &mut Next) -> Tries {
    let (is_known, artifact) = match seen.model {
        Model::Known(served) => (true, served.artifact()),
        Model::Waits(_) | Model::Wrong(_) => (false, None),
    };
    let status = &next.status;
    // A store that is silent for a while changes nothing.
    let same = artifact.is_none_or(|artifact| status.artifact.as_deref() == Some(artifact))
        && status.revision.as_deref() == Some(revision.text());
    // A condition of an earlier generation speaks of an earlier wish.
    let current = |c: &&Condition| c.observed_generation == seen.service.metadata.generation;
    let known = status.conditions.iter().find(|c| c.type_ == "ModelLoaded").filter(current);
    let known = known.filter(|c| same && c.reason == Reason::BlockedByFailedLoad.as_str());
    let known = known.filter(|_| !matches!(seen.model, Model::Wrong(_)));
    let mut blocked = known.map(|condition| condition.message.clone());
    if !same {
        // Another model, or another image: what failed before says nothing of it.
        (next.status.failures, next.status.last_failure_time) = (0, None);
    }
    count(seen, next);
    if let Some(Failure { message, retry }) = &next.failure {
        next.status.failures = next.status.failures.saturating_add(1);
        next.status.last_failure_time = Some(time(seen.now));
        let answers =
            |replica: &Replica| replica.answers() && revision.is_of(&replica.stored.claim.spec);
        if !retry && is_known && !seen.replicas.iter().any(answers) {
            blocked = Some(message.clone());
        }
    }
    Tries { blocked, not_before: not_before(&next.status) }
}

/// When another machine may be bought.
fn not_before(status: &InferenceServiceStatus) -> Option<Timestamp> {
    let failed = status.last_failure_time.as_ref().filter(|_| status.failures > 0)?;
    Some(restart::not_before(failed.0, status.failures))
}

/// Counts how replicas ended that were not counted yet. The count and the name are one write, and the
/// claim goes only after it.
fn count(seen: &Seen, next: &mut Next) {
    let there = names(seen);
    let status = &mut next.status;
    status.counted.retain(|name| there.contains(name));
    for replica in seen.replicas {
        let stored = &replica.stored;
        // What we ended ourselves is no loss.
        if stored.deleting || status.counted.iter().any(|name| name == replica.name()) {
            continue;
        }
        let said = replica.run.as_ref().and_then(|run| run.end.as_ref());
        let mut failed = |message: &str, retry: bool| {
            next.failure = Some(Failure { message: message.to_owned(), retry });
        };
        match (&stored.claim.phase, said) {
            (_, Some(End::Failed { message, retry })) => {
                status.restarts += 1;
                failed(message, *retry);
            }
            (_, Some(End::Finished { .. } | End::Refused { .. } | End::Done)) => {
                status.restarts += 1;
                failed("the server ended by itself", true);
            }
            // Nothing was begun: it is placed anew, on another class of machine.
            (_, Some(End::Unfit { .. })) => {}
            (_, Some(End::Stopped)) => status.interruptions += 1,
            (ClaimPhase::Ending { reason, .. } | ClaimPhase::Ended { reason }, None) => {
                match reason {
                    Reason::SpotInterrupted | Reason::HeartbeatLost => status.interruptions += 1,
                    Reason::InvalidSpec => {
                        failed("the provider refuses the request as invalid", false);
                    }
                    Reason::ImagePullFailed => failed("the image could not be fetched", true),
                    Reason::LaunchTimedOut => failed("the machine did not come up in time", true),
                    // Nothing was lost: it is placed anew, elsewhere or later.
                    _ => {}
                }
            }
            _ => continue,
        }
        status.counted.push(replica.name().to_owned());
    }
}
