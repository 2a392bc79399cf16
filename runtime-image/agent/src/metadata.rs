//! EC2's metadata service (IMDSv2): the notice that a spot instance is taken away, and the word
//! before it that this has become likely. The service is the machine's own, so this goes by real
//! time.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::{Client, Method, StatusCode};

/// Between two looks, as AWS recommends.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Of one look: the service is on the same host.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a token is good for, in seconds; it is asked for again when it is refused.
const TOKEN_SECONDS: &str = "21600";
/// A notice comes two minutes before the end. A wall that is off makes it neither longer nor,
/// by much, shorter.
const NOTICE: (i64, i64) = (60, 120);
/// Left for the agent's own last words.
const LAST_WORDS: i64 = 10;

/// What the service had to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The machine is likely to be taken away; since when.
    Rebalance(String),
    /// The machine is taken away in so long.
    Notice(Duration),
}

/// The service, and what was heard of it.
pub(crate) struct Metadata {
    http: Option<Client>,
    base: String,
    token: Option<String>,
    recommended: bool,
}

impl Metadata {
    /// The service at this address.
    pub(crate) fn new(base: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Its answers are this machine's own: no proxy, and nowhere else.
        let http = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE)
            .build();
        let http = http
            .inspect_err(|error| tracing::error!(%error, "the metadata service cannot be asked"))
            .ok();
        let base = base.trim_end_matches('/').to_owned();
        Self { http, base, token: None, recommended: false }
    }

    /// Returns with the next word. Neither silence nor nonsense is one.
    pub(crate) async fn next(&mut self) -> Word {
        loop {
            if let Some(word) = self.look().await {
                return word;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&mut self) -> Option<Word> {
        if let Some(text) = self.get("spot/instance-action").await
            && let Some(left) = notice(&text, Timestamp::now())
        {
            return Some(Word::Notice(left));
        }
        if self.recommended {
            return None;
        }
        let text = self.get("events/recommendations/rebalance").await?;
        let value: serde_json::Value = serde_json::from_str(&text).ok()?;
        let time = value.get("noticeTime")?.as_str()?.to_owned();
        self.recommended = true;
        Some(Word::Rebalance(time))
    }

    /// What stands at a place; `None` where nothing does, or nobody answers.
    async fn get(&mut self, path: &str) -> Option<String> {
        let http = self.http.clone()?;
        let token = match &self.token {
            Some(token) => token.clone(),
            None => {
                let put = http.request(Method::PUT, format!("{}/latest/api/token", self.base));
                let put = put.header("X-aws-ec2-metadata-token-ttl-seconds", TOKEN_SECONDS);
                let answer = put.send().await.ok()?.error_for_status().ok()?;
                let token = answer.text().await.ok()?;
                self.token.insert(token).clone()
            }
        };
        let url = format!("{}/latest/meta-data/{path}", self.base);
        let answer = http.get(url).header("X-aws-ec2-metadata-token", token).send().await.ok()?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.token = None;
        }
        if answer.status() != StatusCode::OK {
            return None;
        }
        answer.text().await.ok()
    }
}

/// How much time a notice leaves; `None` where it is none. Whatever is done to the machine, it is
/// no longer ours.
fn notice(text: &str, now: Timestamp) -> Option<Duration> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    value.get("action")?.as_str()?;
    let at = value.get("time").and_then(|time| time.as_str()?.parse::<Timestamp>().ok());
    let left = at.map_or(NOTICE.1, |at| at.duration_since(now).as_secs());
    let left = left.clamp(NOTICE.0, NOTICE.1) - LAST_WORDS;
    Some(Duration::from_secs(left.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_leaves_what_it_says_and_a_clock_that_is_off_changes_little() {
        let now: Timestamp = "2026-11-20T10:00:00Z".parse().expect("a time");
        let left = |time: &str| {
            let text = format!(r#"{{"action":"terminate","time":"{time}"}}"#);
            notice(&text, now).map(|left| left.as_secs())
        };
        assert_eq!(left("2026-11-20T10:01:40Z"), Some(90));
        assert_eq!(left("2026-11-20T09:00:00Z"), Some(50));
        assert_eq!(left("2026-11-20T12:00:00Z"), Some(110));
        assert_eq!(left("soon"), Some(110));
        for none in ["", "404 - Not Found", "{}", r#"{"action":null}"#, "[]"] {
            assert_eq!(notice(none, now), None, "{none}");
        }
    }
}
