//! The table of statements stands in `docs/providers/box.md`; it and the tests name the same.

use std::collections::BTreeSet;

const TABLE: &str = include_str!("../../../../../docs/providers/box.md");
const SOURCES: [&str; 6] = [
    include_str!("catalog.rs"),
    include_str!("errors.rs"),
    include_str!("faults.rs"),
    include_str!("graphql.rs"),
    include_str!("life.rs"),
    include_str!("pods.rs"),
];
const MONEY: &str = include_str!("money.rs");

#[test]
fn each_statement_has_a_test_and_each_test_stands_at_a_statement() {
    let sources = SOURCES.iter().copied().chain([MONEY]);
    let tests: BTreeSet<&str> = sources
        .flat_map(|source| source.split("#[tokio::test]\nasync fn ").skip(1))
        .filter_map(|rest| rest.split('(').next())
        .collect();
    let own = TABLE.split("\n## ").find(|part| part.starts_with("RunPod's API"));
    let rows = own
        .unwrap_or_default()
        .lines()
        .filter(|line| line.starts_with("| ") && line.ends_with("` |"));
    let named: BTreeSet<&str> = rows.filter_map(|row| row.rsplit('`').nth(1)).collect();
    let missing: Vec<_> = named.difference(&tests).collect();
    let unnamed: Vec<_> = tests.difference(&named).collect();
    assert!(missing.is_empty(), "statements whose test there is not: {missing:?}");
    assert!(unnamed.is_empty(), "tests that stand at no statement: {unnamed:?}");
    assert!(named.len() > 40);
}
