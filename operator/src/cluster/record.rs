//! Worlds in which something was decided, written down where that is asked for (`--record-worlds`): what `petaflop explain --world`
//! replays. The decision then carries the hash of its world.
//!
//! They hold what all namespaces asked for and hold, so they are for whoever runs the operator.

use std::path::Path;

use petaflop_arbiter::decision::{Outcome, Plan};
use petaflop_arbiter::world::Recorded;

use crate::cluster::Operator;

/// Files that are kept; the oldest go first.
const MOST: usize = 100;

/// Writes down what a plan was made of, if anything was decided.
pub async fn keep(operator: &Operator, seen: Recorded, plan: &mut Plan) {
    let Some(folder) = operator.settings.record_worlds.clone() else { return };
    let settled = |outcome: &Outcome| matches!(outcome, Outcome::Settled { .. });
    if plan.decisions.iter().all(|decision| settled(&decision.outcome)) {
        return;
    }
    let written = tokio::task::spawn_blocking(move || write(&folder, &seen)).await;
    match written {
        Ok(Ok(hash)) => {
            plan.decisions.iter_mut().for_each(|decision| decision.world = Some(hash.clone()));
        }
        // A record is for people: no machine waits for it.
        Ok(Err(error)) => tracing::warn!(%error, "a world is not recorded"),
        Err(error) => tracing::warn!(%error, "a world is not recorded"),
    }
}

/// Writes a world under its hash, and takes the oldest away.
fn write(folder: &Path, seen: &Recorded) -> std::io::Result<String> {
    std::fs::create_dir_all(folder)?;
    let hash = seen.hash();
    let begun = folder.join(format!(".{hash}"));
    std::fs::write(&begun, serde_json::to_vec(seen)?)?;
    std::fs::rename(&begun, folder.join(format!("{hash}.json")))?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push((path.metadata()?.modified()?, path));
        }
    }
    files.sort();
    let surplus = files.len().saturating_sub(MOST);
    files.iter().take(surplus).try_for_each(|(_, path)| std::fs::remove_file(path))?;
    Ok(hash)
}
