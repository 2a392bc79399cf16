//! What ends a job or service for good: limits of money and time, data that changes, models
//! that cannot be served, and folders that refuse.

mod harness;

use harness::{Sandbox, job, json, text, until};

/// Long enough that nothing but a limit ends it.
const LONG: u64 = 50_000_000;

/// The job ended as Failed for this reason: exit 1, nothing left, every claim's last row written.
fn ended_for(sandbox: &Sandbox, manifest: &str, reason: &str, words: &str) -> serde_json::Value {
    let output = sandbox.run(&["run", "-f", manifest, "--json"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(reason) && said.contains(words), "{said}");
    let report = json(&output);
    assert_eq!(report["jobs"][0]["phase"], "Failed", "{said}");
    assert_eq!(report["jobs"][0]["reason"], reason, "{said}");
    assert!(report["artifact"].is_null(), "{report}");
    assert_eq!(sandbox.claims(), 0);
    until("nothing runs any more", || sandbox.processes("train --job").is_empty());
    let costs = json(&sandbox.run(&["costs", "--json"]));
    let rows = costs["rows"].as_array().expect("rows");
    assert_eq!(rows.iter().filter(|row| row["kind"] == "final").count(), 1, "{costs}");
    assert_eq!(rows.last().expect("a row")["kind"], "final");
    assert_eq!(costs["total"], report["cost_usd"]);
    report
}

#[test]
fn a_job_that_reaches_its_cost_limit_is_ended() {
    let sandbox = Sandbox::new();
    std::fs::create_dir_all(sandbox.home()).expect("a home");
    // Some 270 dollars a second.
    std::fs::write(sandbox.home().join("config.yaml"), "host: {usdPerKwh: \"9000000\"}\n")
        .expect("written");
    let manifest = sandbox.file("job.yaml", &job("dear", 20_000, "  maxTotalCost: \"2500\"\n"));
    let manifest = manifest.display().to_string();
    let status = sandbox.home().join("jobs/default/dear/status.json");
    let signal = |signal| {
        for pid in sandbox.processes("train --job") {
            let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
            // Gone already is as good.
            let _ = rustix::process::kill_process(pid, signal);
        }
    };
    std::thread::scope(|scope| {
        // Estimated to end within the limit, it hangs.
        scope.spawn(|| {
            until("it runs", || !sandbox.processes("train --job").is_empty());
            signal(rustix::process::Signal::STOP);
            until("the limit is reached", || {
                std::fs::read_to_string(&status).is_ok_and(|s| s.contains("CostLimitExceeded"))
            });
            signal(rustix::process::Signal::CONT);
        });
        ended_for(&sandbox, &manifest, "CostLimitExceeded", "maxTotalCost is 2500 $");
    });
}

#[test]
fn a_job_past_its_active_deadline_is_ended() {
    let sandbox = Sandbox::new();
    let manifest = sandbox.file("job.yaml", &job("late", LONG, "  activeDeadlineSeconds: 2\n"));
    let manifest = manifest.display().to_string();
    ended_for(&sandbox, &manifest, "DeadlineExceeded", "activeDeadlineSeconds (2) is over");
}

#[test]
fn data_that_changes_while_it_trains_ends_the_job_without_another_try() {
    let sandbox = Sandbox::new();
    let line = "the quick brown fox jumps over the lazy dog, and goes on to the next hill\n";
    let data = sandbox.file("data.txt", &line.repeat(200));
    let spec = job("moving", LONG, "").replace("builtin:petaflop", &data.display().to_string());
    let manifest = sandbox.file("job.yaml", &spec).display().to_string();
    let status = sandbox.home().join("jobs/default/moving/status.json");
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            until("it trains", || {
                std::fs::read_to_string(&status).is_ok_and(|s| !s.contains("\"step\": 0,"))
            });
            std::fs::write(&data, line.repeat(201)).expect("written");
        });
        ended_for(&sandbox, &manifest, "InvalidSpec", "was changed while the job ran")
    });
    assert_eq!(report["jobs"][0]["restarts"], 0, "{report}");
    let listed = json(&sandbox.run(&["artifacts", "ls", "--json"]));
    assert_eq!(listed["artifacts"].as_array().map(Vec::len), Some(0));
}

#[test]
fn a_model_that_cannot_be_loaded_is_not_tried_again() {
    let sandbox = Sandbox::new();
    let model = sandbox.file(
        "config.json",
        r#"{"architectures": ["LlamaForCausalLM"],
        "model_type": "llama", "hidden_act": "silu", "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32,
        "vocab_size": 300, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}"#,
    );
    sandbox.file("model.safetensors", "this is no model");
    sandbox.file("tokenizer.json", "{}");
    let folder = model.parent().expect("a folder").display();
    let manifest = sandbox.file(
        "service.yaml",
        &format!(
            "apiVersion: petaflop.dev/v1alpha1\nkind: InferenceService\nmetadata: {{name: broken}}\n\
             spec: {{model: {{uri: \"file://{folder}\"}}}}\n"
        ),
    );
    let output = sandbox.run(&["run", "-f", &manifest.display().to_string(), "--json"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let report = json(&output);
    assert_eq!(report["services"][0]["phase"], "Failed", "{said}");
    // The runtime's own words, which are in its log too.
    let words = report["services"][0]["message"].as_str().expect("a message");
    let log = text(&sandbox.run(&["logs", "broken"]).stdout);
    assert!(!words.is_empty() && log.contains(words), "{words:?} in {log}");
    let runs = std::fs::read_dir(sandbox.home().join("services/default/broken/runs"));
    assert_eq!(runs.expect("runs").count(), 1, "one try");
    assert_eq!(sandbox.claims(), 0);
}

#[test]
fn a_read_only_home_is_a_plain_error() {
    let sandbox = Sandbox::new();
    let home = sandbox.home();
    std::fs::create_dir_all(&home).expect("a home");
    // Root writes where modes forbid it, but not on a file system that is mounted read-only.
    let mount = |arguments: &[&str]| {
        std::process::Command::new("mount")
            .args(arguments)
            .arg(&home)
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let mounted = mount(&["-t", "tmpfs", "-o", "ro", "tmpfs"]);
    if !mounted {
        let mut modes = std::fs::metadata(&home).expect("a home").permissions();
        modes.set_readonly(true);
        std::fs::set_permissions(&home, modes).expect("modes");
        if std::fs::write(home.join("probe"), "").is_ok() {
            eprintln!("NOT RUN: a read-only home: may not mount, and modes do not bind this user");
            assert!(
                std::env::var_os("CI").is_none(),
                "where CI is set, what is not tested is a failure"
            );
            return;
        }
    }
    let manifest = sandbox.file("job.yaml", &job("small", 20, "")).display().to_string();
    let output = sandbox.run(&["run", "-f", &manifest, "--json"]);
    if mounted {
        let _ = std::process::Command::new("umount").arg(&home).status();
    }
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(said.contains("cannot use") && said.contains("make it writable"), "{said}");
}
