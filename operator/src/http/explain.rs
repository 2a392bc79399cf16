//! `/api/v1/explain/{namespace}/{kind}/{name}`: why a workload goes where it goes, and for every
//! offer why not that one, with numbers; as a placement pass would see it now.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use http::{HeaderMap, StatusCode};
use petaflop_arbiter::decide::{Explanation, explain};
use petaflop_arbiter::world::{Recorded, World};
use serde_json::{Value, json};

use crate::cluster::placement;

use super::auth::What;
use super::offers::serves;
use super::{Api, Refusal, kind_of};

pub(super) async fn answer(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    Path((namespace, kind, name)): Path<(String, String, String)>,
) -> Result<Json<Value>, Refusal> {
    let kind = kind_of(&kind)?;
    api.reviews.allow(&headers, &What::Explanation(kind, namespace.clone(), name.clone())).await?;
    let operator = api.leading()?;
    let unknown = || {
        let message = format!(
            "a placement pass does not look at {namespace}/{name}: there is no such object, or it is over"
        );
        Refusal::new(StatusCode::NOT_FOUND, message)
    };
    let recorded = placement::recorded(operator);
    let found = recorded.world.workloads.iter().find(|workload| {
        (workload.id.kind, &workload.id.namespace, &workload.id.name) == (kind, &namespace, &name)
    });
    let id = found.ok_or_else(unknown)?.id.clone();
    // What was decided, where the pass decided something; its numbers were true then.
    let mut decided = operator.placement.said(&id.uid).and_then(|said| said.decision.clone());
    // Some microseconds an offer, and there may be many.
    let explained = tokio::task::spawn_blocking(move || {
        let Recorded { now, world } = &recorded;
        let Explanation { mut decision, mut offers } = explain(world, *now, &id)?;
        let shown = shown(world, &id.namespace);
        offers.retain(|one| shown.contains(one.offer.provider.as_str()));
        for decision in [Some(&mut decision), decided.as_deref_mut()].into_iter().flatten() {
            decision.ranked.retain(|one| shown.contains(one.offer.provider.as_str()));
            decision.misses.retain(|one| shown.contains(one.offer.provider.as_str()));
        }
        Some((*now, decided, Explanation { decision, offers }))
    });
    let Ok(Some((at, decided, explanation))) = explained.await else { return Err(unknown()) };
    Ok(Json(json!({ "at": at, "decided": decided, "explanation": explanation })))
}

/// Providers that serve a namespace. What others offer is none of its business.
fn shown<'a>(world: &'a World, namespace: &str) -> HashSet<&'a str> {
    let providers = world.providers.iter().filter(|provider| serves(provider, namespace));
    providers.map(|provider| provider.name.as_str()).collect()
}
