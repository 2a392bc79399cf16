//! `petaflop convert` as a user meets it. What becomes of each field: crds/tests/skypilot.

use std::process::{Command, Output};

use serde_json::Value;

fn convert(arguments: &[&str]) -> Output {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/tests/skypilot");
    let mut command = Command::new(env!("CARGO_BIN_EXE_petaflop"));
    command.args(["convert", "skypilot"]).args(arguments).current_dir(folder);
    command.output().expect("petaflop starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_manifest_goes_to_stdout_and_what_is_left_out_to_stderr() {
    let output = convert(&["train.yaml"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        text(&output.stdout).starts_with("apiVersion: petaflop.dev/v1alpha1\nkind: TrainingJob\n")
    );
    assert!(
        text(&output.stderr).contains("train.yaml:17: resources.ports: "),
        "{}",
        text(&output.stderr)
    );

    let output = convert(&["train.yaml", "--json"]);
    let both: Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!(both["manifest"]["spec"]["placement"]["capacityType"], "Spot");
    assert!(both["notes"].as_array().is_some_and(|notes| notes.len() > 5), "{both}");
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));

    let output = convert(&["minimal.yaml", "--image", "docker.io/library/python:3.13"]);
    assert!(text(&output.stdout).contains("image: docker.io/library/python:3.13\n"));
}

#[test]
fn a_bad_task_is_refused_by_its_place_and_nothing_is_printed() {
    for (file, words) in [
        ("wrong-fields.yaml", "did you mean accelerators?"),
        ("wrong-yaml.yaml", "wrong-yaml.yaml:3"),
        ("missing.yaml", "missing.yaml"),
    ] {
        let output = convert(&[file]);
        assert_eq!(output.status.code(), Some(2), "{file}");
        assert!(text(&output.stderr).contains(words), "{}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{file}");
    }
}
