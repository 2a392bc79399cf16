//! The values of the charts: each has words, a schema, and a row in its chart's README.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::support::{chart, documents};

const HEADING: &str = "## Values\n\n";

/// The table of a chart's values, from the comments that begin with `# --`: a comment's words are of
/// the key below it.
fn table(yaml: &str) -> Result<String> {
    let values = documents(yaml)?.remove(0);
    let mut rows = vec!["| Value | Default | What it is |".to_owned(), "|---|---|---|".to_owned()];
    let mut above: Vec<(usize, &str)> = Vec::new();
    let mut words = String::new();
    for line in yaml.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if let Some(first) = text.strip_prefix("# -- ") {
            first.clone_into(&mut words);
        } else if let Some(more) = text.strip_prefix("# ") {
            if !words.is_empty() {
                words.extend([" ", more]);
            }
        } else if let Some((key, _)) = text.split_once(':').filter(|_| !text.starts_with('-')) {
            above.retain(|(column, _)| *column < indent);
            above.push((indent, key));
            if words.is_empty() {
                continue;
            }
            let value = above.iter().fold(&values, |value, (_, key)| &value[*key]);
            let path: Vec<&str> = above.iter().map(|(_, key)| *key).collect();
            rows.push(format!("| `{}` | `{value}` | {words} |", path.join(".")));
            words.clear();
        }
    }
    Ok(rows.join("\n") + "\n")
}

#[test]
fn the_readmes_tables_are_what_the_values_say() -> Result<()> {
    for name in ["petaflop", "petaflop-crds"] {
        let folder = chart(name);
        let table = table(&std::fs::read_to_string(folder.join("values.yaml"))?)?;
        let path = folder.join("README.md");
        let readme = std::fs::read_to_string(&path)?;
        let text = readme.split(HEADING).next().context("a text")?;
        let new = format!("{}\n\n{HEADING}{table}", text.trim_end());
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &new)?;
        }
        let committed = std::fs::read_to_string(&path)?;
        ensure!(committed == new, "{}: its table is not that of values.yaml", path.display());
    }
    Ok(())
}

/// Every map of the schema says whether it is closed; those that are open hold what others define.
#[test]
fn every_value_has_its_words_and_its_schema() -> Result<()> {
    fn closed(schema: &Value, path: &str, open: &mut BTreeSet<String>) {
        if schema["type"] == "object" {
            match &schema["additionalProperties"] {
                Value::Bool(false) | Value::Object(_) => {}
                _ => drop(open.insert(path.to_owned())),
            }
        }
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            closed(inner, &format!("{path}.{name}"), open);
        }
        if schema["items"].is_object() {
            closed(&schema["items"], &format!("{path}[]"), open);
        }
    }
    for (name, elsewhere) in [
        ("petaflop", vec![".affinity", ".extraEnv[].valueFrom", ".global", ".petaflop-crds"]),
        ("petaflop-crds", vec![".global"]),
    ] {
        let folder = chart(name);
        let text = std::fs::read_to_string(folder.join("values.yaml"))?;
        let schema: Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("values.schema.json"))?)?;
        let mut open = BTreeSet::new();
        closed(&schema, "", &mut open);
        ensure!(
            open.iter().map(String::as_str).eq(elsewhere),
            "{name}: open to anything: {open:?}"
        );

        let values = documents(&text)?.remove(0);
        for (key, value) in values.as_object().context("a map")? {
            let known = &schema["properties"][key];
            ensure!(known.is_object(), "{name}: {key} is not in the schema");
            for inner in value.as_object().into_iter().flatten().map(|(inner, _)| inner) {
                let described = known["properties"][inner].is_object()
                    || known["additionalProperties"].is_object()
                    || known["$ref"].is_string();
                ensure!(described, "{name}: {key}.{inner} is not in the schema");
            }
        }
        // A key of the first two levels that has no map below it has its words above it.
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let Some((key, rest)) = line.trim_start().split_once(':') else { continue };
            let parent = rest.trim().is_empty();
            let inside = lines[..index].iter().rev().find(|l| !l.starts_with(' ') && !l.is_empty());
            let of_described =
                indent == 2 && inside.is_some_and(|l| ["resources:", "petaflop-crds:"].contains(l));
            if key.starts_with('#') || indent > 2 || parent || of_described {
                continue;
            }
            let words = lines[..index].iter().rev().take_while(|l| l.trim_start().starts_with('#'));
            ensure!(
                words.last().is_some_and(|l| l.contains("# -- ")),
                "{name}: {key} has no words"
            );
        }
    }
    Ok(())
}
