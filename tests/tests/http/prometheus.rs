//! The metrics, as `promtool` and a real Prometheus take them.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use petaflop_harness::{Launch, eventually, tools};
use serde_json::json;

use crate::asker::{Asker, account, let_everywhere, remove};
use crate::operator::Cluster;

/// Names of metrics, with their labels, without values.
fn shape(text: &str) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with('#') {
            lines.insert(line.to_owned());
            continue;
        }
        let (name, rest) = match line.split_once('{') {
            Some((name, rest)) => (name, rest),
            None => (line.split(' ').next().unwrap_or(line), ""),
        };
        let labels = rest.rsplit_once('}').map_or("", |(labels, _)| labels);
        let keys: Vec<&str> =
            labels.split("\",").filter_map(|pair| pair.split_once('=')).map(|(k, _)| k).collect();
        lines.insert(format!("{name}{{{}}}", keys.join(",")));
    }
    lines
}

/// Metrics that a text asks for.
fn asked_for(text: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    text.split(word).filter(|w| w.starts_with("petaflop_")).map(str::to_owned).collect()
}

pub(crate) fn promtool_checks(text: &str) -> Result<()> {
    let mut tool = Command::new(tools::promtool()?)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    tool.stdin.take().context("stdin")?.write_all(text.as_bytes())?;
    let output = tool.wait_with_output()?;
    let words = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    // It lints too, and says so without failing.
    ensure!(output.status.success() && words.trim().is_empty(), "{words}\n{text}");
    Ok(())
}

/// Names, kinds, words and labels of all metrics, and that whatever the chart asks for exists.
pub(crate) fn metrics_are_as_committed(while_running: &str, after: &str) -> Result<()> {
    let mut all = shape(while_running);
    all.extend(shape(after));
    let text = all.into_iter().collect::<Vec<_>>().join("\n") + "\n";
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join("tests/golden/metrics.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &text)?;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    ensure!(committed == text, "not as committed (UPDATE=1 writes it anew):\n{text}");
    for file in ["alerts.yaml", "dashboard.json"] {
        let path = root.join("charts/petaflop/files").join(file);
        for name in asked_for(&std::fs::read_to_string(&path)?) {
            let sample = format!("\n{name}{{");
            ensure!(text.contains(&sample), "{file} asks for {name}, which nobody tells");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_scrapes_the_operator() -> Result<()> {
    let cluster = Cluster::start("http-prometheus").await?;
    let running = cluster.operator().await?;
    let token = account(&cluster, "prometheus").await?;
    let scrapes = let_everywhere(&cluster, "prometheus", "metrics-reader").await?;
    let folder = tempfile::tempdir()?;
    let config = json!({
        "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{
            "job_name": "petaflop",
            "authorization": { "credentials_file": "token" },
            "static_configs": [{ "targets": [running.http.to_string()] }],
        }],
    });
    std::fs::write(folder.path().join("prometheus.yaml"), config.to_string())?;
    std::fs::write(folder.path().join("token"), token)?;
    let rules = include_str!("../../../charts/petaflop/files/alerts.yaml");
    let rules = rules.replace("__HOURLY_SPEND_LIMIT__", "100");
    std::fs::write(folder.path().join("rules.yaml"), rules)?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let prometheus = cluster.plane.run(
        &format!("prometheus-{port}"),
        Launch::new(tools::prometheus()?).arguments([
            format!("--config.file={}", file("prometheus.yaml")),
            format!("--storage.tsdb.path={}", file("data")),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ]),
    )?;
    let asker = Asker {
        http: reqwest::Client::builder().no_proxy().build()?,
        token: None,
        base: format!("http://127.0.0.1:{port}"),
    };
    let query =
        "/api/v1/query?query=sum(petaflop_leader)%20*%20on()%20count(petaflop_offer_price_usd)";
    let answered = eventually("an answer by Prometheus", Duration::from_secs(120), || async {
        prometheus.must_be_up().map_err(|error| error.to_string())?;
        let answer = asker.json(query).await.map_err(|error| error.to_string())?;
        match answer["data"]["result"][0]["value"][1].as_str() {
            Some("1") => Ok(()),
            _ => Err(answer.to_string()),
        }
    });
    answered.await?;
    let rules = asker.json("/api/v1/rules").await?;
    for rule in rules["data"]["groups"][0]["rules"].as_array().context("rules")? {
        ensure!(rule["health"] != "err", "{rule}");
    }
    prometheus.kill();
    remove(&cluster, &scrapes).await
}
