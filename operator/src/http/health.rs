//! `/healthz`: whether the process should be started anew. `/readyz`: whether to talk to it.
//! What each means is said where it is known: [`crate::cluster::health`].

use std::sync::Arc;

use axum::extract::State;
use http::StatusCode;

use super::Api;

type Answer = (StatusCode, String);

pub(super) async fn healthz(State(api): State<Arc<Api>>) -> Answer {
    answer(api.operator.health.alive(&api.operator.metrics))
}

pub(super) async fn readyz(State(api): State<Arc<Api>>) -> Answer {
    answer(api.operator.health.ready())
}

fn answer(is: Result<(), impl std::fmt::Display>) -> Answer {
    match is {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
