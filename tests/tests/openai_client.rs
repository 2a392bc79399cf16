//! The official OpenAI client for Python talks to a model that was trained and
//! is served by the real binary.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use petaflop_tests::{binary, cache};
use serde_json::{Value, json};

/// Tokens of the model's context.
const CONTEXT: u32 = 256;

#[test]
fn the_official_client_streams_a_chat_completion() -> Result<()> {
    let python = python()?;
    let home = tempfile::tempdir()?;
    let runtime = binary("petaflop-runtime")?;
    let artifact = train(&runtime, home.path())?;
    let server = Server::start(&runtime, home.path(), &artifact)?;

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/openai_chat.py");
    let output = Command::new(&python)
        .args([script, &format!("{}/v1", server.url), "tiny", &CONTEXT.to_string()])
        .output()
        .with_context(|| format!("starting {}", python.display()))?;
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{stdout}\n{stderr}");
    let seen: Value =
        serde_json::from_str(&stdout).with_context(|| format!("its report: {stdout}"))?;
    ensure!(seen["pieces"].as_u64() > Some(1), "{seen}");
    ensure!(seen["usage"]["completion_tokens"].as_u64() > Some(0), "{seen}");
    Ok(())
}

/// Trains a tiny model for a few steps on the text of the licence, which stays as it is. Its artifact's hash.
fn train(runtime: &Path, home: &Path) -> Result<String> {
    let job = json!({
        "recipe": {
            "model": {"scratch": {
                "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "intermediate": 64,
                "vocab": 320, "max_positions": CONTEXT, "norm_eps": 1e-5,
                "rope": {"theta": 10000.0, "scaling": {"type": "none"}},
                "tied_embeddings": true, "qkv_bias": false, "qk_norm": false,
            }},
            "tokenizer": {"train_bpe": {"vocab": 320}},
            "datasets": [{"input": "text", "kind": "completion"}],
            "val_set_size": 0.0,
            "sequence_len": 64,
            "micro_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "length": {"steps": 10},
            "optimizer": {"adamw": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}},
            "learning_rate": 0.003,
            "schedule": {"warmup_steps": 2, "decay": "cosine", "min_ratio": 0.1},
            "max_grad_norm": 1.0,
            "seed": 1,
            "precision": "f32",
        },
        "inputs": [{"name": "text", "uri": concat!(env!("CARGO_MANIFEST_DIR"), "/../LICENSE")}],
        "store": home.join("store"),
        "checkpoints": home.join("checkpoints"),
        "checkpoint_interval_seconds": 600,
        "keep_checkpoints": 2,
    });
    let file = home.join("job.json");
    std::fs::write(&file, job.to_string())?;
    let command = |name: &str| {
        let mut command = Command::new(runtime);
        command.args([name, "--job"]).arg(&file);
        command
    };
    let trained = command("train").output().context("starting the runtime")?;
    ensure!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    let key = command("key").output()?;
    let key: Value = serde_json::from_slice(&key.stdout)?;
    let hash = key["cached"].as_str();
    Ok(hash.with_context(|| format!("the finished job is not in the store: {key}"))?.to_owned())
}

/// `petaflop-runtime serve`, ended with the test.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(runtime: &Path, home: &Path, artifact: &str) -> Result<Self> {
        let mut child = Command::new(runtime)
            .args(["serve", "--artifact", artifact, "--name", "tiny", "--port", "0", "--store"])
            .arg(home.join("store"))
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("its stdout is a pipe")?;
        let mut server = Server { child, url: String::new() };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let said: Value = serde_json::from_str(&line)
            .with_context(|| format!("expected a line of JSON from the server, got {line:?}"))?;
        server.url = said["listening"].as_str().context("where it listens")?.to_owned();
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The interpreter of an environment with exactly the packages of
/// `python/requirements.txt`, made once and kept.
fn python() -> Result<PathBuf> {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/requirements.txt");
    let hash = blake3::hash(&std::fs::read(&requirements)?).to_hex();
    let cache = cache()?;
    let environment = cache.join(format!("venv-{}", &hash[..16]));
    let python = environment.join("bin/python");
    let works = |python: &Path| {
        let asked =
            Command::new(python).args(["-c", "import openai"]).stderr(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    };
    if works(&python) {
        return Ok(python);
    }

    // Made beside and moved when it is complete. Only `bin/python` is used, which
    // finds its packages from where it lies.
    std::fs::create_dir_all(&cache)?;
    let making = tempfile::Builder::new().prefix("venv-").tempdir_in(&cache)?;
    run(
        Command::new("python3").args(["-m", "venv"]).arg(making.path()),
        "Python 3 with venv is missing or broken: `apt-get install python3 python3-venv` (or your system's equal) installs it",
    )?;
    run(
        Command::new(making.path().join("bin/python"))
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "-r",
            ])
            .arg(&requirements),
        "pip could not install tests/python/requirements.txt: this test needs PyPI, or a mirror of it set in pip's configuration",
    )?;
    if environment.exists() {
        std::fs::remove_dir_all(&environment)?;
    }
    let made = making.keep();
    std::fs::rename(&made, &environment)?;
    ensure!(works(&python), "{} cannot import openai", python.display());
    Ok(python)
}

/// Runs a command; where it fails, says what it said and what helps.
fn run(command: &mut Command, helps: &str) -> Result<()> {
    let output = command.output().with_context(|| helps.to_owned())?;
    ensure!(
        output.status.success(),
        "{helps}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
