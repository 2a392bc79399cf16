//! `/api/v1/offers?namespace=&provider=`: what can be had, and from whom there is nothing new.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use http::HeaderMap;
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::world::ProviderState;
use serde::Deserialize;
use serde_json::{Value, json};

use super::auth::What;
use super::{Api, Refusal};
use crate::cluster::providers::{Known, Registry};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Only what this namespace may take.
    namespace: Option<String>,
    /// Only of this provider.
    provider: Option<String>,
}

pub(super) async fn answer(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Value>, Refusal> {
    let Query(Wanted { namespace, provider }) = query?;
    let what = namespace.clone().map_or(What::Offers, What::OffersFor);
    api.reviews.allow(&headers, &what).await?;
    let operator = api.leading()?;
    let now = operator.clock.now();
    let mut offers = Vec::new();
    let mut providers = Vec::new();
    for (name, known) in operator.providers.all() {
        if provider.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        // One whose object cannot be read serves nobody.
        let Ok(state) = known.object.state(&Registry::facts(&known, Usd::ZERO), now) else {
            continue;
        };
        if namespace.as_ref().is_some_and(|namespace| !serves(&state, namespace)) {
            continue;
        }
        let Known { object: _, provider: _, offers: quoted, quoted_at, cheapest: _, trouble } =
            known;
        offers.extend(quoted.iter().cloned());
        providers.push(json!({
            "name": name,
            "quotedAt": quoted_at,
            "trouble": trouble.map(|error| error.reason()),
        }));
    }
    offers.sort_by(|a, b| (a.price, &a.id).cmp(&(b.price, &b.id)));
    Ok(Json(json!({ "offers": offers, "providers": providers })))
}

/// Whether workloads of a namespace may go there.
pub(super) fn serves(provider: &ProviderState, namespace: &str) -> bool {
    let allowed = provider.allowed_namespaces.as_ref();
    allowed.is_none_or(|allowed| allowed.iter().any(|one| one == namespace))
}
