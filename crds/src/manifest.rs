//! Reading manifests: one or several YAML (or JSON) documents from a file, into
//! typed objects or into all errors at once, each with its place and its mend.
//!
//! Text → located tree ([`tree`]) → checked against the schema that the API
//! server gets ([`check`]) → typed object → the CRD's own rules. Like the API
//! server's, the rules are judged only when the schema is met.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kube::ResourceExt;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::{API_VERSION, FieldError, InferenceService, TrainingJob, crds};

mod check;
mod names;
mod report;
pub mod skypilot;
mod tree;

pub use report::{ManifestError, ManifestErrors};

use check::Finding;
use tree::{Node, Place, Value};

/// Largest manifest that is read, in bytes.
pub const LARGEST: usize = 1 << 20;
/// Most documents in one file.
const MOST_DOCUMENTS: usize = 256;
/// Most values in one file, those that aliases repeat included.
const MOST_VALUES: usize = 20_000;
/// Deepest nesting.
const DEEPEST: usize = 32;

/// A typed object.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// Kind `TrainingJob`.
    TrainingJob(Box<TrainingJob>),
    /// Kind `InferenceService`.
    InferenceService(Box<InferenceService>),
}

/// The kinds that a manifest may hold: what can run without a cluster.
const WORKLOADS: &[&str] = &["TrainingJob", "InferenceService"];

/// One document of a manifest: the object, and where each of its fields stands.
#[derive(Clone, Debug)]
pub struct Document {
    /// The object, defaults filled in.
    pub object: Object,
    source: Arc<Source>,
    tree: Node,
}

/// The text that documents were read from.
#[derive(Debug)]
struct Source {
    file: String,
    text: String,
    directory: PathBuf,
}

impl Document {
    /// `metadata.name`.
    pub fn name(&self) -> String {
        match &self.object {
            Object::TrainingJob(job) => job.name_any(),
            Object::InferenceService(service) => service.name_any(),
        }
    }

    /// The kind's name.
    pub fn kind(&self) -> &'static str {
        match &self.object {
            Object::TrainingJob(_) => "TrainingJob",
            Object::InferenceService(_) => "InferenceService",
        }
    }

    /// The folder that relative paths in the document are taken against: the file's, or the
    /// current one for standard input.
    pub fn directory(&self) -> &Path {
        &self.source.directory
    }

    /// Errors that a later step found in fields of this document, with their places in the file.
    pub fn locate(&self, errors: &[FieldError]) -> ManifestErrors {
        let located = errors.iter().map(|FieldError { path, message }| {
            let at = self.tree.locate(path);
            self.source.error(Finding {
                at,
                path: path.clone(),
                message: message.clone(),
                help: None,
            })
        });
        ManifestErrors(located.collect())
    }
}

/// Reads the manifest at `path`; `-` is standard input.
pub fn read(path: &Path) -> Result<Vec<Document>, ManifestErrors> {
    let file = path.display().to_string();
    let limit = LARGEST as u64 + 1;
    let mut bytes = Vec::new();
    let (read, directory) = match file.as_str() {
        "-" => (std::io::stdin().take(limit).read_to_end(&mut bytes), PathBuf::from(".")),
        _ => (
            std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)),
            path.parent()
                .filter(|parent| !parent.as_os_str().is_empty())
                .unwrap_or(Path::new("."))
                .to_owned(),
        ),
    };
    match read {
        Ok(_) => parse(&bytes, &file, &std::path::absolute(&directory).unwrap_or(directory)),
        Err(error) => {
            Err(ManifestError::of_file(&file, format!("cannot be read: {error}"), None).into())
        }
    }
}

/// Judges one manifest of any of the kinds as an API server that has the CRDs would, the server's
/// own rules for metadata aside. `file` names it in errors.
pub fn judge(bytes: &[u8], file: &str) -> Result<(), ManifestErrors> {
    let source = Arc::new(Source::new(bytes, file, Path::new("."))?);
    let mut errors = Vec::new();
    for tree in source.trees()? {
        if let Err(findings) = judged(&tree, &source.text, crds::KINDS) {
            errors.extend(findings.into_iter().map(|finding| source.error(finding)));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(ManifestErrors(errors)) }
}

/// Reads a manifest from memory. `file` names it in errors; relative paths in it are taken
/// against `directory`.
pub fn parse(bytes: &[u8], file: &str, directory: &Path) -> Result<Vec<Document>, ManifestErrors> {
    let source = Arc::new(Source::new(bytes, file, directory)?);
    let trees = source.trees()?;
    if trees.is_empty() {
        let help = format!(
            "a manifest starts with apiVersion: {API_VERSION} and a kind: {}",
            WORKLOADS.join(" or ")
        );
        return Err(ManifestError::of_file(
            file,
            "expected at least one document, found none".into(),
            Some(help),
        )
        .into());
    }

    let mut documents: Vec<Document> = Vec::new();
    let mut errors = Vec::new();
    let mut names: Vec<(String, Place)> = Vec::new();
    for tree in trees {
        if let Some(kind) = tree.text("kind")
            && let Some(metadata) = tree.get("metadata")
            && let Some(name) = metadata.node.text("name")
        {
            let namespace = metadata.node.text("namespace").unwrap_or_default();
            let identity = format!("{kind} {namespace}/{name}");
            let at = tree.locate("metadata.name");
            match names.iter().find(|(known, _)| *known == identity) {
                Some((_, first)) => errors.push(source.error(Finding {
                    at,
                    path: "metadata.name".into(),
                    message: format!(
                        "there is a {kind} called {name:?} in line {} already",
                        first.line
                    ),
                    help: Some("give each object of a kind a name of its own".into()),
                })),
                None => names.push((identity, at)),
            }
        }
        match object(&tree, &source.text) {
            Ok(object) => documents.push(Document { object, source: source.clone(), tree }),
            Err(findings) => {
                errors.extend(findings.into_iter().map(|finding| source.error(finding)))
            }
        }
    }
    if errors.is_empty() { Ok(documents) } else { Err(ManifestErrors(errors)) }
}

impl Source {
    /// The text, if it can be one.
    fn new(bytes: &[u8], file: &str, directory: &Path) -> Result<Source, ManifestErrors> {
        if bytes.len() > LARGEST {
            let message = format!("expected a manifest of at most {LARGEST} bytes, found more");
            return Err(ManifestError::of_file(
                file,
                message,
                Some("name data by path or URI instead of writing it out".into()),
            )
            .into());
        }
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
            Err(error) => {
                let line =
                    1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
                let message = format!(
                    "expected UTF-8 text, found byte {:#04x} in line {line}",
                    bytes[error.valid_up_to()]
                );
                return Err(ManifestError::of_file(file, message, None).into());
            }
        };
        Ok(Source { file: file.to_owned(), text: text.to_owned(), directory: directory.to_owned() })
    }

    /// Every document that is not empty.
    fn trees(&self) -> Result<Vec<Node>, ManifestErrors> {
        let options = serde_saphyr::options! {
            with_snippet: false,
            strict_booleans: true,
            reject_unsupported_tags: true,
            budget: serde_saphyr::budget! {
                max_documents: MOST_DOCUMENTS,
                max_nodes: MOST_VALUES,
                max_depth: DEEPEST,
                max_total_scalar_bytes: LARGEST,
            },
            alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MOST_VALUES },
        };
        serde_saphyr::from_multiple_with_options::<Node>(&self.text, options).map_err(|error| {
            let message = syntax_words(&error);
            let Some(location) = error.location().filter(|location| location.line() > 0) else {
                return ManifestError::of_file(&self.file, message, None).into();
            };
            let mut at = Place { length: 1, ..location.into() };
            let mut help = None;
            // A tab in an indentation confuses the parser some lines later or earlier.
            let indented_with_tab =
                |line: &str| line[..line.len() - line.trim_start().len()].contains('\t');
            if let Some((index, line)) = self
                .text
                .lines()
                .enumerate()
                .skip(at.line - 1)
                .find(|(_, line)| indented_with_tab(line))
                && (message.contains("tab") || index + 1 == at.line)
            {
                let column = 1 + line.chars().take_while(|c| *c != '\t').count();
                at = Place { line: index + 1, column, length: 1 };
                help = Some("YAML is indented with spaces, not tabs".to_owned());
            } else if message.contains("quoted scalar") {
                help = Some("is a quote left open in a line above?".to_owned());
            }
            self.error(Finding { at, path: String::new(), message, help }).into()
        })
    }

    /// The error, with the source line it stands in.
    fn error(&self, Finding { at, path, message, help }: Finding) -> ManifestError {
        let excerpt = self.text.lines().nth(at.line.wrapping_sub(1)).map(|line| {
            let rest = line.chars().count().saturating_sub(at.column.saturating_sub(1));
            (line.to_owned(), at.length.clamp(1, rest.max(1)))
        });
        ManifestError {
            file: self.file.clone(),
            line: at.line,
            column: at.column,
            path,
            message,
            help,
            excerpt,
        }
    }
}

/// What the parser says, where its own words would speak of its options.
fn syntax_words(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    match error {
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key {key} stands here twice")
        }
        Error::DuplicateMappingKey { key: None, .. } => "this key stands here twice".to_owned(),
        Error::NonFiniteFloat { value, .. } => format!("expected a finite number, found {value}"),
        Error::AliasReplayLimitExceeded { .. } => {
            format!("aliases repeat more than the {MOST_VALUES} values that a manifest may have")
        }
        Error::Budget { breach: serde_saphyr::budget::BudgetBreach::Nodes { .. }, .. } => {
            format!("expected a manifest of at most {MOST_VALUES} values, found more")
        }
        other => {
            let words = other.to_string();
            // The place is shown by the excerpt.
            words.split(" at line ").next().unwrap_or(&words).trim().to_owned()
        }
    }
}

/// The typed object that a document stands for, or everything that is wrong with it.
fn object(tree: &Node, text: &str) -> Result<Object, Vec<Finding>> {
    let (kind, json) = judged(tree, text, WORKLOADS)?;
    match kind {
        "TrainingJob" => typed(tree, json).map(|job| Object::TrainingJob(Box::new(job))),
        _ => typed(tree, json).map(|service| Object::InferenceService(Box::new(service))),
    }
}

/// Checks a document of one of `kinds` against the kind's schema and rules. Gives the kind and the
/// object, or everything that is wrong.
fn judged<'a>(
    tree: &Node,
    text: &str,
    kinds: &'a [&'a str],
) -> Result<(&'a str, Json), Vec<Finding>> {
    let finding = |path: &str, message: String, help: Option<String>| {
        vec![Finding { at: tree.locate(path), path: path.to_owned(), message, help }]
    };
    let Value::Map(_) = &tree.value else {
        return Err(finding(
            "",
            format!(
                "expected a map with apiVersion, kind, metadata and spec, found {}",
                tree.value
            ),
            None,
        ));
    };
    // An empty value is one that was left out.
    let given = |key| {
        tree.get(key).map(|entry| &entry.node.value).filter(|value| !matches!(value, Value::Null))
    };
    let words = kinds.join(" or ");
    let name = match given("kind") {
        Some(Value::Text(kind)) => {
            let Some(known) = kinds.iter().find(|known| *known == kind) else {
                let help = match crds::kind(kind) {
                    Some(_) => Some(format!(
                        "a {kind} means something only in a cluster: take it out of this manifest and use kubectl apply"
                    )),
                    None => crate::nearest(kind, kinds).map(|near| format!("did you mean {near}?")),
                };
                return Err(finding("kind", format!("expected {words}, found {kind:?}"), help));
            };
            *known
        }
        Some(other) => {
            return Err(finding("kind", format!("expected {words}, found {other}"), None));
        }
        None => {
            return Err(finding(
                "kind",
                format!("required field is missing: expected {words}"),
                None,
            ));
        }
    };
    match given("apiVersion") {
        Some(Value::Text(version)) if version == API_VERSION => {}
        Some(other) => {
            return Err(finding(
                "apiVersion",
                format!("expected {API_VERSION}, found {other}"),
                None,
            ));
        }
        None => {
            return Err(finding(
                "apiVersion",
                format!("required field is missing: expected {API_VERSION}"),
                None,
            ));
        }
    }
    let Some(kind) = crds::kind(name) else {
        return Err(finding("kind", format!("expected {words}, found {name:?}"), None));
    };
    let mut findings = check::check(tree, &kind.manifest_schema, text);
    // The API server holds namespaces to this, and outside a cluster they name folders.
    if let Some(namespace) = tree.get("metadata").and_then(|m| m.node.text("namespace"))
        && !namespace.is_empty()
        && !is_label(namespace)
    {
        findings.push(Finding {
            at: tree.locate("metadata.namespace"),
            path: "metadata.namespace".into(),
            message: format!(
                "expected at most 63 lower-case letters, digits and '-', with a letter or digit at both ends, found {namespace:?}"
            ),
            help: None,
        });
    }
    if !findings.is_empty() {
        return Err(findings);
    }
    let mut json = tree.json();
    if let Json::Object(map) = &mut json {
        map.remove("status");
    }
    let broken: Vec<Finding> = kind
        .violations(&json, None)
        .into_iter()
        .map(|FieldError { path, message }| Finding {
            at: tree.locate(&path),
            path,
            message,
            help: None,
        })
        .collect();
    if broken.is_empty() { Ok((name, json)) } else { Err(broken) }
}

/// The typed object. The schema was generated from the type, so what meets it fits; metadata is
/// the exception.
fn typed<T: DeserializeOwned>(tree: &Node, json: Json) -> Result<T, Vec<Finding>> {
    serde_json::from_value(json).map_err(|error| {
        vec![Finding {
            at: tree.locate("metadata"),
            path: String::new(),
            message: error.to_string(),
            help: None,
        }]
    })
}

/// Whether this is a DNS label (RFC 1123).
fn is_label(text: &str) -> bool {
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    (1..=63).contains(&text.len())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.as_bytes().iter().all(inner)
}
