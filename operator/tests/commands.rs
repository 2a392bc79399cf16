//! The commands as a user meets them: real binaries, real files, real processes.

mod harness;

use harness::{Sandbox, job, json, text, until};
use petaflop_agent_api::clock::Clock;
use petaflop_cloud_box::host::StateOnly;
use petaflop_cloud_box::runpod::keys::Scope;
use petaflop_cloud_box::runpod::limits::Limits;
use petaflop_cloud_box::runpod::{PACE, RunPod, Setup};
use petaflop_operator::embedded::work::{served_as, serving, shape_of};
use petaflop_plan::dtype::Dtype;

#[test]
fn a_bad_manifest_names_the_place_and_starts_nothing() {
    let sandbox = Sandbox::new();
    let manifest = sandbox.file("bad.yaml", &job("bad", 5, "  maxTotalCots: \"1\"\n"));
    let output = sandbox.run(&["run", "-f", &manifest.display().to_string(), "--json"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(said.contains("bad.yaml:") && said.contains("maxTotalCost"), "{said}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    assert_eq!(sandbox.claims(), 0);
    assert!(!sandbox.home().join("jobs/default/bad").exists());
}

#[test]
fn a_job_runs_once_and_is_then_a_cache_hit() {
    let sandbox = Sandbox::new();
    let manifest = sandbox.file("job.yaml", &job("once", 20, ""));
    let arguments = ["run", "-f", &manifest.display().to_string(), "--json"];
    let first = sandbox.run(&arguments);
    assert!(first.status.success(), "{}", text(&first.stderr));
    let first = json(&first);
    assert_eq!(first["cached"], false);
    assert_eq!(first["jobs"][0]["phase"], "Complete");
    assert_eq!(first["jobs"][0]["artifact"], first["artifact"]);
    assert!(first["jobs"][0]["decision"]["ranked"][0]["offer"]["id"].is_string());

    let second = json(&sandbox.run(&arguments));
    assert_eq!((&second["cached"], &second["cost_usd"]), (&true.into(), &"0".into()));
    assert_eq!((&second["artifact"], &second["key"]), (&first["artifact"], &first["key"]));

    // The claim is gone, and its money is in the ledger.
    assert_eq!(sandbox.claims(), 0);
    let costs = json(&sandbox.run(&["costs", "--json"]));
    assert_eq!(costs["total"], first["cost_usd"]);
    assert_eq!(costs["groups"]["default/once"], first["cost_usd"]);
    let last = costs["rows"].as_array().and_then(|rows| rows.last()).expect("a row").clone();
    assert_eq!(last["kind"], "final");

    let listed = json(&sandbox.run(&["artifacts", "ls", "--json"]));
    assert_eq!(listed["artifacts"][0]["hash"], first["artifact"]);
    let verified = sandbox.run(&["artifacts", "verify"]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    let ps = json(&sandbox.run(&["ps", "--all", "--json"]));
    assert_eq!(ps["items"][0]["phase"], "Complete");
}

#[test]
fn two_homes_never_touch_each_other() {
    let (a, b) = (Sandbox::new(), Sandbox::new());
    let text_of = job("long", 5_000_000, "");
    let manifest = a.file("job.yaml", &text_of);
    let started = a.run(&["run", "-f", &manifest.display().to_string(), "--detach", "--json"]);
    assert!(started.status.success(), "{}", text(&started.stderr));
    until("it runs", || json(&a.run(&["ps", "--json"]))["items"][0]["phase"] == "Running");
    // The sweep of another installation sees a stranger's process and leaves it alone.
    let other = json(&b.run(&["ps", "--all", "--json"]));
    assert_eq!(other["items"].as_array().map(Vec::len), Some(0));
    assert_eq!(json(&a.run(&["ps", "--json"]))["items"][0]["phase"], "Running");
    let stopped = a.run(&["stop", "long"]);
    assert!(stopped.status.success(), "{}", text(&stopped.stderr));
}

#[test]
fn no_offer_shows_the_nearest_misses_and_what_would_have_to_give() {
    let sandbox = Sandbox::new();
    let manifest =
        sandbox.file("job.yaml", &job("dear", 20, "  placement: {maxHourlyPrice: \"0.000001\"}\n"));
    let output = sandbox.run(&["run", "-f", &manifest.display().to_string(), "--json"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(
        said.contains("WOULD HAVE TO GIVE") && said.contains("placement.maxHourlyPrice"),
        "{said}"
    );
    let report = json(&output);
    assert_eq!(report["jobs"][0]["phase"], "Failed");
    assert!(report["artifact"].is_null());
    assert_eq!(sandbox.claims(), 0);
    assert!(sandbox.processes("operate").is_empty());
}

#[test]
fn a_snapshot_is_never_bought_from() {
    let sandbox = Sandbox::new();
    let manifest =
        sandbox.file("job.yaml", &job("rented", 20, "  placement: {providers: [aws, runpod]}\n"));
    let output = sandbox.run(&["run", "-f", &manifest.display().to_string(), "--json"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("not for sale"), "{}", text(&output.stderr));
    assert_eq!(sandbox.claims(), 0);
}

#[test]
fn live_offers_are_what_the_provider_says_now_and_its_key_is_not_told() {
    const KEY: &str = "rpa_canary_of_the_command_line";
    let sandbox = Sandbox::new();
    let nobody = sandbox.petaflop(&["offers", "--live"]).env_remove("RUNPOD_API_KEY").output();
    let nobody = nobody.expect("petaflop starts");
    assert_eq!(nobody.status.code(), Some(2), "{}", text(&nobody.stderr));
    assert!(text(&nobody.stderr).contains("set RUNPOD_API_KEY"), "{}", text(&nobody.stderr));

    let cloud = RunPod::start(Setup {
        clock: Clock::system(),
        seed: 1,
        keys: [(KEY.to_owned(), Scope::ReadOnly)].into(),
        pace: PACE,
        deposit: 0,
        limits: Limits::new(1000, 10_000, 100_000),
        page: None,
        host: Box::new(StateOnly::default()),
    })
    .expect("a cloud");
    let ask = |key: &str| {
        let mut command = sandbox.petaflop(&["offers", "--live", "--json"]);
        command.env("RUNPOD_API_BASE_URL", cloud.url()).env("RUNPOD_API_KEY", key);
        command.output().expect("petaflop starts")
    };
    let told = ask(KEY);
    assert!(told.status.success(), "{}", text(&told.stderr));
    let offers = json(&told)["offers"].as_array().cloned().expect("a list");
    let community =
        offers.iter().find(|o| o["instanceType"] == "1x NVIDIA GeForce RTX 4090 COMMUNITY");
    assert_eq!(community.expect("an offer")["price"], "0.35");
    assert!(offers.iter().all(|offer| offer["provider"] == "runpod"), "{offers:?}");
    let refused = ask("rpa_canary_that_is_not_known");
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stdout));
    assert!(text(&refused.stderr).contains("not authorised"), "{}", text(&refused.stderr));
    for output in [&told.stdout, &told.stderr, &refused.stderr] {
        assert!(!text(output).contains("canary"), "{}", text(output));
    }
}

#[test]
fn ctrl_c_checkpoints_and_the_same_command_goes_on() {
    let sandbox = Sandbox::new();
    let manifest = sandbox.file("job.yaml", &job("paused", 80_000, "")).display().to_string();
    let child = sandbox
        .petaflop(&["run", "-f", &manifest, "--json"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("petaflop starts");
    until("it trains", || {
        let status =
            std::fs::read_to_string(sandbox.home().join("jobs/default/paused/status.json"));
        status.is_ok_and(|text| !text.contains("\"step\": 0,") && text.contains("\"Running\""))
    });
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a signal");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(75), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("go on with: petaflop run -f"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(sandbox.claims(), 0, "nothing is paid for while it is stopped");

    let output = sandbox.run(&["run", "-f", &manifest, "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let resumed = json(&output);
    assert!(resumed["jobs"][0]["summary"]["resumed_from_step"].as_u64() > Some(0), "{resumed}");

    // Undisturbed in another home: the same artifact.
    let other = Sandbox::new();
    let undisturbed = json(&other.run(&["run", "-f", &manifest, "--json"]));
    assert_eq!(resumed["artifact"], undisturbed["artifact"]);
}

#[test]
fn killed_at_every_level_it_goes_on_and_nothing_is_left_over() {
    for victim in ["train --job", "operate --kind", ""] {
        let sandbox = Sandbox::new();
        let manifest = sandbox.file("job.yaml", &job("killed", 80_000, "")).display().to_string();
        let started = sandbox.run(&["run", "-f", &manifest, "--detach", "--json"]);
        assert!(started.status.success(), "{}", text(&started.stderr));
        until("it trains", || {
            let status =
                std::fs::read_to_string(sandbox.home().join("jobs/default/killed/status.json"));
            status.is_ok_and(|text| !text.contains("\"step\": 0,"))
        });
        sandbox.kill(victim);
        let output = sandbox.run(&["run", "-f", &manifest, "--json"]);
        assert!(output.status.success(), "killed {victim:?}: {}", text(&output.stderr));
        let report = json(&output);
        assert_eq!(report["jobs"][0]["phase"], "Complete", "killed {victim:?}");
        assert_eq!(sandbox.claims(), 0, "killed {victim:?}");
        until("no process is left", || sandbox.processes("petaflop").is_empty());
        let costs = json(&sandbox.run(&["costs", "--json"]));
        let rows = costs["rows"].as_array().expect("rows");
        let finals = rows.iter().filter(|row| row["kind"] == "final").count();
        let claims: std::collections::BTreeSet<_> = rows
            .iter()
            .map(|row| row["claim_uid"].to_string() + &row["claimUid"].to_string())
            .collect();
        assert_eq!(finals, claims.len(), "every claim has its last row: {costs}");
    }
}

#[test]
fn a_taken_port_is_said_before_anything_starts() {
    let sandbox = Sandbox::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let service = "---\napiVersion: petaflop.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: talk}\n\
                   spec: {model: {trainingJob: small}}\n";
    let manifest = sandbox.file("both.yaml", &format!("{}{service}", job("small", 20, "")));
    let output = sandbox.run(&["run", "-f", &manifest.display().to_string(), "--port", &port]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(said.contains(&format!("port {port} is taken")), "{said}");
    assert!(!sandbox.home().join("jobs/default/small").exists());
}

#[test]
fn a_trained_model_is_served_left_alone_and_stopped() {
    let sandbox = Sandbox::new();
    let service = "---\napiVersion: petaflop.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: talk}\n\
                   spec: {model: {trainingJob: small}}\n";
    let manifest = sandbox.file("both.yaml", &format!("{}{service}", job("small", 20, "")));
    let arguments = ["run", "-f", &manifest.display().to_string(), "--json"];
    let output = sandbox.run(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let first = json(&output);
    assert_eq!(first["services"][0]["phase"], "Available");
    let url = first["services"][0]["url"].as_str().expect("an address").to_owned();
    let servers = sandbox.processes("serve --artifact");
    assert_eq!(servers.len(), 1, "{servers:?}");

    let again = json(&sandbox.run(&arguments));
    assert_eq!(again["services"][0]["url"].as_str(), Some(url.as_str()));
    assert_eq!(sandbox.processes("serve --artifact"), servers, "unchanged is left alone");

    let stopped = sandbox.run(&["stop", "inferenceservice/talk"]);
    assert!(stopped.status.success(), "{}", text(&stopped.stderr));
    assert!(sandbox.processes("serve --artifact").is_empty());
    assert_eq!(sandbox.claims(), 0);
}

#[test]
fn a_gguf_file_is_served_by_its_place_and_refused_where_it_is_none() {
    let sandbox = Sandbox::new();
    let output = "  output: {format: gguf, quantization: q4_0}\n";
    let small = job("small", 20, output).replace("dim: 16", "dim: 64");
    let manifest = sandbox.file("job.yaml", &small).display().to_string();
    let trained = sandbox.run(&["run", "-f", &manifest, "--json"]);
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    let artifact = json(&trained)["artifact"].as_str().expect("a hash").to_owned();
    let store = sandbox.home().join("store").display().to_string();
    let store = petaflop_store::blocking::Store::open(&store).expect("the home's store");
    let folder = sandbox.home().with_file_name("model");
    store.materialise(artifact.parse().expect("a hash"), &folder).expect("its files");

    let serve = |name: &str, model: &str| {
        let service = format!(
            "apiVersion: petaflop.dev/v1alpha1\nkind: InferenceService\nmetadata: {{name: {name}}}\n\
             spec: {{model: {{{model}}}}}\n"
        );
        let file = sandbox.file(&format!("{name}.yaml"), &service).display().to_string();
        sandbox.run(&["run", "-f", &file, "--json"])
    };
    let served = serve("talk", "uri: model/model.gguf, format: gguf");
    assert!(served.status.success(), "{}", text(&served.stderr));
    assert_eq!(json(&served)["services"][0]["phase"], "Available");
    assert_eq!(sandbox.processes("serve --gguf").len(), 1);
    let stopped = sandbox.run(&["stop", "inferenceservice/talk"]);
    assert!(stopped.status.success(), "{}", text(&stopped.stderr));
    let by_hash = serve("hash", &format!("uri: \"artifact:{artifact}\""));
    assert!(by_hash.status.success(), "{}", text(&by_hash.stderr));
    assert_eq!(sandbox.processes("serve --artifact").len(), 1);

    sandbox.file("broken.gguf", "GGUF of another day");
    for (model, said) in [
        ("uri: model/model.gguf, format: safetensors", "spec.model.format"),
        ("uri: nowhere, format: gguf", "there is no GGUF file at"),
        ("uri: broken.gguf", "not a whole GGUF file"),
    ] {
        let refused = serve("wrong", model);
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
        assert!(text(&refused.stderr).contains(said), "{}", text(&refused.stderr));
    }
}

const SHAPE: &[u8] = br#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_act": "silu", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 300,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}"#;

#[test]
fn a_served_artifacts_memory_is_that_of_its_formats() {
    let shape = shape_of(SHAPE).expect("a model that can be planned for");
    let bytes = |recipe: Option<&str>| {
        let weights =
            served_as(recipe.map(str::as_bytes), &shape).expect("a model that can be planned for");
        (weights, serving(&shape, weights).expect("a model that can be planned for").arena_bytes)
    };
    let (plain, f32s) = bytes(None);
    let (eight, eights) = bytes(Some(r#"{"output": {"gguf": "q8_0"}}"#));
    let (four, fours) = bytes(Some(r#"{"output": {"gguf": "q4_0"}}"#));
    assert_eq!([plain, eight, four], [Dtype::F32, Dtype::Q8_0, Dtype::Q4_0]);
    assert!(fours < eights && eights < f32s, "{fours} {eights} {f32s}");
    assert_eq!(bytes(Some(r#"{"output": {"gguf": "none"}}"#)), (plain, f32s));
    assert_eq!(bytes(Some("{}")), (plain, f32s));
    assert!(served_as(Some(b"no recipe"), &shape).expect_err("no JSON").contains("recipe.json"));
}

#[test]
fn a_home_that_cannot_be_written_is_a_plain_error() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("not-a-folder", "");
    let output = sandbox.run(&["ps", "--home", &file.join("home").display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("cannot use") && said.contains("PETAFLOP_HOME"), "{said}");
}

#[test]
fn a_plan_says_between_which_dollars_and_whether_buying_a_machine_pays() {
    let sandbox = Sandbox::new();
    let manifest = sandbox.file("job.yaml", &job("bought", 20, "")).display().to_string();
    let plan = |more: &[&str]| sandbox.run(&[&["plan", "-f", &manifest], more].concat());
    let planned = plan(&["--json", "--bought-usd", "2500", "--bought-years", "2"]);
    assert!(planned.status.success(), "{}", text(&planned.stderr));
    let planned = json(&planned);
    let cost = &planned["decisions"][0]["ranked"][0]["cost"];
    assert!(cost["usdRange"][1].is_string(), "{cost}");
    let both = &planned["ownOrRent"][0];
    assert_eq!(both["lifetimeHours"], 2 * 8_766, "{both}");
    assert_eq!(both["marginal"], cost["total"], "the one of one's own is taken: {both}");
    assert!(both["paysAfterHours"].as_u64().is_some_and(|hours| hours > 0), "{both}");
    let said = text(&plan(&["--bought-usd", "2500"]).stdout);
    assert!(said.contains("buy or rent: ") && said.contains("buying pays from "), "{said}");
    assert!(said.contains("$ expected (between "), "{said}");
    assert!(json(&plan(&["--json"])).get("ownOrRent").is_none(), "nobody asked");
    for wrong in [&["--bought-years", "3"][..], &["--bought-usd", "2500", "--bought-years", "0"]] {
        assert_eq!(plan(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_recorded_world_is_decided_again_the_same() {
    let sandbox = Sandbox::new();
    let manifest = sandbox.file("job.yaml", &job("replay", 20, "")).display().to_string();
    let world = sandbox.home().join("world.json").display().to_string();
    let planned = sandbox.run(&["plan", "-f", &manifest, "--json", "--save-world", &world]);
    assert!(planned.status.success(), "{}", text(&planned.stderr));
    let replayed = |world: &str| {
        let explained = sandbox.run(&["explain", "--world", world, "--json"]);
        assert!(explained.status.success(), "{}", text(&explained.stderr));
        json(&explained)["decision"].clone()
    };
    let decided = json(&planned)["decisions"][0].clone();
    assert_eq!(decided["world"].as_str().map(str::len), Some(64), "{decided}");
    assert_eq!(replayed(&world), decided);
    // What `run` decided by, it left in the job's folder.
    let ran = sandbox.run(&["run", "-f", &manifest, "--json"]);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    let left = sandbox.home().join("jobs/default/replay");
    let decision = std::fs::read(left.join("decision.json")).expect("a decision");
    let decision: serde_json::Value = serde_json::from_slice(&decision).expect("JSON");
    assert_eq!(replayed(&left.join("world.json").display().to_string()), decision);
    assert_ne!(decision["world"], decided["world"], "another moment, another world");
    // A world of another version is read too, and it is said what of it plays no part.
    let mut other: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&world).expect("a world")).expect("JSON");
    other["world"]["workloads"][0]["work"]["training"]["laterField"] = 1.into();
    let later = sandbox.file("later.json", &other.to_string()).display().to_string();
    assert_eq!(replayed(&later), decided);
    let told = text(&sandbox.run(&["explain", "--world", &later]).stderr);
    assert!(told.contains("passed over") && told.contains("laterField"), "{told}");
    // And what it cost where is a picture.
    let picture = sandbox.home().join("timeline.svg").display().to_string();
    let drawn = sandbox.run(&["explain", "-f", &manifest, "--svg", &picture]);
    assert!(drawn.status.success(), "{}", text(&drawn.stderr));
    let svg = std::fs::read_to_string(&picture).expect("a picture");
    assert!(svg.contains("default/replay: $") && svg.contains(">host "), "{svg}");
    let one = json(&sandbox.run(&[
        "explain",
        "--world",
        &world,
        "--json",
        "--offer",
        "runpod/-/-/1x_H200-SXM_SECURE/on-demand",
    ]));
    assert!(one["obstacles"].as_array().is_some_and(|o| !o.is_empty()), "{one}");
}

#[test]
fn a_machine_that_no_claim_wants_is_ended() {
    let sandbox = Sandbox::new();
    let manifest = sandbox.file("job.yaml", &job("lost", 5_000_000, ""));
    let started =
        sandbox.run(&["run", "-f", &manifest.display().to_string(), "--detach", "--json"]);
    assert!(started.status.success(), "{}", text(&started.stderr));
    // Long enough to cost something.
    let ps = || json(&sandbox.run(&["ps", "--json"]));
    until("it has trained", || ps()["items"][0]["step"].as_u64() > Some(0));
    // The record of the purchase is lost, as after a restored backup.
    sandbox.kill("operate --kind");
    sandbox.lose("claims");
    sandbox.lose("jobs");
    until("the sweep ends it", || {
        let ps = sandbox.run(&["ps", "--json"]);
        assert!(ps.status.success(), "{}", text(&ps.stderr));
        sandbox.processes("train --job").is_empty()
    });
    // What it cost is in the ledger, as an orphan's.
    let mut costs = serde_json::Value::Null;
    until("its cost is booked", || {
        sandbox.run(&["ps"]);
        costs = json(&sandbox.run(&["costs", "--json"]));
        let rows = costs["rows"].as_array().expect("rows");
        rows.last().is_some_and(|row| row["kind"] == "orphan")
    });
    let rows = costs["rows"].as_array().expect("rows").len();
    sandbox.run(&["ps"]);
    let again = json(&sandbox.run(&["costs", "--json"]));
    assert_eq!(again["rows"].as_array().map(Vec::len), Some(rows), "booked once");
    assert_ne!(costs["total"], "0", "{costs}");
}

#[test]
fn claims_that_vanish_in_numbers_end_nothing_unless_a_person_says_so() {
    let sandbox = Sandbox::new();
    for name in ["one", "two", "three", "four"] {
        let manifest = sandbox.file("job.yaml", &job(name, 5_000_000, "")).display().to_string();
        let started =
            sandbox.run(&["run", "-f", &manifest, "--detach", "--json", "--threads", "1"]);
        assert!(started.status.success(), "{}", text(&started.stderr));
    }
    // Each has found its folder, which goes away now.
    until("all train", || {
        let jobs = sandbox.home().join("jobs/default");
        let begun = |name: &str| {
            let runs = std::fs::read_dir(jobs.join(name).join("runs"));
            runs.is_ok_and(|mut all| {
                all.any(|run| run.is_ok_and(|run| run.path().join("progress.jsonl").exists()))
            })
        };
        ["one", "two", "three", "four"].into_iter().all(begun)
            && sandbox.processes("train --job").len() == 4
    });
    sandbox.kill("operate --kind");
    sandbox.lose("claims");
    sandbox.lose("jobs");
    until("the sweep says so", || {
        let ps = sandbox.run(&["ps"]);
        assert!(ps.status.success(), "{}", text(&ps.stderr));
        text(&ps.stderr).contains("petaflop stop --unclaimed")
    });
    assert_eq!(sandbox.processes("train --job").len(), 4, "left alone");
    // Those of the last seconds may belong to a launch under way, and are left for the next time.
    until("they end", || {
        let stopped = sandbox.run(&["stop", "--unclaimed"]);
        assert!(stopped.status.success(), "{}", text(&stopped.stderr));
        sandbox.processes("train --job").is_empty()
    });
}
