//! Reading manifests from files: what is accepted, what is said of what is not.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use petaflop_crds::{Document, FieldError, ManifestErrors, Object, manifest};
use proptest::prelude::*;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn parse(text: impl AsRef<[u8]>) -> Result<Vec<Document>, ManifestErrors> {
    manifest::parse(text.as_ref(), "job.yaml", Path::new("/manifests"))
}

const JOB: &str = "apiVersion: petaflop.dev/v1alpha1
kind: TrainingJob
metadata:
  name: one
spec:
  recipe:
    model: {dim: 128, layers: 4, heads: 4, vocab: 512}
    datasets:
      - path: builtin:petaflop
    max_steps: 10
    learning_rate: 0.001
";

#[test]
fn every_example_is_valid() {
    let mut seen = 0;
    for entry in std::fs::read_dir(examples()).expect("there are examples") {
        let path = entry.expect("the folder can be read").path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let documents = manifest::read(&path).unwrap_or_else(|errors| panic!("{errors}"));
            assert!(!documents.is_empty());
            seen += 1;
        }
    }
    assert!(seen >= 2);
}

#[test]
fn the_quickstart_holds_a_job_and_the_service_that_serves_it() {
    let documents = manifest::read(&examples().join("quickstart.yaml"))
        .unwrap_or_else(|errors| panic!("{errors}"));
    let kinds: Vec<_> = documents.iter().map(|d| (d.kind(), d.name())).collect();
    assert_eq!(
        kinds,
        [("TrainingJob", "quickstart".into()), ("InferenceService", "quickstart".into())]
    );
    let Object::InferenceService(service) = &documents[1].object else {
        panic!("a service comes second")
    };
    let model = service.spec.model.as_ref().and_then(|model| model.training_job.as_deref());
    assert_eq!(model, Some("quickstart"));
}

#[test]
fn what_is_read_and_written_reads_the_same() {
    for example in ["quickstart.yaml", "tiny.yaml"] {
        for document in
            manifest::read(&examples().join(example)).unwrap_or_else(|errors| panic!("{errors}"))
        {
            let text = match &document.object {
                Object::TrainingJob(job) => serde_saphyr::to_string(job),
                Object::InferenceService(service) => serde_saphyr::to_string(service),
            };
            let again = parse(text.expect("an object can be written"))
                .unwrap_or_else(|errors| panic!("{errors}"));
            assert_eq!(again[0].object, document.object);
        }
    }
}

#[test]
fn json_is_read_too() {
    let json = r#"{
	"apiVersion": "petaflop.dev/v1alpha1", "kind": "InferenceService",
	"metadata": {"name": "served"},
	"spec": {"model": {"trainingJob": "one"}, "replicas": 2}
}"#;
    let documents = parse(json).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(documents[0].name(), "served");
}

#[test]
fn what_kubectl_prints_is_read_without_its_status() {
    let text = format!(
        "{}\nstatus:\n  phase: Running\n  anything: [1, 2]\n",
        JOB.replace("  name: one", "  name: one\n  uid: 5d2f\n  generation: 3\n  creationTimestamp: \"2026-11-01T00:00:00Z\"\n  managedFields: []\n  resourceVersion: \"9\"")
    );
    let documents = parse(text).unwrap_or_else(|errors| panic!("{errors}"));
    let Object::TrainingJob(job) = &documents[0].object else { panic!("a job") };
    assert_eq!(job.status, None);
    assert_eq!(job.metadata.uid.as_deref(), Some("5d2f"));
}

#[test]
fn empty_documents_comments_and_a_byte_order_mark_do_not_matter() {
    let text = format!("\u{feff}# first\n---\n---\n{JOB}---\n# nothing\n");
    assert_eq!(parse(text).map(|d| d.len()), Ok(1));
}

#[test]
fn an_empty_value_is_one_that_was_left_out() {
    let documents = parse(format!("{JOB}  placement:\n  deadline:\n"))
        .unwrap_or_else(|errors| panic!("{errors}"));
    let Object::TrainingJob(job) = &documents[0].object else { panic!("a job") };
    assert_eq!(job.spec.placement, Default::default());
    assert_eq!(job.spec.deadline, None);
}

#[test]
fn aliases_and_merges_stand_for_what_they_name() {
    let text = JOB.replace(
        "{dim: 128, layers: 4, heads: 4, vocab: 512}",
        "\n      <<: &shape {dim: 128, layers: 4, heads: 4}\n      vocab: 512",
    );
    let text = format!("{text}---\n{}", JOB.replace("name: one", "name: two"));
    assert_eq!(parse(text).map(|d| d.len()), Ok(2));
}

#[test]
fn defaults_filled_in_here_are_the_ones_a_server_fills_in() {
    for (text, crd) in [
        (JOB.to_owned(), 0),
        ("{apiVersion: petaflop.dev/v1alpha1, kind: InferenceService, metadata: {name: a}, spec: {model: {trainingJob: one}, replicas: 2}}".to_owned(), 1),
    ] {
        let document = parse(&text).unwrap_or_else(|errors| panic!("{errors}")).remove(0);
        let ours = match &document.object {
            Object::TrainingJob(job) => serde_json::to_value(job),
            Object::InferenceService(service) => serde_json::to_value(service),
        }
        .expect("an object is plain JSON");
        let crd = &petaflop_crds::crds::all()[crd];
        let schema = crd.spec.versions[0].schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
        let schema = serde_json::to_value(schema.expect("a CRD has a schema")).expect("a schema is plain JSON");
        let written: serde_json::Value = serde_saphyr::from_str(&text).expect("it was read before");
        let servers = kube::core::cel::apply_defaults(&schema, &written);
        // Empty maps that defaults create are equal to none at all.
        assert_eq!(normal(ours), normal(servers));
    }
}

/// Whole floats as integers, so that 1.0 and 1 are the same number.
fn normal(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Number(n) if n.as_f64().is_some_and(|f| f.fract() == 0.0) => {
            serde_json::json!(n.as_f64().map(|f| f as i64))
        }
        serde_json::Value::Array(items) => items.into_iter().map(normal).collect(),
        serde_json::Value::Object(map) => {
            map.into_iter().map(|(k, v)| (k, normal(v))).collect::<serde_json::Map<_, _>>().into()
        }
        other => other,
    }
}

#[test]
fn errors_of_later_steps_are_shown_at_their_lines() {
    let documents = parse(JOB).unwrap_or_else(|errors| panic!("{errors}"));
    let errors = documents[0].locate(&[
        FieldError::new("spec.recipe.datasets[0].path", "there is nothing there"),
        FieldError::new("spec.placement.zones", "is not written in the file"),
    ]);
    assert_eq!((errors.0[0].line, errors.0[0].column), (9, 15));
    assert_eq!((errors.0[1].line, errors.0[1].path.as_str()), (5, "spec.placement.zones"));
}

#[test]
fn relative_paths_are_taken_against_the_manifests_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("job.yaml");
    std::fs::write(&path, JOB).expect("a file");
    let documents = manifest::read(&path).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(documents[0].directory(), folder.path());
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let errors = manifest::read(Path::new("/nowhere/job.yaml")).expect_err("there is no such file");
    assert!(errors.to_string().starts_with("error: cannot be read: No such file"), "{errors}");
    assert!(errors.to_string().contains("--> /nowhere/job.yaml"));
}

/// Texts that are refused, by what is wrong with them.
fn refused() -> Vec<(&'static str, Vec<u8>)> {
    let job = |from: &str, to: &str| {
        assert!(JOB.contains(from), "{from}");
        JOB.replace(from, to).into_bytes()
    };
    let bomb = {
        let mut text = String::from("a: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            let _ = writeln!(text, "b{level}: &a{level} [{aliases}]");
        }
        text.into_bytes()
    };
    vec![
        ("a misspelt field", job("learning_rate", "learning_rat")),
        ("a wrong type", job("0.001", "fast")),
        ("an unknown kind", job("TrainingJob", "TrainingJobs")),
        ("another version", job("v1alpha1", "v1")),
        ("not a map", b"just words\n".to_vec()),
        (
            "two errors in one document",
            job("max_steps: 10\n    learning_rate", "max_step: 10\n    learning_rates"),
        ),
        (
            "errors in two documents",
            format!(
                "{}---\n{}",
                JOB.replace("0.001", "-1"),
                JOB.replace("one", "two").replace("dim: 128", "dim: 4")
            )
            .into_bytes(),
        ),
        ("money as a number", format!("{JOB}  maxTotalCost: 2.50\n").into_bytes()),
        ("a rule of the recipe", format!("{JOB}    num_epochs: 1\n").into_bytes()),
        ("a rule of the name", job("name: one", "name: One")),
        ("what is not built", format!("{JOB}  nodes: 4\n").into_bytes()),
        ("two objects of one name", format!("{JOB}---\n{JOB}").into_bytes()),
        ("a key that stands twice", format!("{JOB}    max_steps: 20\n").into_bytes()),
        ("a tab", job("    max_steps", "\tmax_steps")),
        ("an open quote", job("one", "\"one")),
        ("an open bracket", job("vocab: 512}", "vocab: 512")),
        ("wrong indentation", job("    max_steps", "   max_steps")),
        ("an alias of nothing", job("name: one", "name: *one")),
        ("an alias bomb", bomb),
        ("nesting without end", "[".repeat(5_000).into_bytes()),
        ("an unknown tag", job("name: one", "name: !secret one")),
        (
            "letters of many bytes before the error",
            job("name: one", "name: one\n  labels: {größe: ämter, 日本: 5}"),
        ),
        (
            "a very long line",
            job(
                "name: one",
                &format!(
                    "name: one\n  labels: {{{}b: 5}}",
                    "a: ".to_owned() + &"x".repeat(400) + ", "
                ),
            ),
        ),
        ("not a number", job("0.001", ".nan")),
        ("a number without end", job("0.001", "1e999")),
        ("nothing", b"".to_vec()),
        ("only comments", b"# later\n".to_vec()),
        ("not UTF-8", [JOB.as_bytes(), b"# caf\xe9\n"].concat()),
        ("a zero byte", job("name: one", "name: o\0ne")),
        ("too large", vec![b'#'; manifest::LARGEST + 1]),
        ("too many values", format!("a: [{}]", "1, ".repeat(50_000)).into_bytes()),
    ]
}

/// The renderings stand in `renderings.txt`; after a change on purpose, `UPDATE=1` writes them anew.
#[test]
fn errors_read_as_they_should() {
    let mut text = String::new();
    for (title, bytes) in refused() {
        let errors = parse(&bytes).err().unwrap_or_else(|| panic!("{title} was accepted"));
        let _ = write!(text, "## {title}\n\n{errors}\n\n");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/renderings.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &text).expect("the folder can be written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == text, "renderings.txt is out of date; found:\n{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(bytes).map_err(|errors| errors.to_string());
    }

    #[test]
    fn no_yaml_like_text_makes_it_panic(text in "([a-c]{1,3}: ?|- |  |\n|\\[|\\]|\\{|\\}|&a |\\*a|<<: |!!?[a-z]{0,3} |\"|'|\\||>|---\n|é|\t|[0-9.eE+-]{1,6}|~){0,60}") {
        let _ = parse(text).map_err(|errors| errors.to_string());
    }

    #[test]
    fn no_damaged_manifest_makes_it_panic(at in 0..JOB.len(), with in "\\PC{0,6}|[ \n\t:\\-\\[{]{1,4}", length in 0usize..12) {
        let end = (at + length).min(JOB.len());
        let damaged = format!("{}{with}{}", &JOB[..at], &JOB[end..]);
        match parse(&damaged) {
            Ok(_) => {}
            Err(errors) => prop_assert!(errors.0.iter().all(|e| !e.message.is_empty() && e.line <= damaged.lines().count() + 1), "{errors}"),
        }
    }
}

#[test]
fn kinds_that_need_a_cluster_are_sent_to_kubectl() {
    for kind in ["ComputeClaim", "ComputeProvider", "SpendBudget"] {
        let text = format!(
            "{{apiVersion: petaflop.dev/v1alpha1, kind: {kind}, metadata: {{name: a}}, spec: {{}}}}"
        );
        let errors = manifest::parse(text.as_bytes(), "a.yaml", Path::new("/")).expect_err(kind);
        let error = &errors.0[0];
        assert_eq!(error.path, "kind");
        assert_eq!(
            error.message,
            format!("expected TrainingJob or InferenceService, found {kind:?}")
        );
        assert!(
            error.help.as_ref().is_some_and(|help| help.contains("use kubectl apply")),
            "{error}"
        );
    }
}
