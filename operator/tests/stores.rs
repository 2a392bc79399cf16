//! Where results go: into the home's store, into another one too, and once more on request.

mod harness;

use harness::{Sandbox, job, json, text};

#[test]
fn cache_never_trains_again_to_the_same_artifact() {
    let sandbox = Sandbox::new();
    let manifest = sandbox.file("job.yaml", &job("again", 20, "  cache: Never\n"));
    let manifest = manifest.display().to_string();
    let mut artifacts = Vec::new();
    for rows in 1..=2 {
        let output = sandbox.run(&["run", "-f", &manifest, "--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report = json(&output);
        assert_eq!(report["cached"], false);
        assert!(report["jobs"][0]["summary"]["resumed_from_step"].is_null(), "{report}");
        artifacts.push(report["artifact"].clone());
        let costs = json(&sandbox.run(&["costs", "--json"]));
        let rows_now = costs["rows"].as_array().expect("rows");
        let finals = rows_now.iter().filter(|row| row["kind"] == "final").count();
        assert_eq!(finals, rows, "{costs}");
    }
    assert!(artifacts[0].is_string());
    assert_eq!(artifacts[0], artifacts[1]);
}

#[test]
fn a_result_for_another_store_is_in_both_and_is_served() {
    let sandbox = Sandbox::new();
    let other = sandbox.home().with_file_name("other");
    let more = format!("  output: {{uri: \"file://{}\"}}\n", other.display());
    let service = "---\napiVersion: petaflop.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: talk}\n\
                   spec: {model: {trainingJob: small}}\n";
    let manifest = sandbox.file("both.yaml", &format!("{}{service}", job("small", 20, &more)));
    let arguments = ["run", "-f", &manifest.display().to_string(), "--json"];
    let output = sandbox.run(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let first = json(&output);
    assert_eq!(first["services"][0]["phase"], "Available");
    let listed = json(&sandbox.run(&["artifacts", "ls", "--json"]));
    assert_eq!(listed["artifacts"][0]["hash"], first["artifact"]);
    let hash = first["artifact"].as_str().expect("a hash").to_owned();
    let holds = || {
        let store =
            petaflop_store::blocking::Store::open(&other.display().to_string()).expect("a store");
        let report = store.verify(None).expect("it can be read");
        let key = first["key"].as_str().expect("a key");
        let bound = store.find_key(None, key).expect("it can be read").map(|h| h.to_string());
        report.findings.is_empty() && bound.as_deref() == Some(hash.as_str())
    };
    assert!(holds());

    // What is found in the cache is copied too, where it is missing.
    std::fs::remove_dir_all(&other).expect("removed");
    let again = json(&sandbox.run(&arguments));
    assert_eq!((&again["cached"], &again["artifact"]), (&true.into(), &first["artifact"]));
    assert!(holds());
}

#[test]
fn a_store_that_cannot_be_used_is_said_before_anything_starts() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("file", "");
    let more = format!("  output: {{uri: \"file://{}/store\"}}\n", file.display());
    let manifest = sandbox.file("job.yaml", &job("nowhere", 20, &more)).display().to_string();
    let output = sandbox.run(&["run", "-f", &manifest, "--json"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("spec.output.uri"), "{}", text(&output.stderr));
    assert!(!sandbox.home().join("jobs/default/nowhere").exists());
}

#[test]
fn definitions_come_as_one_json_list_too() {
    let list = json(&Sandbox::new().run(&["crds", "--json"]));
    let names: Vec<_> = list["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|crd| &crd["spec"]["names"]["kind"])
        .collect();
    assert_eq!(list["kind"], "List");
    assert!(names.contains(&&"TrainingJob".into()), "{names:?}");
}
