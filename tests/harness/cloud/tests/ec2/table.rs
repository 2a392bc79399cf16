//! The table of statements stands in `docs/providers/box.md`; it and the tests name the same.

use std::collections::BTreeSet;

const TABLE: &str = include_str!("../../../../../docs/providers/box.md");
const SOURCES: [&str; 7] = [
    include_str!("faults.rs"),
    include_str!("launch.rs"),
    include_str!("life.rs"),
    include_str!("limits.rs"),
    include_str!("lists.rs"),
    include_str!("money.rs"),
    include_str!("prices.rs"),
];
const SERVICES: &str = include_str!("services.rs");

#[test]
fn each_statement_has_a_test_and_each_test_stands_at_a_statement() {
    let sources = SOURCES.iter().copied().chain([SERVICES]);
    let tests: BTreeSet<&str> = sources
        .flat_map(|source| source.split("#[tokio::test]\nasync fn ").skip(1))
        .filter_map(|rest| rest.split('(').next())
        .collect();
    let own = TABLE.split("\n## ").find(|part| part.starts_with("EC2's API")).unwrap();
    let rows = own.lines().filter(|line| line.starts_with("| ") && line.ends_with("` |"));
    let named: BTreeSet<&str> = rows.filter_map(|row| row.rsplit('`').nth(1)).collect();
    let missing: Vec<_> = named.difference(&tests).collect();
    let unnamed: Vec<_> = tests.difference(&named).collect();
    assert!(missing.is_empty(), "statements whose test there is not: {missing:?}");
    assert!(unnamed.is_empty(), "tests that stand at no statement: {unnamed:?}");
    assert!(named.len() > 60);
}
