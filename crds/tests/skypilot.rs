//! Tasks of SkyPilot as manifests: each task of the folder has its result beside it, which is
//! written anew with `UPDATE=1`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use petaflop_crds::manifest::{self, skypilot};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/skypilot")
}

/// Name and text of every task.
fn tasks() -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder()).expect("the folder is there");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut tasks: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read(path).expect("it can be read"))
        })
        .collect();
    tasks.sort();
    tasks
}

fn converted(name: &str, task: &[u8]) -> String {
    match skypilot::convert(task, name, skypilot::IMAGE) {
        Ok(conversion) => {
            let mut text = conversion.yaml();
            for skypilot::Note { line, field, message } in &conversion.notes {
                let _ = write!(text, "\n{name}:{line}: {field}: {message}");
            }
            text
        }
        Err(errors) => errors.to_string(),
    }
}

#[test]
fn each_task_becomes_what_stands_beside_it() {
    let tasks = tasks();
    assert!(tasks.len() >= 12);
    for (name, task) in tasks {
        let text = converted(&name, &task) + "\n";
        let path = folder().join(&name).with_extension("txt");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &text).expect("the folder can be written");
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == text, "{} is out of date; found:\n{text}", path.display());
    }
}

#[test]
fn what_comes_out_is_a_manifest_that_reads_back_as_it_was() {
    let (mut read, mut refused) = (0, 0);
    for (name, task) in tasks() {
        let Ok(conversion) = skypilot::convert(&task, &name, skypilot::IMAGE) else {
            assert!(name.starts_with("wrong-"), "{name}");
            refused += 1;
            continue;
        };
        let documents = manifest::parse(conversion.yaml().as_bytes(), &name, Path::new("/"))
            .unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(documents.len(), 1, "{name}");
        let container = match &documents[0].object {
            manifest::Object::TrainingJob(job) => &job.spec.container,
            manifest::Object::InferenceService(service) => &service.spec.container,
        };
        let container = container.as_ref().expect("a container");
        assert_eq!(
            container.args,
            [conversion.manifest["spec"]["container"]["args"][0].as_str().expect("text")]
        );
        read += 1;
    }
    assert!(read >= 9 && refused >= 5, "{read} read, {refused} refused");
}

#[test]
fn no_value_of_a_secret_is_told() {
    let mut planted = 0;
    for (name, task) in tasks() {
        planted += String::from_utf8_lossy(&task).matches("canary").count();
        assert!(!converted(&name, &task).contains("canary"), "{name}");
    }
    assert!(planted >= 3);
}

/// `docs/skypilot.md` has a row for each field that the reader knows, and none else.
#[test]
fn the_table_in_the_docs_is_the_readers_own() {
    let mut table = String::new();
    for (path, fate) in skypilot::fields::FIELDS {
        let _ = match fate {
            skypilot::fields::Fate::Becomes(place) => writeln!(table, "| `{path}` | {place} | |"),
            skypilot::fields::Fate::Left(instead) => writeln!(table, "| `{path}` | | {instead} |"),
            skypilot::fields::Fate::Holds => continue,
        };
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/skypilot.md");
    let page = std::fs::read_to_string(&path).expect("the page is there");
    let rows = |line: &&str| line.starts_with("| `");
    let found: String = page.lines().filter(rows).map(|line| format!("{line}\n")).collect();
    if std::env::var_os("UPDATE").is_some() && found != table {
        let start = page.find("| `").expect("the table");
        let text = format!("{}{table}{}", &page[..start], &page[start + found.len()..]);
        std::fs::write(&path, text).expect("the page can be written");
        return;
    }
    assert!(found == table, "the table is out of date; expected:\n{table}");
}
