//! E4. Watches that carry nothing but bookmarks, and watches of different kinds that tell in another order
//! than things happened.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::body::Body as Stream;
use futures::stream::BoxStream;
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use petaflop_agent_api::clock::Clock;
use petaflop_fake_provider::Manners;
use serde_json::{Value, json};

use crate::layers::class;
use crate::world::{Lane, Twist, World, by_hand, clouds};

/// The lines of one watch.
type Lines = BoxStream<'static, io::Result<String>>;
/// What becomes of them, by the kind that is watched.
type Between = Arc<dyn Fn(&str, Lines) -> Lines + Send + Sync>;

/// A client whose watches pass through this.
fn through(client: Client, between: Between) -> Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, between) = (client.clone(), between.clone());
        async move {
            let class = class(request.method(), request.uri());
            let (parts, body) = client.send(request).await?.into_parts();
            let body = Stream::new(body);
            let Some(kind) = class.strip_prefix("k8s.watch.") else {
                return Ok::<_, kube::Error>(Response::from_parts(parts, body));
            };
            let bytes = body.into_data_stream().map_err(io::Error::other);
            let lines = between(kind, bytes.into_async_read().lines().boxed());
            let lines = lines.map_ok(|line| line + "\n");
            Ok(Response::from_parts(parts, Stream::from_stream(lines)))
        }
    });
    Client::new(service, "default")
}

/// What a test does while its watches pass through this.
fn with(
    name: &str,
    manners: Manners,
    between: Between,
    test: impl AsyncFnOnce(&mut World) -> Result<()>,
) -> Result<()> {
    by_hand(async |errors| {
        let mut lane = Lane::new(crate::plane().await?, errors).await?;
        let client = Arc::new(move |client| through(client, between.clone()));
        let twist = Twist { client: Some(client), ..Twist::default() };
        lane.run(name, manners, &[], twist, test).await
    })
    .with_context(|| format!("{name} with the manners of {:?}", manners.style))
}

/// A bookmark in the place of whatever a line tells: the watch goes on from there, and it is never told again.
fn bookmark(line: &str) -> Result<String, serde_json::Error> {
    let event: Value = serde_json::from_str(line)?;
    let object = &event["object"];
    let version = &object["metadata"]["resourceVersion"];
    Ok(json!({ "type": "BOOKMARK", "object": {
        "apiVersion": object["apiVersion"], "kind": object["kind"],
        "metadata": { "resourceVersion": version, "creationTimestamp": null },
    } })
    .to_string())
}

#[test]
fn e4_watches_of_nothing_but_bookmarks_lose_no_machine_and_no_job() -> Result<()> {
    for &manners in clouds() {
        let mute = Arc::new(AtomicBool::new(false));
        let muted = mute.clone();
        let between: Between = Arc::new(move |_, lines| {
            let mute = muted.clone();
            lines
                .map(move |line| match mute.load(Ordering::Relaxed) {
                    true => line.and_then(|line| bookmark(&line).map_err(io::Error::other)),
                    false => line,
                })
                .boxed()
        });
        with("e4-bookmarks", manners, between, async |world| {
            world.create(json!({})).await?;
            world.until("running", |seen| seen.is("Running")).await?;
            mute.store(true, Ordering::Relaxed);
            // What nobody will tell it: its own writing over that is refused, and decided anew.
            world.patch(json!({ "backoffLimit": 5 })).await?;
            world.pass(Duration::from_secs(600)).await?;
            let seen = world.settle().await?;
            ensure!(seen.is("Complete") && seen.billed.is_empty(), "{:#}", seen.status());
            mute.store(false, Ordering::Relaxed);
            let seen = world.until_complete().await?;
            let status = seen.job.context("the job")?.status.context("a status")?;
            ensure!(status.interruptions == 0 && world.cloud.created() == 1, "{status:#?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Seconds by which what a watch tells comes late, in turn; each kind begins elsewhere.
const LATE: [u64; 7] = [0, 7, 3, 13, 1, 5, 0];

#[test]
fn e4_kinds_that_are_told_of_in_another_order_buy_nothing_twice() -> Result<()> {
    for &manners in clouds() {
        let clock = Arc::new(OnceLock::<Clock>::new());
        let known = clock.clone();
        let between: Between = Arc::new(move |kind, lines| {
            let (clock, begin) = (known.clone(), kind.len());
            let late = move |(at, line): (usize, io::Result<String>)| {
                let clock = clock.get().cloned();
                async move {
                    if let Some(clock) = clock {
                        clock.sleep(Duration::from_secs(LATE[(begin + at) % LATE.len()])).await;
                    }
                    line
                }
            };
            // Of one kind nothing overtakes another.
            lines.enumerate().then(late).boxed()
        });
        with("e4-order", manners, between, async |world| {
            let _ = clock.set(world.clock.clone());
            world.create(json!({})).await?;
            world.until("running", |seen| seen.is("Running")).await?;
            world.suspend(true).await?;
            world.until("suspended", |seen| seen.is("Suspended") && seen.claims.is_empty()).await?;
            world.suspend(false).await?;
            let seen = world.until_complete().await?;
            let status = seen.job.context("the job")?.status.context("a status")?;
            ensure!((status.interruptions, status.failures) == (0, 0), "{status:#?}");
            ensure!(world.cloud.created() == 2, "{} machines", world.cloud.created());
            Ok(())
        })?;
    }
    Ok(())
}
