//! docs/providers/runpod.md names a test for each of RunPod's ways. Every one of them is there.

use std::path::Path;

const PAGE: &str = include_str!("../../../../docs/providers/runpod.md");

#[test]
fn every_test_that_the_page_names_exists() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    for name in PAGE.split('`').filter(|text| text.contains("::")) {
        let (module, test) = name.split_once("::").expect("a module and a test");
        let files = ["tests/runpod", "src/runpod"].map(|folder| here.join(folder));
        let wanted = format!("fn {test}(");
        let there = files.iter().any(|folder| {
            let text = std::fs::read_to_string(folder.join(format!("{module}.rs")));
            text.is_ok_and(|text| text.contains(&wanted))
        });
        assert!(there, "docs/providers/runpod.md names {name}, which is no test");
        named += 1;
    }
    assert!(named > 40, "only {named} tests are named");
}

#[test]
fn every_test_against_a_server_stands_at_a_statement_of_the_page() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runpod");
    let mut missing = Vec::new();
    for file in std::fs::read_dir(folder).expect("the tests") {
        let path = file.expect("a file").path();
        let module = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let source = std::fs::read_to_string(&path).expect("a source");
        let tests = source.split("#[tokio::test]\nasync fn ").skip(1);
        let names = tests.filter_map(|rest| rest.split('(').next());
        let names = names.map(|test| format!("{module}::{test}"));
        missing.extend(names.filter(|name| !PAGE.contains(&format!("`{name}`"))));
    }
    assert!(missing.is_empty(), "tests that stand at no statement: {missing:?}");
}
