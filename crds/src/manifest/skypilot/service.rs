//! The service section: replicas, port and probes.

use serde_json::{Map, Value as Json, json};

use super::{Entry, Node, Task, Value, is_null, join};

impl<'a> Task<'a> {
    /// Writes what `service` says into an InferenceService's spec.
    pub(super) fn service(&mut self, service: &'a Node, spec: &mut Map<String, Json>) {
        self.look(service, "service", "service.");
        for Entry { key, node, .. } in self.entries(service, "service") {
            let path = join("service", key);
            match key.as_str() {
                _ if is_null(node) => {}
                "replicas" => {
                    if let Some(replicas) = self.whole(node, &path, 1000) {
                        spec.insert("replicas".into(), replicas.into());
                    }
                }
                "ports" => {
                    if let Some(port) = self.whole(node, &path, 65535) {
                        spec.insert("port".into(), port.into());
                    }
                }
                "replica_policy" => self.replica_policy(node, &path, spec),
                "readiness_probe" => {
                    let probe = self.probe(node, &path);
                    spec.insert("probes".into(), json!({ "readiness": probe }));
                }
                // Left out, or wrong, and said to be.
                _ => {}
            }
        }
        if !spec.contains_key("port") {
            let ports = self.top("resources").and_then(|resources| resources.get("ports"));
            if let Some(Entry { node: Node { value: Value::Integer(port), .. }, .. }) = ports {
                spec.insert("port".into(), json!(*port as i64));
                self.notes.retain(|note| note.field != "resources.ports");
            }
        }
    }

    fn replica_policy(&mut self, node: &'a Node, path: &str, spec: &mut Map<String, Json>) {
        for Entry { key, node, .. } in self.entries(node, path) {
            let path = join(path, key);
            let ours = match key.as_str() {
                _ if is_null(node) => continue,
                "min_replicas" => "minReplicas",
                "max_replicas" => "maxReplicas",
                _ => {
                    self.note(&path, "is left out: let a scaler of yours write spec.replicas (kubectl autoscale, KEDA); spot machines are replaced by themselves");
                    continue;
                }
            };
            if let Some(replicas) = self.whole(node, &path, 1000) {
                spec.insert(ours.into(), replicas.into());
                if ours == "minReplicas" && !spec.contains_key("replicas") {
                    spec.insert("replicas".into(), replicas.into());
                }
            }
        }
    }

    /// A path, or a map with one.
    fn probe(&mut self, node: &'a Node, path: &str) -> Json {
        let mut probe = Map::new();
        if let Value::Text(text) = &node.value {
            probe.insert("path".into(), json!(text));
            return probe.into();
        }
        for Entry { key, node, .. } in self.entries(node, path) {
            let path = join(path, key);
            let ours = match key.as_str() {
                _ if is_null(node) => continue,
                "path" => {
                    if let Some(text) = self.text(node, &path) {
                        probe.insert("path".into(), text.into());
                    }
                    continue;
                }
                "initial_delay_seconds" => "initialDelaySeconds",
                "timeout_seconds" => "timeoutSeconds",
                "endpoint_probe_interval_seconds" => "periodSeconds",
                _ => {
                    self.note(
                        &path,
                        "is left out: a replica is asked by GET, without headers of yours",
                    );
                    continue;
                }
            };
            if let Some(seconds) = self.whole(node, &path, 86_400) {
                probe.insert(ours.into(), seconds.into());
            }
        }
        if !probe.contains_key("path") {
            self.wrong(path, "expected a path such as /health", None);
        }
        probe.into()
    }
}
