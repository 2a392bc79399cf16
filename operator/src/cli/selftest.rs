//! `petaflop selftest`: what `helm test` runs: the operator answers, and is ready.

use std::time::Duration;

use super::{Code, Failure, Outcome, print, waiting};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The operator's HTTP interface
    #[arg(long, env = "PETAFLOP_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
}

pub(crate) fn run(args: &Args) -> Outcome {
    waiting()?.block_on(async {
        let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
        let url = args.url.trim_end_matches('/');
        for path in ["/healthz", "/readyz"] {
            let answer = client.get(format!("{url}{path}")).send().await.map_err(|error| {
                let said = crate::cluster::error::chain(&error);
                Failure::failed(format!(
                    "{said}; see that the operator runs and its Service has endpoints"
                ))
            })?;
            let status = answer.status();
            let body = answer.text().await.unwrap_or_default();
            if !status.is_success() {
                return Err(Failure::failed(format!(
                    "{url}{path}: {status}: {}; the operator's log says more",
                    body.trim()
                )));
            }
            print(format_args!("{path}: {}", body.trim()))?;
        }
        Ok(Code::Done)
    })
}
