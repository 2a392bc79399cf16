//! `petaflop simulate spot` as a user meets it: every option has its effect, the JSON is the one that is promised, and what is no
//! trace is refused by name.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// An hour of work in an hour and a half, in ticks of five minutes: twelve ticks and a restart, of eighteen.
const HOUR: [&str; 4] = ["--work", "1h", "--deadline", "1.5h"];

struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a folder"))
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    }

    fn trace(&self, name: &str, data: &str) -> PathBuf {
        self.file(name, &format!(r#"{{"metadata":{{"gap_seconds":300}},"data":[{data}]}}"#))
    }

    /// Twenty points of one value.
    fn steady(&self, name: &str, value: &str) -> PathBuf {
        self.trace(name, &[value; 20].join(","))
    }
}

fn simulate(traces: &[&Path], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_petaflop"));
    command.args(["simulate", "spot"]).args(HOUR).arg("--trace").args(traces).args(arguments);
    command.output().expect("petaflop starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn line(traces: &[&Path], arguments: &[&str]) -> String {
    let output = simulate(traces, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    String::from_utf8(output.stdout).expect("text")
}

fn report(traces: &[&Path], arguments: &[&str]) -> Value {
    serde_json::from_str(&line(traces, arguments)).expect("one object")
}

fn usd(traces: &[&Path], arguments: &[&str]) -> f64 {
    report(traces, arguments)["mean_usd"].as_f64().expect("a number")
}

/// Refused as bad input, with these words, before anything is printed.
fn refused(traces: &[&Path], arguments: &[&str], words: &[&str]) {
    let output = simulate(traces, &[arguments, &["--json"]].concat());
    let said = said(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    assert!(words.iter().all(|word| said.contains(word)), "{words:?} in {said}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn the_json_is_the_one_that_is_promised() {
    let folder = Folder::new();
    let there = folder.steady("z.json", "1");
    let promised = r#"{"policy":"greedy","runs":1,"misses":0,"mean_usd":1.054192,"mean_of_trace_means_usd":1.054192,"moves_per_run":0.0,"per_trace":[{"trace":"z.json","runs":1,"mean_usd":1.054192,"misses":0,"optimum_usd":1.054192}]}"#;
    assert_eq!(line(&[&there], &["--policy", "greedy"]), format!("{promised}\n"));
    let per_run = promised.replace(
        "]}",
        r#"],"per_run":[{"trace":"z.json","start_tick":0,"usd":1.054192,"moves":0,"missed":false}]}"#,
    );
    let printed = line(&[&there], &["--policy", "greedy", "--per-run"]);
    assert_eq!(printed, format!("{per_run}\n"));
    let all = line(&[&there], &["--policy", "all"]);
    let policy = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["policy"].clone();
    let names: Vec<Value> = all.lines().map(policy).collect();
    let expected = [
        "on-demand",
        "greedy",
        "uniform-progress",
        "alpha-0.1",
        "alpha-0.2",
        "r1",
        "p1",
        "optimum",
    ];
    assert_eq!(names, expected);
    assert_eq!(all, line(&[&there], &["--policy", "all"]), "the same again");
}

#[test]
fn what_a_point_means_can_be_said() {
    let folder = Folder::new();
    let (none, one, two) =
        (folder.steady("0.json", "0"), folder.steady("1.json", "1"), folder.steady("2.json", "2"));
    let greedy = ["--policy", "greedy"];
    let (without, with) = (usd(&[&none], &greedy), usd(&[&one], &greedy));
    assert!(without > with);
    let says = |trace: &Path, more: [&str; 2]| usd(&[trace], &[&greedy[..], &more[..]].concat());
    assert_eq!(says(&one, ["--unavailable-value", "1"]), without);
    assert_eq!(says(&none, ["--unavailable-value", "1"]), with);
    assert_eq!(says(&one, ["--need", "2"]), without);
    assert_eq!(says(&two, ["--need", "2"]), with);
}

#[test]
fn times_and_prices_can_be_said() {
    let folder = Folder::new();
    let there = folder.steady("z.json", "1");
    let dollars = |more: &[&str]| usd(&[&there], more);
    // Thirteen ticks of five minutes: twelve of work and the restart.
    assert_eq!(dollars(&["--policy", "on-demand"]), 3.315);
    assert_eq!(dollars(&["--policy", "on-demand", "--on-demand-usd", "12"]), 13.0);
    assert_eq!(dollars(&["--policy", "greedy", "--spot-usd", "1.2"]), 1.3);
    assert_eq!(
        dollars(&["--policy", "on-demand", "--on-demand-usd", "12", "--restart", "0s"]),
        12.0
    );
    assert_eq!(dollars(&["--policy", "on-demand", "--on-demand-usd", "12", "--tick", "1m"]), 12.6);
    let free = folder.steady("free.json", "0");
    let free = free.display().to_string();
    assert_eq!(dollars(&["--policy", "greedy", "--price", &free]), 0.0);
    let zones = folder.file("zones.json", r#"{"z.json":{"on_demand_usd":1.2,"restart_hours":0}}"#);
    let zones = zones.display().to_string();
    assert_eq!(dollars(&["--policy", "on-demand", "--zones", &zones]), 1.2);
}

#[test]
fn starts_can_be_said() {
    let folder = Folder::new();
    let there = folder.steady("z.json", "1");
    let runs = |more: &[&str]| {
        report(&[&there], &[&["--policy", "greedy"], more].concat())["runs"].clone()
    };
    assert_eq!(runs(&[]), 1);
    assert_eq!(
        runs(&["--start-every", "5m"]),
        3,
        "an hour and a half must remain of a hundred minutes"
    );
    assert_eq!(runs(&["--start-every", "5m", "--start-window", "95m"]), 2);
    assert_eq!(runs(&["--start-ticks", "0,2"]), 2);
    refused(&[&there], &["--start-ticks", "0,20"], &["--start-ticks 20", "z.json"]);
    refused(&[&there], &["--start-every", "7m"], &["--start-every", "300 s"]);
    refused(&[&there], &["--start-every", "5m", "--start-window", "3h"], &["--start-window"]);
}

#[test]
fn zones_of_one_market_and_what_a_move_costs() {
    let folder = Folder::new();
    let first = [vec!["1"; 6], vec!["0"; 14]].concat().join(",");
    let then = [vec!["0"; 6], vec!["1"; 14]].concat().join(",");
    let (first, then) = (folder.trace("a.json", &first), folder.trace("b.json", &then));
    let greedy = ["--policy", "greedy"];
    assert_eq!(report(&[&first, &then], &greedy)["runs"], 2, "each a market of its own");
    let together = [&greedy[..], &["--together"]].concat();
    let one = report(&[&first, &then], &together);
    assert_eq!(one["per_trace"][0]["trace"], "a.json+b.json");
    assert_eq!((&one["runs"], &one["moves_per_run"]), (&1.into(), &1.0.into()));
    let cost = one["mean_usd"].as_f64().expect("a number");
    let egress = ["--checkpoint-gb", "50", "--egress-usd-per-gb", "0.02"];
    let paid = usd(&[&first, &then], &[&together[..], &egress[..]].concat());
    assert!((paid - cost - 1.0).abs() < 1e-6, "{paid} {cost}");
    let zones = folder.file(
        "zones.json",
        r#"{"egress_usd_per_gb":{"a.json":{"b.json":0.1}},"a.json":{"probe_usd":0.01},"b.json":{"probe_usd":0.01}}"#,
    );
    let zones = ["--zones", &zones.display().to_string()];
    let paid = usd(&[&first, &then], &[&together[..], &egress[..], &zones[..]].concat());
    assert!((paid - cost - 5.0).abs() < 1e-6, "{paid} {cost}");
    let seen = |how: &str| {
        usd(&[&first, &then], &[&together[..], &zones[..], &["--observe", how]].concat())
    };
    assert_eq!(seen("held"), cost);
    assert!(seen("probed") > cost, "each question costs");
}

#[test]
fn what_is_known_before_the_start_can_be_said() {
    let folder = Folder::new();
    let flapping = folder.trace("z.json", &["1,1,0"; 20].join(","));
    let late = ["--policy", "p1,r1", "--start-ticks", "30"];
    for more in [&["--history", "none"][..], &["--history", "before-start"], &["--fit-from"]] {
        let mut arguments = [&late[..], more].concat();
        let path = flapping.display().to_string();
        if more == ["--fit-from"] {
            arguments.push(&path);
        }
        for line in line(&[&flapping], &arguments).lines() {
            let report: Value = serde_json::from_str(line).expect("JSON");
            assert_eq!((&report["runs"], &report["misses"]), (&1.into(), &0.into()), "{more:?}");
        }
    }
    let never = folder.steady("never.json", "0").display().to_string();
    refused(&[&flapping], &["--fit-from", &never], &["--fit-from", "neither comes nor goes"]);
}

#[test]
fn what_is_no_trace_is_refused_by_name_and_point() {
    let folder = Folder::new();
    let fine = folder.steady("fine.json", "1");
    for (data, words) in [
        ("1,null,1", "point 1"),
        ("1,0,\"yes\"", "point 2"),
        ("NaN", "point 0"),
        ("1,1e999", "point 1"),
        ("1,,1", "point 1"),
        ("", "no points"),
    ] {
        let bad = folder.trace("bad.json", data);
        refused(&[&fine, &bad], &["--policy", "greedy"], &["bad.json", words]);
        refused(&[&fine], &["--fit-from", &bad.display().to_string()], &["bad.json", words]);
        refused(&[&fine], &["--price", &bad.display().to_string()], &["bad.json", words]);
    }
    for (text, words) in [
        ("zone,available\n1,0\n", "is not a trace"),
        (r#"{"data":[1]}"#, "metadata"),
        (r#"{"metadata":{"gap_seconds":0},"data":[1]}"#, "gap_seconds"),
        (r#"{"metadata":{"gap_seconds":300},"data":[1,1"#, "is not a trace"),
    ] {
        refused(&[&folder.file("bad.json", text)], &[], &["bad.json", words]);
    }
    refused(&[Path::new("/nowhere/z.json")], &[], &["/nowhere/z.json"]);
    let negative = folder.steady("negative.json", "-1").display().to_string();
    refused(&[&fine], &["--price", &negative], &["negative.json", "-1 at point 0"]);
    let short = folder.trace("short.json", "1,1").display().to_string();
    refused(&[&fine], &["--price", &short], &["short.json", "2 ticks"]);
    refused(&[&fine, &fine], &["--price", &short], &["--price", "--trace"]);
    let zones = folder.file("zones.json", r#"{"fine.json":{"on_demand_usd":-1}}"#);
    refused(&[&fine], &["--zones", &zones.display().to_string()], &["on_demand_usd", "fine.json"]);
    refused(&[&fine], &["--policy", "luck"], &["luck", "uniform-progress"]);
}

#[test]
fn what_files_lack_is_said() {
    let folder = Folder::new();
    let short = folder.trace("short.json", "1,1,1");
    let zones = folder.file("zones.json", r#"{"other.json":{"probe_usd":1}}"#);
    let zones = zones.display().to_string();
    let output = simulate(&[&short], &["--policy", "greedy", "--zones", &zones]);
    assert!(output.status.success());
    let said = said(&output);
    assert!(said.contains("ends before the deadline of 1 starts"), "{said}");
    assert!(said.contains("other.json"), "{said}");
}

#[test]
fn ten_million_points_are_read() {
    let folder = Folder::new();
    let long = folder.trace("long.json", &vec!["1"; 10_000_000].join(","));
    assert_eq!(usd(&[&long], &["--policy", "greedy"]), 1.054_192);
}

/// `simulate market` over a folder's capacity, as text.
fn market(capacity: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_petaflop"));
    command.args(["simulate", "market", "--capacity"]).arg(capacity).args(arguments);
    command.output().expect("petaflop starts")
}

#[test]
fn a_queue_shares_what_there_is_and_is_the_same_again() {
    let folder = Folder::new();
    let capacity = folder.trace("capacity.json", &["1"; 60].join(","));
    let job = |arrives: f64| {
        format!(r#"{{"arrives_hours":{arrives},"work_hours":1,"deadline_hours":4,"budget_usd":2}}"#)
    };
    let jobs = folder.file("jobs.json", &format!("[{},{}]", job(0.0), job(0.5)));
    let arguments = [
        "--jobs",
        &jobs.display().to_string(),
        "--restart",
        "0s",
        "--policy",
        "greedy",
        "--json",
        "--per-job",
    ];
    let output = market(&capacity, &arguments);
    assert!(output.status.success(), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one object");
    // Twelve ticks each at 0.9731 $/h; the second waits for half an hour.
    assert_eq!((report["usd"].as_f64(), report["misses"].as_u64()), (Some(1.9462), Some(0)));
    assert_eq!(report["alone_optimum_usd"], report["usd"]);
    assert_eq!(report["per_job"][1]["waited_hours"], 0.5);
    assert_eq!(output.stdout, market(&capacity, &arguments).stdout);
}

#[test]
fn a_seed_is_a_queue() {
    let folder = Folder::new();
    let capacity = folder.trace("capacity.json", &["2"; 600].join(","));
    let of = |seed: &str| {
        let output = market(&capacity, &["--random", "5", "--seed", seed, "--json", "--per-job"]);
        assert!(output.status.success(), "{}", said(&output));
        let lines = String::from_utf8(output.stdout).expect("text");
        assert_eq!(lines.lines().count(), 7, "one a policy");
        assert!(lines.lines().all(|line| line.contains(r#""misses":0"#)), "{lines}");
        lines
    };
    assert_eq!(of("1"), of("1"));
    assert_ne!(of("1"), of("2"));
}

#[test]
fn what_is_no_queue_is_refused_by_job() {
    let folder = Folder::new();
    let capacity = folder.trace("capacity.json", &["1"; 60].join(","));
    for (text, words) in [
        ("[{}]", "arrives_hours"),
        ("[", "EOF"),
        ("{}", "expected a sequence"),
        (r#"[{"arrives_hours":-1,"work_hours":1,"deadline_hours":2}]"#, "job 0: arrives_hours"),
        (
            r#"[{"arrives_hours":6,"work_hours":1,"deadline_hours":2}]"#,
            "after the end of the traces",
        ),
        (r#"[{"arrives_hours":0,"work_hours":0,"deadline_hours":2}]"#, "job 0: work_hours"),
        (r#"[{"arrives_hours":0,"work_hours":1,"deadline_hours":1e300}]"#, "deadline_hours"),
        (
            r#"[{"arrives_hours":0,"work_hours":1,"deadline_hours":2,"budget_usd":-1}]"#,
            "budget_usd",
        ),
        (r#"[{"arrives_hours":0,"work_hours":1,"deadline_hours":2,"price":1}]"#, "price"),
    ] {
        let jobs = folder.file("jobs.json", text).display().to_string();
        let output = market(&capacity, &["--jobs", &jobs, "--policy", "greedy"]);
        assert_eq!(output.status.code(), Some(2), "{text}: {}", said(&output));
        assert!(said(&output).contains(words), "{text}: {}", said(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn what_is_no_capacity_is_refused_by_name_and_what_ends_early_is_said() {
    let folder = Folder::new();
    let jobs =
        folder.file("jobs.json", r#"[{"arrives_hours":1,"work_hours":0.5,"deadline_hours":1}]"#);
    let jobs = jobs.display().to_string();
    let fine = folder.steady("fine.json", "1");
    let short = folder.trace("short.json", "1,1").display().to_string();
    for (capacity, more, words) in [
        (folder.steady("less.json", "-1"), &[][..], "less.json: has -1 at point 0"),
        (folder.trace("half.json", "1,0.5"), &[][..], "half.json: has 0.5 at point 1"),
        (folder.trace("gap.json", "1,null"), &[][..], "point 1"),
        (fine.clone(), &["--price", &short][..], "short.json: has prices for 2 ticks"),
    ] {
        let output = market(&capacity, &[&["--jobs", &jobs], more].concat());
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains(words), "{words} in {}", said(&output));
        assert!(output.stdout.is_empty());
    }
    let output = market(&fine, &["--jobs", &jobs, "--policy", "greedy"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("before the deadlines of 1 jobs"), "{}", said(&output));
}
