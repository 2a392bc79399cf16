//! Reading a job's inputs: where they lie, what exactly was read (one content
//! digest each), and whether it is still the same.
//!
//! A folder is read recursively in the order of its relative paths, symbolic
//! links followed; names that begin with a dot are left out, so that a checkout's
//! `.git` is not data. In a folder of text, files that are not UTF-8 (or hold a
//! NUL byte) are left out and counted; a single file like that is an error.
//!
//! digest = [`petaflop_store`]'s tree hash over the (relative path, length, blake3)
//! of what was read: the same function that names artifacts. A single file has
//! the empty path: its name is not part of its content.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use petaflop_plan::recipe::{self, JobSpec, ModelSource};
use petaflop_store::{
    ArtifactHash, Digest, StoreError,
    blocking::{Store, fetch},
    hash::{HashedFile, artifact_hash},
    place,
};

use crate::error::Error;

/// Text that a program brings along, by its URI (`builtin:petaflop`):
/// (relative path, text) sorted by path.
pub type Builtins = BTreeMap<String, Vec<(String, String)>>;

/// A piece of text that was read.
#[derive(Clone, Debug)]
pub struct Text {
    /// Path relative to the input; empty for an input that is one file.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// An input that was read.
#[derive(Debug)]
pub struct Source {
    /// The name that the recipe uses.
    pub name: String,
    /// Where it lies, as the job says.
    pub uri: String,
    /// Of what was read; written `blake3:<hex>`.
    pub digest: Digest,
    /// The texts, sorted by path; empty for a base model's files.
    pub texts: Vec<Text>,
    /// Files of a folder that were left out because they are not text.
    pub left_out: u64,
    role: Role,
    place: Place,
}

/// What the recipe uses an input for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Text to train on.
    Text,
    /// A base model's files, read by someone else.
    Files,
}

#[derive(Debug)]
enum Place {
    /// Part of the program, or a copy beside the checkpoints: nobody changes it.
    Fixed(Option<PathBuf>),
    /// Our own copy of what lies elsewhere.
    Copied { root: PathBuf, _scratch: tempfile::TempDir },
    /// On a file system; what [`Source::still_the_same`] compares.
    Path { root: PathBuf, stamps: Vec<Stamp> },
}

/// What a change of a file would change, without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    path: String,
    len: u64,
    modified: SystemTime,
}

/// What an input's digest covers.
struct Entry {
    path: String,
    len: u64,
    hash: blake3::Hash,
}

/// A digest as people and job files write it: `blake3:<hex>`.
#[must_use]
pub fn written(digest: Digest) -> String {
    format!("blake3:{digest}")
}

/// Over the entries.
fn digest(entries: &[Entry]) -> Digest {
    artifact_hash(entries.iter().map(|Entry { path, len, hash }| HashedFile {
        path,
        length: *len,
        content: (*hash).into(),
    }))
    .0
}

struct Found {
    relative: String,
    path: PathBuf,
    len: u64,
    modified: SystemTime,
}

/// Reads every input that the job's recipe names and checks the digests the job
/// asks for. An artifact is copied from `store` to a folder beside the checkpoints.
///
/// # Errors
/// A name without an input, an input without a use, a missing or unreadable path,
/// a folder without text, a file that is not text, another digest than asked for.
pub fn read_all(job: &JobSpec, builtins: &Builtins, store: &Store) -> Result<Vec<Source>, Error> {
    let mut roles: BTreeMap<&str, Role> = BTreeMap::new();
    if let ModelSource::Base { input } = &job.recipe.model {
        roles.insert(input, Role::Files);
    }
    for dataset in &job.recipe.datasets {
        if roles.insert(&dataset.input, Role::Text) == Some(Role::Files) {
            return Err(Error::BadInput(format!(
                "input '{}': used as a base model and as a dataset; give each its own input",
                dataset.input
            )));
        }
    }
    for (i, input) in job.inputs.iter().enumerate() {
        if job.inputs[..i].iter().any(|other| other.name == input.name) {
            return Err(Error::BadInput(format!(
                "inputs[{i}]: the name '{}' is taken already",
                input.name
            )));
        }
        if !roles.contains_key(input.name.as_str()) {
            return Err(Error::BadInput(format!(
                "inputs[{i}]: the recipe has no use for '{}'; remove it or name it in datasets",
                input.name
            )));
        }
    }
    roles
        .into_iter()
        .map(|(name, role)| {
            let input = job.inputs.iter().find(|input| input.name == name).ok_or_else(|| {
                Error::BadInput(format!(
                    "the recipe names input '{name}', which the job's inputs do not hold"
                ))
            })?;
            let source = match input.uri.strip_prefix("artifact:") {
                Some(hash) => Source::read_artifact(input, hash, role, store, &job.checkpoints)?,
                None if place::is_remote(&input.uri) => Source::read_bucket(input, role)?,
                None => Source::read(input, role, builtins)?,
            };
            match &input.digest {
                Some(expected) if *expected != written(source.digest) => Err(Error::Digest {
                    name: source.name,
                    uri: source.uri,
                    expected: expected.clone(),
                    found: written(source.digest),
                }),
                _ => Ok(source),
            }
        })
        .collect()
}

impl Source {
    fn read(input: &recipe::Input, role: Role, builtins: &Builtins) -> Result<Self, Error> {
        let recipe::Input { name, uri, digest: _ } = input;
        if uri.starts_with("builtin:") {
            return Self::read_builtin(name, uri, role, builtins);
        }
        let root = local_path(name, uri)?;
        let at = |message: String| Error::BadInput(format!("input '{name}': {message}"));
        // Stamps are taken before the content is read, so that a change in between shows later.
        let found = walk(&root).map_err(at)?;
        let stamps = found.iter().map(Found::stamp).collect();
        let Contents { entries, texts, left_out } = read_files(&root, &found, role).map_err(at)?;
        Ok(Self {
            name: name.clone(),
            uri: uri.clone(),
            digest: digest(&entries),
            texts,
            left_out,
            role,
            place: Place::Path { root, stamps },
        })
    }

    fn read_artifact(
        input: &recipe::Input,
        hash: &str,
        role: Role,
        store: &Store,
        checkpoints: &str,
    ) -> Result<Self, Error> {
        let name = &input.name;
        let hash: ArtifactHash =
            hash.parse().map_err(|error| Error::BadInput(format!("input '{name}': {error}")))?;
        let (folder, scratch) = if place::is_remote(checkpoints) {
            let scratch = scratch()?;
            (scratch.path().join("artifact"), Some(scratch))
        } else {
            (Path::new(checkpoints).join(".inputs").join(hash.to_string()), None)
        };
        store.materialise(hash, &folder).map_err(|error| match error {
            StoreError::NotFound { .. } => Error::BadInput(format!("input '{name}': {error}")),
            other => Error::store(other),
        })?;
        let copy = recipe::Input { uri: folder.display().to_string(), ..input.clone() };
        // Its name covers every file of it, also those that are not text.
        Ok(Self {
            uri: input.uri.clone(),
            digest: hash.0,
            place: match scratch {
                None => Place::Fixed(Some(folder)),
                Some(scratch) => Place::Copied { root: folder, _scratch: scratch },
            },
            ..Self::read(&copy, role, &Builtins::new())?
        })
    }

    /// Copies an object, or everything below it, and reads the copy.
    fn read_bucket(input: &recipe::Input, role: Role) -> Result<Self, Error> {
        let recipe::Input { name, uri, digest: _ } = input;
        let scratch = scratch()?;
        let root = scratch.path().join("input");
        let found =
            fetch(uri, &root).map_err(|error| Error::Store(format!("input '{name}': {error}")))?;
        if found.is_none() {
            return Err(Error::BadInput(format!("input '{name}': {uri}: there is nothing")));
        }
        let copy = recipe::Input { uri: root.display().to_string(), ..input.clone() };
        Ok(Self {
            uri: uri.clone(),
            place: Place::Copied { root, _scratch: scratch },
            ..Self::read(&copy, role, &Builtins::new())?
        })
    }

    fn read_builtin(name: &str, uri: &str, role: Role, builtins: &Builtins) -> Result<Self, Error> {
        let files = builtins.get(uri).filter(|_| role == Role::Text).ok_or_else(|| {
            let known: Vec<&str> = builtins.keys().map(String::as_str).collect();
            Error::BadInput(format!(
                "input '{name}': no such built-in text '{uri}'; this runtime has: {}",
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            ))
        })?;
        let entries: Vec<Entry> = files
            .iter()
            .map(|(path, text)| Entry {
                path: path.clone(),
                len: text.len() as u64,
                hash: blake3::hash(text.as_bytes()),
            })
            .collect();
        Ok(Self {
            name: name.to_owned(),
            uri: uri.to_owned(),
            digest: digest(&entries),
            texts: files
                .iter()
                .map(|(path, text)| Text { path: path.clone(), text: text.clone() })
                .collect(),
            left_out: 0,
            role,
            place: Place::Fixed(None),
        })
    }

    /// The folder or file it was read from; none for a built-in text.
    #[must_use]
    pub fn root(&self) -> Option<&Path> {
        match &self.place {
            Place::Fixed(root) => root.as_deref(),
            Place::Copied { root, .. } | Place::Path { root, .. } => Some(root),
        }
    }

    /// Whether the files still look as they did when they were read. Cheap: reads
    /// contents only where a size or a time moved.
    ///
    /// # Errors
    /// [`Error::Changed`] where the content is another one.
    pub fn still_the_same(&mut self) -> Result<(), Error> {
        let Place::Path { root, stamps } = &self.place else {
            return Ok(());
        };
        let now = walk(root).map(|found| found.iter().map(Found::stamp).collect::<Vec<_>>());
        if now.as_ref() == Ok(stamps) {
            return Ok(());
        }
        self.verify()?;
        // Touched, but the content stands.
        if let (Place::Path { stamps, .. }, Ok(now)) = (&mut self.place, now) {
            *stamps = now;
        }
        Ok(())
    }

    /// Reads everything again and compares the digest.
    ///
    /// # Errors
    /// [`Error::Changed`] where the content is another one or cannot be read.
    pub fn verify(&self) -> Result<(), Error> {
        let Place::Path { root, .. } = &self.place else {
            return Ok(());
        };
        let after = walk(root)
            .and_then(|found| read_files(root, &found, self.role))
            .map_or_else(|unreadable| unreadable, |contents| written(digest(&contents.entries)));
        let before = written(self.digest);
        if after == before {
            return Ok(());
        }
        Err(Error::Changed { name: self.name.clone(), uri: self.uri.clone(), before, after })
    }
}

/// A folder of this machine that is gone when the job is.
fn scratch() -> Result<tempfile::TempDir, Error> {
    tempfile::Builder::new()
        .prefix("petaflop-input-")
        .tempdir()
        .map_err(Error::io("cannot make a folder in", &std::env::temp_dir()))
}

/// The local path that a URI names.
fn local_path(name: &str, uri: &str) -> Result<PathBuf, Error> {
    if let Some(path) = uri.strip_prefix("file://") {
        return Ok(PathBuf::from(path));
    }
    match uri.split_once("://") {
        Some((scheme, _)) => Err(Error::BadInput(format!(
            "input '{name}': '{uri}': the scheme '{scheme}' is not read by this runtime; \
             copy the data to a folder or a bucket and give its path or s3:// URI"
        ))),
        None => Ok(PathBuf::from(uri)),
    }
}

/// Every file under `root` (or `root` itself), sorted by relative path.
fn walk(root: &Path) -> Result<Vec<Found>, String> {
    let meta = fs::metadata(root).map_err(|error| format!("{}: {error}", root.display()))?;
    let mut found = Vec::new();
    if meta.is_dir() {
        walk_folder(root, "", &mut vec![(meta.dev(), meta.ino())], &mut found)?;
        found.sort_by(|a, b| a.relative.as_bytes().cmp(b.relative.as_bytes()));
    } else if meta.is_file() {
        found.push(Found::new(String::new(), root.to_owned(), &meta)?);
    } else {
        return Err(format!(
            "{}: expected a file or a folder, found a device, pipe or socket",
            root.display()
        ));
    }
    Ok(found)
}

fn walk_folder(
    folder: &Path,
    prefix: &str,
    above: &mut Vec<(u64, u64)>,
    found: &mut Vec<Found>,
) -> Result<(), String> {
    let at = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    for entry in fs::read_dir(folder).map_err(|error| at(folder, &error))? {
        let path = entry.map_err(|error| at(folder, &error))?.path();
        let Some(file_name) = path.file_name() else {
            continue;
        };
        let Some(file_name) = file_name.to_str() else {
            return Err(at(&path, &"the file's name is not UTF-8; rename it"));
        };
        if file_name.starts_with('.') {
            continue;
        }
        let relative =
            if prefix.is_empty() { file_name.to_owned() } else { format!("{prefix}/{file_name}") };
        // Follows links; a link to itself or to nothing is an error here.
        let meta = fs::metadata(&path).map_err(|error| at(&path, &error))?;
        if meta.is_dir() {
            let id = (meta.dev(), meta.ino());
            if above.contains(&id) {
                return Err(at(
                    &path,
                    &"a symbolic link leads back to a folder that holds it; remove the link",
                ));
            }
            above.push(id);
            walk_folder(&path, &relative, above, found)?;
            above.pop();
        } else if meta.is_file() {
            found.push(Found::new(relative, path, &meta)?);
        } else {
            return Err(at(
                &path,
                &"expected a file or a folder, found a device, pipe or socket; remove it",
            ));
        }
    }
    Ok(())
}

impl Found {
    fn new(relative: String, path: PathBuf, meta: &fs::Metadata) -> Result<Self, String> {
        let modified = meta.modified().map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { relative, path, len: meta.len(), modified })
    }

    fn stamp(&self) -> Stamp {
        Stamp { path: self.relative.clone(), len: self.len, modified: self.modified }
    }
}

struct Contents {
    entries: Vec<Entry>,
    texts: Vec<Text>,
    left_out: u64,
}

fn read_files(root: &Path, found: &[Found], role: Role) -> Result<Contents, String> {
    let mut contents = Contents { entries: Vec::new(), texts: Vec::new(), left_out: 0 };
    let single = matches!(found, [file] if file.relative.is_empty());
    for Found { relative, path, len, modified: _ } in found {
        let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        match role {
            Role::Files => {
                let mut hasher = blake3::Hasher::new();
                let file = fs::File::open(path).map_err(|error| at(&error))?;
                hasher.update_reader(file).map_err(|error| at(&error))?;
                contents.entries.push(Entry {
                    path: relative.clone(),
                    len: *len,
                    hash: hasher.finalize(),
                });
            }
            Role::Text => {
                let bytes = fs::read(path).map_err(|error| at(&error))?;
                let hash = blake3::hash(&bytes);
                let text = match text(bytes) {
                    Ok(text) => text,
                    Err(reason) if single => {
                        return Err(at(&format_args!(
                            "{reason}; convert the file to UTF-8 or give another one"
                        )));
                    }
                    Err(_) => {
                        contents.left_out += 1;
                        continue;
                    }
                };
                if text.is_empty() {
                    if single {
                        return Err(at(&"the file is empty; there is nothing to train on"));
                    }
                    continue;
                }
                contents.entries.push(Entry {
                    path: relative.clone(),
                    len: text.len() as u64,
                    hash,
                });
                contents.texts.push(Text { path: relative.clone(), text });
            }
        }
    }
    if contents.entries.is_empty() {
        let what = match contents.left_out {
            0 => "the folder holds no file with content (names that begin with a dot are left out)"
                .to_owned(),
            n => format!("the folder holds no text: none of its {n} files is UTF-8"),
        };
        return Err(format!("{}: {what}", root.display()));
    }
    Ok(contents)
}

/// The bytes as text, or why they are none.
fn text(bytes: Vec<u8>) -> Result<String, String> {
    if let Some(at) = bytes.iter().position(|&byte| byte == 0) {
        return Err(format!("not text: there is a NUL byte at offset {at}"));
    }
    String::from_utf8(bytes).map_err(|error| {
        format!("not UTF-8: the byte at offset {} does not fit", error.utf8_error().valid_up_to())
    })
}

#[cfg(test)]
mod tests;
