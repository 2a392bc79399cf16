//! A SkyPilot task as a manifest, and what of it did not carry over.
//!
//! A task with `service` becomes an InferenceService, any other a TrainingJob. What comes out
//! passes the same check as every manifest; what cannot be said in one is listed, with its line
//! and what to do instead, and nothing is left out without a word.
//!
//! | module | holds |
//! |---|---|
//! | [`fields`] | every field of a task, and what becomes of it |
//! | [`resources`] | what the machine must have, where it may be, and at what price: all alternatives joined |
//! | [`candidate`] | one alternative |
//! | [`command`] | workdir, setup, run, envs and secrets as a container |
//! | [`service`] | replicas and probes |

use std::path::Path;

use serde_json::{Map, Value as Json, json};

mod candidate;
mod command;
pub mod fields;
mod resources;
mod service;

use fields::Fate;

use super::check::Finding;
use super::tree::{Entry, Node, Value};
use super::{ManifestErrors, Source};
use crate::API_VERSION;

/// Image for tasks that name none: like SkyPilot's own it has conda, Git and a shell.
pub const IMAGE: &str = "docker.io/condaforge/miniforge3:latest";

/// What came of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversion {
    /// The manifest.
    pub manifest: Json,
    /// What did not carry over, in the order of the task.
    pub notes: Vec<Note>,
}

/// Something that did not carry over, or that means something else now.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Note {
    /// Line of the task, from 1.
    pub line: usize,
    /// Path of the field: `resources.any_of[1].zone`.
    pub field: String,
    /// What became of it, and what to do instead.
    pub message: String,
}

impl Conversion {
    /// The manifest as YAML.
    pub fn yaml(&self) -> String {
        serde_saphyr::to_string(&self.manifest).expect("plain JSON can be written as YAML")
    }
}

/// Converts a task. `file` names it in errors; `image` is for tasks that name none.
///
/// # Errors
/// All that is wrong with the task; or, of a task that asks for what petaflop cannot do at all,
/// what our own check says of the manifest that it would be.
pub fn convert(bytes: &[u8], file: &str, image: &str) -> Result<Conversion, ManifestErrors> {
    let source = Source::new(bytes, file, Path::new("."))?;
    let trees = source.trees()?;
    let [root] = trees.as_slice() else {
        let message = format!("expected one task, found {} documents", trees.len());
        let help = "split a pipeline into one file a task, and convert each";
        return Err(super::ManifestError::of_file(file, message, Some(help.into())).into());
    };
    let mut task = Task { root, notes: Vec::new(), findings: Vec::new() };
    let manifest = task.manifest(file, image);
    let Task { mut notes, findings, .. } = task;
    if !findings.is_empty() {
        return Err(ManifestErrors(findings.into_iter().map(|f| source.error(f)).collect()));
    }
    notes.sort_by_key(|note| note.line);
    let conversion = Conversion { manifest, notes };
    super::judge(conversion.yaml().as_bytes(), &format!("{file} as a manifest"))?;
    Ok(conversion)
}

/// A task that is being read.
struct Task<'a> {
    root: &'a Node,
    notes: Vec<Note>,
    findings: Vec<Finding>,
}

impl<'a> Task<'a> {
    /// Says once that something did not carry over.
    fn note(&mut self, path: &str, message: impl Into<String>) {
        let line = self.root.locate(path).line;
        let note = Note { line, field: path.to_owned(), message: message.into() };
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Says that something is wrong.
    fn wrong(&mut self, path: &str, message: impl Into<String>, help: Option<&str>) {
        let (at, message) = (self.root.locate(path), message.into());
        let known = |f: &Finding| f.path == path && f.message == message;
        if !self.findings.iter().any(known) {
            let (path, help) = (path.to_owned(), help.map(str::to_owned));
            self.findings.push(Finding { at, path, message, help });
        }
    }

    /// The field at the top of this name, unless it is empty.
    fn top(&self, key: &str) -> Option<&'a Node> {
        self.root.get(key).map(|entry| &entry.node).filter(|node| !is_null(node))
    }

    /// The entries of a map.
    fn entries(&mut self, node: &'a Node, path: &str) -> &'a [Entry] {
        match &node.value {
            Value::Map(entries) => entries,
            other => {
                self.wrong(path, format!("expected a map, found {other}"), None);
                &[]
            }
        }
    }

    /// Text, or a number that was written without quotes.
    fn text(&mut self, node: &Node, path: &str) -> Option<String> {
        match &node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Number(number) => Some(number.to_string()),
            other => {
                self.wrong(path, format!("expected text, found {other}"), None);
                None
            }
        }
    }

    /// A whole number of `range`.
    fn whole(&mut self, node: &Node, path: &str, most: u32) -> Option<u32> {
        let number = match node.value {
            Value::Integer(number) => u32::try_from(number).ok().filter(|number| *number <= most),
            _ => None,
        };
        if number.is_none() {
            let found = &node.value;
            self.wrong(path, format!("expected a whole number up to {most}, found {found}"), None);
        }
        number
    }

    /// Looks at the names of a map's fields, and says of each that is left out what to do instead.
    /// `prefix` is where the fields stand in the table.
    fn look(&mut self, node: &'a Node, path: &str, prefix: &str) {
        for entry in self.entries(node, path) {
            let at = join(path, &entry.key);
            match fields::fate(&format!("{prefix}{}", entry.key)) {
                Some(Fate::Left(_))
                    if is_null(&entry.node) || prefix.is_empty() && entry.key == "file_mounts" => {}
                Some(Fate::Left(instead)) => self.note(&at, instead),
                Some(Fate::Becomes(_) | Fate::Holds) => {}
                None => {
                    let known = fields::below(prefix);
                    let help = crate::nearest(&entry.key, &known)
                        .map(|near| format!("did you mean {near}?"));
                    self.wrong(&at, "SkyPilot has no such field here", help.as_deref());
                }
            }
        }
    }

    fn manifest(&mut self, file: &str, image: &str) -> Json {
        let root = self.root;
        self.look(root, "", "");
        if self.top("num_nodes").is_some_and(|node| matches!(node.value, Value::Integer(1))) {
            self.notes.retain(|note| note.field != "num_nodes");
        }
        self.file_mounts();
        let wanted = self.resources();
        let name = self.name(file);
        let container = self.container(&name, image, &wanted);
        let mut metadata = Map::from_iter([("name".to_owned(), json!(name))]);
        if !wanted.labels.is_empty() {
            metadata.insert("labels".into(), wanted.labels.clone().into());
        }
        let mut spec = Map::from_iter([("container".to_owned(), container)]);
        let kind = match self.top("service") {
            Some(service) => {
                self.service(service, &mut spec);
                "InferenceService"
            }
            None => "TrainingJob",
        };
        wanted.write(kind, &mut spec);
        json!({ "apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec })
    }

    /// The task's name, or the file's, as a name of ours.
    fn name(&mut self, file: &str) -> String {
        let given = self.top("name").and_then(|node| self.text(node, "name"));
        let stem = Path::new(file).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let asked = given.as_deref().unwrap_or(stem);
        let lower = asked.chars().map(|c| match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() => c,
            _ => '-',
        });
        let lower: String = lower.collect();
        let from = lower.trim_start_matches(|c: char| !c.is_ascii_lowercase());
        // All ASCII by now.
        let name = from[..from.len().min(40)].trim_end_matches('-');
        let name = if name.is_empty() { "task" } else { name };
        if given.as_deref().is_some_and(|given| given != name) {
            self.note(
                "name",
                format!("is {name:?} now: lower-case letters, digits and '-', at most 40"),
            );
        }
        name.to_owned()
    }

    /// Nothing of them carries over; what to do depends on what they are.
    fn file_mounts(&mut self) {
        let Some(mounts) = self.top("file_mounts") else { return };
        for Entry { key, node, .. } in self.entries(mounts, "file_mounts") {
            let path = join("file_mounts", key);
            let source = match &node.value {
                Value::Text(source) => source.as_str(),
                Value::Map(_) => node.text("source").unwrap_or_default(),
                other => {
                    let message = format!("expected a path, a URI or a map, found {other}");
                    self.wrong(&path, message, None);
                    continue;
                }
            };
            let stored = matches!(node.value, Value::Map(_));
            let message = match (stored, source.contains("://")) {
                (true, true) => format!(
                    "no bucket is mounted: let the command read and write {source}, and keep its checkpoints there"
                ),
                (true, false) => "no bucket is made or mounted: make one, let the command read and write it, and keep its checkpoints there".to_owned(),
                (false, true) => format!("let the command fetch {source} to {key} first"),
                (false, false) => format!("put {source:?} into the image, a repository or a bucket, and let the command fetch it"),
            };
            self.note(&path, message);
        }
    }
}

fn is_null(node: &Node) -> bool {
    matches!(node.value, Value::Null)
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
