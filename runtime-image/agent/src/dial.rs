//! The agent calls, where nobody can call it: it asks the operator's endpoint for
//! requests, and brings the response to one with the question for the next.

use std::sync::Arc;
use std::time::Duration;

use petaflop_agent_api::message::LONGEST_WAIT;
use petaflop_agent_api::poll::Poll;
use petaflop_agent_api::session::BODY_LIMIT;
use reqwest::{Client, StatusCode};

use crate::session::Session;

/// After a failure; doubled up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Dials until it is dropped.
pub(crate) async fn dial(endpoint: String, session: Arc<Session>) {
    let endpoint = endpoint.trim_end_matches('/');
    // TLS needs to know whose arithmetic to use; whoever was first has decided.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().timeout(LONGEST_WAIT + Duration::from_secs(15)).build();
    let client = match client {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(%error, "cannot dial");
            return std::future::pending().await;
        }
    };
    let mut pause = PAUSE;
    let mut counter = 0;
    let mut response = Vec::new();
    loop {
        let step = async {
            if !session.is_enrolled() {
                let hello = session.hello().map_err(|e| e.to_string())?;
                let welcome = post(&client, format!("{endpoint}/v1/hello"), hello).await?;
                return session.welcome(&welcome).map_err(|e| e.to_string());
            }
            counter += 1;
            let poll = Poll::body(
                session.secret(),
                session.operator(),
                session.claim_uid(),
                session.start(),
                counter,
                &response,
            );
            let poll = poll.map_err(|e| e.to_string())?;
            let request = post(&client, format!("{endpoint}/v1/rpc"), poll).await?;
            // It has arrived, or we would not have got an answer.
            response.clear();
            if !request.is_empty() {
                response = session.call(&request).await.map_err(|e| e.to_string())?;
            }
            Ok(())
        };
        match step.await {
            Ok(()) => pause = PAUSE,
            Err(error) => {
                tracing::warn!(error, "the operator was not reached");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

async fn post(client: &Client, url: String, body: Vec<u8>) -> Result<Vec<u8>, String> {
    let said = |e: reqwest::Error| e.without_url().to_string();
    let mut answer = client.post(url).body(body).send().await.map_err(said)?;
    if answer.status() == StatusCode::NO_CONTENT {
        return Ok(Vec::new());
    }
    if answer.status() != StatusCode::OK {
        return Err(format!("it answered {}", answer.status()));
    }
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(said)? {
        if bytes.len() + piece.len() > BODY_LIMIT {
            return Err("its answer is too long".into());
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}
