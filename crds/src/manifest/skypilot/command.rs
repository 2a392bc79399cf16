//! Workdir, setup, run, envs and secrets as a container that one shell runs.

use serde_json::{Map, Value as Json, json};

use super::resources::Wanted;
use super::{Entry, Node, Task, Value, is_null, join};
use crate::shared::ENV_PATTERN;

/// Most characters of one argument (`Container::args`).
const LONGEST: usize = 4096;

/// Variables that SkyPilot sets on every machine, and their values where there is one.
const SET_BY_SKYPILOT: &[(&str, &str)] =
    &[("SKYPILOT_NODE_IPS", "127.0.0.1"), ("SKYPILOT_NODE_RANK", "0"), ("SKYPILOT_NUM_NODES", "1")];

/// Ends of names of variables whose values are nobody's business.
const SECRET: &[&str] =
    &["TOKEN", "API_KEY", "ACCESS_KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIALS"];

impl Task<'_> {
    /// The container. What is secret is read from the Secret `<name>-secrets`.
    pub(super) fn container(&mut self, name: &str, image: &str, wanted: &Wanted) -> Json {
        let (image, named) = match &wanted.image {
            Some(image) => (image.as_str(), true),
            None => (image, false),
        };
        if !named {
            self.note("resources.image_id", format!(
                "SkyPilot's own image is one of machines; the command runs in {image} now: name another by --image, or docker:… here"
            ));
        }
        let script = self.script();
        let mut env = self.env(name);
        for (variable, value) in SET_BY_SKYPILOT {
            if script.contains(variable) {
                env.push(json!({ "name": variable, "value": value }));
            }
        }
        if script.contains("SKYPILOT_NUM_GPUS_PER_NODE") {
            match wanted.count() {
                Some(count) => env.push(
                    json!({ "name": "SKYPILOT_NUM_GPUS_PER_NODE", "value": count.to_string() }),
                ),
                None => self.note("run", "SKYPILOT_NUM_GPUS_PER_NODE is not set, because the alternatives differ: ask the driver (nvidia-smi -L)"),
            }
        }
        for unknown in ["SKYPILOT_TASK_ID", "SKYPILOT_CLUSTER_INFO", "SKYPILOT_SERVE_REPLICA_ID"] {
            if script.contains(unknown) {
                self.note(
                    "run",
                    format!("{unknown} is not set: take $PETAFLOP_JOB and $PETAFLOP_PLACEMENT"),
                );
            }
        }
        let mut container = Map::from_iter([
            ("image".to_owned(), json!(image)),
            ("command".to_owned(), json!(["/bin/bash", "-c"])),
            ("args".to_owned(), json!([script])),
        ]);
        if !env.is_empty() {
            container.insert("env".into(), env.into());
        }
        container.into()
    }

    /// Setup and run as one script. Setup is a shell of its own, whose failure is the job's.
    fn script(&mut self) -> String {
        let piece = |task: &mut Self, key: &str| {
            let text = task.top(key).and_then(|node| task.text(node, key)).unwrap_or_default();
            text.trim_end().to_owned()
        };
        let (setup, run) = (piece(self, "setup"), piece(self, "run"));
        if run.is_empty() {
            let help = "petaflop runs commands; machines to log in to are not rented";
            self.wrong("", "expected run, found a task without one", Some(help));
        }
        let mut script = self.checkout();
        if !setup.is_empty() {
            script.push_str(&format!("(\n{setup}\n) || exit\n"));
        }
        script.push_str(&run);
        script.push('\n');
        let length = script.chars().count();
        if length > LONGEST {
            self.wrong(
                "run",
                format!("setup and run are {length} characters together, and an argument holds {LONGEST}"),
                Some("put them into a file of the image or of the repository in workdir, and call that"),
            );
        }
        script
    }

    /// Lines that clone the workdir, where it is a repository.
    fn checkout(&mut self) -> String {
        let Some(workdir) = self.top("workdir") else { return String::new() };
        if let Value::Text(folder) = &workdir.value {
            self.note("workdir", format!("{folder:?} is not copied to machines: put it into the image, or give a Git repository (workdir.url)"));
            return String::new();
        }
        let mut url = None;
        let mut reference = None;
        for Entry { key, node, .. } in self.entries(workdir, "workdir") {
            let path = join("workdir", key);
            match key.as_str() {
                "url" => url = self.text(node, &path),
                "ref" if is_null(node) => {}
                "ref" => reference = self.text(node, &path),
                _ => self.wrong(
                    &path,
                    "SkyPilot has no such field here",
                    Some("expected url and ref"),
                ),
            }
        }
        let Some(url) = url else {
            self.wrong("workdir", "expected url, the address of a Git repository", None);
            return String::new();
        };
        if !url.starts_with("https://") {
            self.note("workdir.url", "a machine has no key of yours: give an https:// address that anybody, or a token in a Secret, can read");
        }
        let url = quoted(&url);
        let mut lines = format!(
            "cd && {{ [ -d sky_workdir ] || git clone --quiet {url} sky_workdir; }} && cd sky_workdir || exit\n"
        );
        if let Some(reference) = reference {
            lines.push_str(&format!("git checkout --quiet {} || exit\n", quoted(&reference)));
        }
        lines
    }

    /// Environment variables; those that are secret by reference.
    fn env(&mut self, name: &str) -> Vec<Json> {
        let secret = format!("{name}-secrets");
        let (mut env, mut keys): (Vec<Json>, Vec<(String, &String)>) = (Vec::new(), Vec::new());
        if let Some(envs) = self.top("envs") {
            for Entry { key, node, .. } in self.entries(envs, "envs") {
                let path = join("envs", key);
                if !self.is_variable(key, &path) {
                    continue;
                }
                if key.starts_with("SKYPILOT_DOCKER_") {
                    self.note(&path, "make a Secret for the registry (kubectl create secret docker-registry), and name it in spec.imagePullSecrets");
                } else if SECRET.iter().any(|end| key.to_ascii_uppercase().ends_with(end)) {
                    keys.push((path, key));
                } else if is_null(node) {
                    self.note(&path, "has no value, because SkyPilot is given it by --env: add it to container.env");
                } else if let Some(value) = self.variable(node, &path) {
                    env.push(json!({ "name": key, "value": value }));
                }
            }
        }
        match self.top("secrets") {
            Some(Node { value: Value::List(_), .. }) => {
                self.note("secrets", "make a Secret of each, and name it in spec.secrets");
            }
            Some(secrets) => {
                for Entry { key, .. } in self.entries(secrets, "secrets") {
                    // An error shows the line it stands in: not that of a value.
                    if self.is_variable(key, "") {
                        keys.push(("secrets".to_owned(), key));
                    }
                }
            }
            None => {}
        }
        for (path, key) in keys {
            env.retain(|variable| variable["name"] != key.as_str());
            env.push(json!({ "name": key, "valueFrom": { "secretKeyRef": { "name": secret, "key": key } } }));
            self.note(&path, format!("{key} is read from a Secret, which is yours to make: kubectl create secret generic {secret} --from-literal={key}=…"));
        }
        env
    }

    /// Text, a number or a flag, as SkyPilot writes it into the environment.
    fn variable(&mut self, node: &Node, path: &str) -> Option<String> {
        match node.value {
            Value::Bool(flag) => Some(if flag { "True" } else { "False" }.to_owned()),
            _ => self.text(node, path),
        }
    }

    fn is_variable(&mut self, key: &str, path: &str) -> bool {
        let mut letters = key.chars();
        let fine = letters.next().is_some_and(|c| c == '_' || c.is_ascii_alphabetic())
            && letters.all(|c| c == '_' || c.is_ascii_alphanumeric());
        if !fine {
            let message = format!("{key:?} is no name of a variable: expected {ENV_PATTERN}");
            self.wrong(path, message, None);
        }
        fine
    }
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
