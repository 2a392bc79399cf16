//! docs/arbiter.md names a test for each kind of bad input and for each property. Every one is there.

use std::path::Path;

const PAGE: &str = include_str!("../../../docs/arbiter.md");

/// Where they are, from this package.
const FOLDERS: [&str; 4] =
    ["tests/suite", "providers/src/runpod", "../operator/tests", "../runtime-image/plan/tests"];

#[test]
fn every_test_that_the_page_names_exists() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (_, tables) = PAGE.split_once("# What bad input gets").expect("the tables");
    let names: Vec<(&str, &str)> =
        tables.split('`').filter_map(|text| text.split_once("::")).collect();
    assert!(names.len() > 30, "only {} tests are named", names.len());
    for (module, test) in names {
        let there = FOLDERS.iter().any(|folder| {
            let text = std::fs::read_to_string(here.join(folder).join(format!("{module}.rs")));
            text.is_ok_and(|text| text.contains(&format!("fn {test}(")))
        });
        assert!(there, "the page names {module}::{test}, which is no test");
    }
}
