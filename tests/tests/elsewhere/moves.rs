//! A job of `petaflop run` that leaves its pod for a cheaper one, and what it printed on both.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use petaflop_cloud_box::engine::product::Product;
use petaflop_harness::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{World, result};

/// Two looks for a better place are a minute apart.
const SOON: Duration = Duration::from_secs(180);

impl World {
    /// From now on whatever is so costs so many micro-dollars an hour and unit, and is not sold as spot.
    fn price(&self, which: impl Fn(&Product) -> bool, price: i64) {
        self.runpod.engine(|engine| {
            let ids: Vec<_> =
                engine.products().filter(|(_, p)| which(p)).map(|(id, _)| id).collect();
            for id in ids {
                let product = engine.product_mut(id);
                (product.on_demand, product.spot) = (price, None);
            }
        });
    }

    /// `tiny`, which may move at once and is not limited in what it costs.
    fn restless(&self, provider: &str) -> Result<PathBuf> {
        let file = self.manifest(provider)?;
        let text = fs::read_to_string(&file)?;
        let free = text.replace("  maxTotalCost: \"0.10\"\n", "");
        ensure!(free != text, "another example: {text}");
        fs::write(&file, format!("{free}    interruption: {{minHoldSeconds: 0}}\n"))?;
        Ok(file)
    }

    fn status(&self) -> Result<Value> {
        let file = self.home().join("jobs/default/tiny/status.json");
        Ok(serde_json::from_slice(&fs::read(file)?)?)
    }

    /// The processes that train on this home's pods.
    fn trainers(&self) -> Result<Vec<Pid>> {
        let installation = fs::read_to_string(self.home().join("installation"))?;
        let own = format!("PETAFLOP_IDENTITY={}/", installation.trim());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(pid) = pid.and_then(Pid::from_raw) else { continue };
            let read = |file| fs::read(entry.path().join(file)).unwrap_or_default();
            let (argv, variables) = (read("cmdline"), read("environ"));
            let trains = String::from_utf8_lossy(&argv).contains("\0train\0");
            if trains && String::from_utf8_lossy(&variables).contains(&own) {
                found.push(pid);
            }
        }
        Ok(found)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_moves_to_a_cheaper_pod_with_the_same_hash_and_its_output_is_here() -> Result<()> {
    let Some(world) = World::start().await? else { return Ok(()) };
    let here = world.undisturbed().await?;
    world.price(|_| true, 3_000_000);
    world.price(|product| product.kind == "cpu5g", 1_000_000);
    let manifest = world.restless("runpod")?.display().to_string();
    let mut run = world.petaflop(&world.home(), &["run", "--json", "-f", &manifest])?;
    let run = tokio::spawn(async move { run.output().await });
    // It rests, so that it is not over before anybody looks at prices.
    let at_rest = eventually("it trains", SOON, || async {
        let found = world.trainers().map_err(|error| error.to_string())?;
        let runs = world.status().is_ok_and(|status| status["phase"] == "Running");
        if found.is_empty() || !runs { Err("not yet".to_owned()) } else { Ok(found) }
    })
    .await?;
    at_rest.iter().try_for_each(|pid| kill_process(*pid, Signal::STOP))?;
    world.price(|product| product.kind == "cpu5m", 1000);
    eventually("it leaves", SOON, || async {
        let status = world.status().map_err(|error| error.to_string())?;
        match status["leaving"]["reason"] == "CheaperOfferMigration" {
            true => Ok(()),
            false => Err(status.to_string()),
        }
    })
    .await?;
    at_rest.iter().try_for_each(|pid| kill_process(*pid, Signal::CONT))?;
    let away = result(&run.await??)?;
    ensure!(away["jobs"][0]["artifact"] == here["jobs"][0]["artifact"], "{away} {here}");
    let status = world.status()?;
    ensure!(status["interruptions"] == 0 && status["failures"] == 0, "a move is no loss: {status}");
    let kinds: Vec<String> = world.runpod.engine(|engine| {
        engine.machines().iter().map(|pod| engine.product(pod.order.product).kind.clone()).collect()
    });
    ensure!(kinds == ["cpu5g", "cpu5m"], "{kinds:?}");
    world.is_settled().await?;

    // What was printed on either pod is in the home, and told in its order.
    let said = world.petaflop(&world.home(), &["logs", "tiny"])?.output().await?;
    let said = String::from_utf8(said.stdout)?;
    let at = |text: &str| said.find(text).with_context(|| format!("no {text:?} in {said}"));
    ensure!(at("stopped: step ")? < at("going on after step ")?, "{said}");
    ensure!(at("going on after step ")? < at("finished: artifact ")?, "{said}");
    Ok(())
}
