//! docs/providers/runpod.md names a test for each of RunPod's ways. Every one of them is there.

use crate::page;

const PAGE: &str = include_str!("../../../../docs/providers/runpod.md");

#[test]
fn every_test_that_the_page_names_exists() {
    page::names_tests_that_exist(PAGE, &["tests/runpod", "src/runpod"]);
}

#[test]
fn every_test_against_a_server_stands_at_a_statement_of_the_page() {
    page::lacks_no_test_of(PAGE, "tests/runpod");
}
