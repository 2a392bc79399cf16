//! docs/kinds.md has a row for each field of each kind, and names the tests that show
//! them. Each field has its row, each row its field, and each test is there.

use std::collections::BTreeSet;
use std::path::Path;

use petaflop_crds::crds;
use serde_json::Value;

const PAGE: &str = include_str!("../../docs/kinds.md");

/// A row of a table of fields: a path below `spec`, `.*` at its end for all below it; who acts on
/// it; the tests that show it.
struct Row<'a> {
    path: &'a str,
    actor: &'a str,
    tests: &'a str,
}

impl Row<'_> {
    fn covers(&self, leaf: &str) -> bool {
        self.path.strip_suffix(".*").map_or(leaf == self.path, |above| {
            leaf.strip_prefix(above).is_some_and(|below| below.starts_with(['.', '[']))
        })
    }
}

/// What the page says of each kind: the kind and the rows of its table of fields.
fn documented() -> Vec<(&'static str, Vec<Row<'static>>)> {
    let sections = PAGE.split("\n## ").skip(1);
    sections
        .map(|section| {
            let (kind, text) = section.split_once('\n').expect("a heading is a line");
            let rows = text
                .lines()
                .skip_while(|line| !line.starts_with("| Field |"))
                .skip(2)
                .take_while(|line| line.starts_with('|'))
                .map(|line| {
                    let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
                    let [path, _, actor, tests] = cells[..] else { panic!("four cells: {line}") };
                    Row { path: path.trim().trim_matches('`'), actor, tests }
                })
                .collect();
            (kind, rows)
        })
        .collect()
}

/// The paths of all properties below `schema` that have none below them.
fn leaves(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        for (name, below) in properties {
            let dot = if path.is_empty() { "" } else { "." };
            leaves(below, &format!("{path}{dot}{name}"), found);
        }
    } else if schema["items"]["properties"].is_object() {
        leaves(&schema["items"], &format!("{path}[]"), found);
    } else {
        found.insert(path.to_owned());
    }
}

fn fields(kind: &str) -> BTreeSet<String> {
    let crd = crds::all().into_iter().find(|crd| crd.spec.names.kind == kind);
    let crd = serde_json::to_value(crd.unwrap_or_else(|| panic!("{kind} is no kind")))
        .expect("a CRD is JSON");
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut found = BTreeSet::new();
    leaves(&schema["properties"]["spec"], "", &mut found);
    found
}

#[test]
fn every_field_has_a_row_and_every_row_a_field() {
    let kinds = documented();
    let described: BTreeSet<&str> = kinds.iter().map(|(kind, _)| *kind).collect();
    let all = crds::all();
    assert_eq!(described, all.iter().map(|crd| crd.spec.names.kind.as_str()).collect());
    for (kind, rows) in kinds {
        let fields = fields(kind);
        assert!(!fields.is_empty(), "{kind} has no fields");
        for field in &fields {
            assert!(rows.iter().any(|row| row.covers(field)), "{kind}: no row for {field}");
        }
        for row in &rows {
            let there = fields.iter().any(|field| row.covers(field));
            assert!(there, "{kind}: {} is no field", row.path);
        }
    }
}

#[test]
fn every_test_that_a_row_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (kind, rows) in documented() {
        for row in rows {
            let names: Vec<(&str, &str)> =
                row.tests.split('`').filter_map(|text| text.split_once("::")).collect();
            let shown = !names.is_empty();
            assert_eq!(shown, row.actor != "nobody yet", "{kind}: {}", row.path);
            for (file, test) in names {
                let text = std::fs::read_to_string(root.join(file)).unwrap_or_default();
                let there = text.contains(&format!("fn {test}("));
                assert!(there, "{kind}: {} names {file}::{test}, which is no test", row.path);
            }
        }
    }
}
