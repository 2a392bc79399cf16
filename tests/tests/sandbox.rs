//! `petaflop sandbox`: a job whose machines are taken away there, and what was billed for them. Root only, for
//! its machines are network namespaces; said loudly where that is missing.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use petaflop_arbiter::money::Usd;
use petaflop_harness::tools;
use petaflop_tests::{binary, static_binary};
use serde_json::{Value, json};

/// `tiny`, of the text that is in the runtime, long enough to be taken away twice.
fn manifest(folder: &Path) -> Result<String> {
    let tiny = include_str!("../../examples/tiny.yaml").replace("../LICENSE", "builtin:petaflop");
    let steps = tiny.lines().find(|line| line.trim_start().starts_with("max_steps:"));
    let job = tiny.replace(steps.context("tiny.yaml has max_steps")?, "    max_steps: 400");
    // With an hour's time it would wait for the spot machines that AWS will have again.
    let (job, now) = (job.replace("  deadline:\n    within: 1h\n", ""), job);
    ensure!(job != now, "tiny.yaml has another deadline");
    let file = folder.join("job.yaml");
    fs::write(&file, format!("{job}  checkpoint: {{intervalSeconds: 5}}\n"))?;
    Ok(file.display().to_string())
}

fn petaflop(home: &Path, arguments: &[&str]) -> Result<Value> {
    let mut command = Command::new(binary("petaflop")?);
    command
        .args(arguments)
        .env("PETAFLOP_HOME", home)
        .env("PETAFLOP_AGENT", static_binary("petaflop-agent")?)
        .env("PETAFLOP_BOX_MACHINE", static_binary("petaflop-box-machine")?)
        .stdin(Stdio::null());
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}:\n{said}", output.status);
    eprintln!("{said}");
    serde_json::from_slice(&output.stdout).context("one JSON object")
}

#[test]
fn a_job_whose_machines_are_taken_away_ends_as_if_nothing_had_happened() -> Result<()> {
    if !tools::is_root() {
        ensure!(std::env::var_os("CI").is_none(), "not tested: the sandbox needs root");
        eprintln!("NOT TESTED HERE: the sandbox needs root");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let job = manifest(folder.path())?;
    let here = petaflop(
        &folder.path().join("alone"),
        &["run", "--provider", "host", "--json", "-f", &job],
    )?;

    let (home, receipt) = (folder.path().join("home"), folder.path().join("receipt.json"));
    let receipt_at = receipt.display().to_string();
    let program = binary("petaflop")?.display().to_string();
    let inside = ["--", &program, "run", "--json", "-f", &job];
    let words = [&["sandbox", "--after", "4", "--receipt", &receipt_at][..], &inside[..]].concat();
    let away = petaflop(&home, &words)?;
    ensure!(away["jobs"][0]["artifact"] == here["jobs"][0]["artifact"], "{away:#} {here:#}");

    let receipt: Value = serde_json::from_slice(&fs::read(receipt)?)?;
    let machines = receipt["machines"].as_array().context("machines")?;
    let places: Vec<_> = machines.iter().map(|m| json!([m["provider"], m["spot"]])).collect();
    let wanted = [json!(["aws", true]), json!(["runpod", false]), json!(["runpod", false])];
    ensure!(places == wanted, "one taken away, one whose host died, one to the end: {receipt:#}");
    let dollars = |name: &str| -> Result<Usd> {
        Ok(receipt[name].as_str().with_context(|| format!("{name}: {receipt:#}"))?.parse()?)
    };
    ensure!(dollars("billedUsd")? < dollars("onDemandUsd")?, "spot saved nothing: {receipt:#}");
    ensure!(machines.iter().all(|machine| machine["bills"] == false), "{receipt:#}");
    is_booked(&home.join("sandbox/home"), &receipt)
}

/// The ledger of the home is the invoice. What lived for less than EC2's minute is so to the
/// micro-dollar. Of what lived longer it is so to a second of each: an instance was seen to run at most
/// a second after it did; a pod ended between our call and its answer, or says in whole seconds when it
/// stopped (docs/money.md).
fn is_booked(home: &Path, receipt: &Value) -> Result<()> {
    let costs = petaflop(home, &["costs", "--json", "--by", "provider"])?;
    let micros = |text: &Value| -> Result<i64> {
        let dollars: Usd = text.as_str().context("an amount")?.parse()?;
        Ok(dollars.micros())
    };
    let (mut booked, mut billed, mut within) = (0, 0, 0);
    for (_, sum) in costs["groups"].as_object().context("groups")? {
        booked += micros(sum)?;
    }
    for machine in receipt["machines"].as_array().context("machines")? {
        let (from, until): (Timestamp, Timestamp) = (
            serde_json::from_value(machine["since"].clone())?,
            serde_json::from_value(machine["until"].clone())?,
        );
        let (amount, seconds) =
            (micros(&machine["billedUsd"])?, until.duration_since(from).as_secs());
        billed += amount;
        if machine["provider"] != "aws" || seconds > 55 {
            within += amount / seconds.max(1) + 1;
        }
    }
    eprintln!(
        "booked {booked}, invoiced {billed}, to {within} micro-dollars: {costs:#} {receipt:#}"
    );
    ensure!(booked > 0 && micros(&receipt["billedUsd"])? == billed, "{receipt:#}");
    ensure!((booked - billed).abs() <= within, "{booked} booked, {billed} invoiced");
    Ok(())
}
