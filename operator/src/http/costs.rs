//! `/api/v1/costs?from=&to=&by=&namespace=&rows=true`: what was spent, by the ledger.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::auth::What;
use super::{Api, Refusal};
use crate::costs::{By, Costs, period};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// From this time on, a day or RFC 3339.
    from: Option<String>,
    /// Before this time.
    to: Option<String>,
    #[serde(default)]
    by: By,
    /// Only of this namespace; else of all.
    namespace: Option<String>,
    /// The rows too.
    #[serde(default)]
    rows: bool,
}

pub(super) async fn answer(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Costs>, Refusal> {
    let Query(Wanted { from, to, by, namespace, rows }) = query?;
    api.reviews.allow(&headers, &What::Costs(namespace.clone())).await?;
    let period = period(from.as_deref(), to.as_deref(), ["from", "to"])
        .map_err(|message| Refusal::new(StatusCode::BAD_REQUEST, message))?;
    // Of the ledger itself, which every replica reads alike.
    let mut counted = api.operator.ledger.rows_from(period.start).await.map_err(|error| {
        tracing::warn!(%error, "reading the ledger");
        Refusal::new(StatusCode::BAD_GATEWAY, "the ledger cannot be read; try again later")
    })?;
    if let Some(only) = namespace {
        counted.retain(|row| row.namespace == only);
    }
    let mut costs = Costs::of(counted, by, period)
        .map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    costs.rows = costs.rows.filter(|_| rows);
    Ok(Json(costs))
}
