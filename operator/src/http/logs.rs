//! `/api/v1/logs/{namespace}/{kind}/{name}?follow=true`: what a workload printed, over all its
//! machines, from the store: long after they are gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path as Segments, Query, State};
use axum::response::IntoResponse;
use bytes::Bytes;
use futures::Stream;
use http::{HeaderMap, StatusCode, header};
use object_store::ObjectStore;
use object_store::path::Path;
use petaflop_arbiter::workload::OwnerKind;
use petaflop_store::logs::{LogReader, prefix};
use serde::Deserialize;

use super::auth::What;
use super::{Api, Refusal, kind_of};
use crate::cluster::Operator;
use crate::cluster::training_job;

/// Between two looks for something new.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Go on until it is over.
    #[serde(default)]
    follow: bool,
}

pub(super) async fn answer(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    Segments((namespace, kind, name)): Segments<(String, String, String)>,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Result<impl IntoResponse, Refusal> {
    let kind = kind_of(&kind)?;
    let Query(Wanted { follow }) = query?;
    api.reviews.allow(&headers, &What::Logs(kind, namespace.clone(), name.clone())).await?;
    let operator = api.operator.clone();
    let objects = operator.settings.store.objects().map_err(|error| refused(error.into()))?;
    let mut tail = Tail {
        operator,
        objects,
        kind,
        namespace,
        name,
        readers: BTreeMap::new(),
        at: None,
        last_round: !follow,
    };
    tail.look().await.map_err(refused)?;
    if tail.readers.is_empty() && !tail.is_there() {
        let message = format!("there is no {}/{}, and no log of one", tail.namespace, tail.name);
        return Err(Refusal::new(StatusCode::NOT_FOUND, message));
    }
    let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    Ok((kind, Body::from_stream(tail.pieces())))
}

fn refused(error: BoxError) -> Refusal {
    Refusal::new(StatusCode::BAD_GATEWAY, format!("logs cannot be read: {error}"))
}

/// What the store said.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Machines in the order they came: uid of the owner, placement, index.
type Order = (String, u32, u32);

/// The output of one workload, read on and on.
struct Tail {
    operator: Arc<Operator>,
    objects: Arc<dyn ObjectStore>,
    kind: OwnerKind,
    namespace: String,
    name: String,
    readers: BTreeMap<Order, LogReader>,
    /// Whose turn it is in this round; `None`: a new round begins.
    at: Option<Order>,
    /// Nothing comes after this round.
    last_round: bool,
}

impl Tail {
    fn pieces(self) -> impl Stream<Item = Result<Bytes, BoxError>> {
        futures::stream::try_unfold(self, |mut tail| async move {
            Ok(tail.next().await?.map(|piece| (piece, tail)))
        })
    }

    /// The next piece, of any machine, as soon as there is one; `None`: it is over.
    async fn next(&mut self) -> Result<Option<Bytes>, BoxError> {
        loop {
            let from = self.at.clone();
            let rest = self.readers.iter_mut().filter(|(order, _)| Some(*order) >= from.as_ref());
            for (order, reader) in rest {
                if let Some(piece) = reader.next().await? {
                    self.at = Some(order.clone());
                    return Ok(Some(piece));
                }
            }
            self.at = None;
            if self.last_round {
                return Ok(None);
            }
            self.operator.clock.sleep(AGAIN).await;
            // Seen before the round, so that what was written before the end is read in it.
            self.last_round = self.is_over();
            self.look().await?;
        }
    }

    /// Finds machines that are new.
    async fn look(&mut self) -> Result<(), BoxError> {
        // One level above what is kept of a claim.
        let folder = Path::from_iter(["logs", &self.namespace, &self.name]);
        let listed = self.objects.list_with_delimiter(Some(&folder)).await?;
        for claim in listed.common_prefixes.iter().filter_map(|path| path.filename()) {
            if let Some(order) = self.order(claim) {
                let prefix = prefix(&self.namespace, &self.name, claim);
                let new = || LogReader::new(self.objects.clone(), &prefix);
                self.readers.entry(order).or_insert_with(new);
            }
        }
        Ok(())
    }

    /// Where a claim's machine comes; `None` where it is another's.
    fn order(&self, claim: &str) -> Option<Order> {
        let rest = claim.strip_prefix(self.kind.short())?.strip_prefix('-')?;
        let rest = rest.strip_prefix(&self.name)?.strip_prefix('-')?;
        let mut parts = rest.split('-');
        let order =
            (parts.next()?.to_owned(), parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        parts.next().is_none().then_some(order)
    }

    fn is_there(&self) -> bool {
        match self.kind {
            OwnerKind::TrainingJob => self.operator.job(&self.namespace, &self.name).is_some(),
            OwnerKind::InferenceService => {
                self.operator.service(&self.namespace, &self.name).is_some()
            }
        }
    }

    /// Whether nothing will be written any more: it has ended, and no machine of it is left.
    fn is_over(&self) -> bool {
        let claims = self.operator.table.of_namespace(&self.namespace);
        let works = claims.iter().any(|stored| {
            let owner = &stored.claim.spec.owner;
            (owner.kind, &owner.name) == (self.kind, &self.name)
        });
        let ended = match self.kind {
            OwnerKind::TrainingJob => self
                .operator
                .job(&self.namespace, &self.name)
                .is_none_or(|job| job.status.as_ref().is_some_and(training_job::is_over)),
            OwnerKind::InferenceService => !self.is_there(),
        };
        ended && !works
    }
}
