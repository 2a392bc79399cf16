//! What a task's machine must have, where it may be, and at what price. `any_of`, `ordered` and
//! lists of accelerators are alternatives; a manifest has alternatives of accelerators alone, so
//! that what else varies is joined, and said to be.

use serde_json::{Map, Value as Json, json};

use super::candidate::{Accelerator, Candidate, Layers};
use super::{Entry, Node, Task, Value, is_null, join};
use crate::scalar::{Money, Quantity};

/// What a task asks for, all alternatives joined.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    accelerators: Vec<Accelerator>,
    cpu: Option<Quantity>,
    memory: Option<Quantity>,
    disk: Option<Quantity>,
    providers: Vec<String>,
    regions: Vec<String>,
    capacity: &'static str,
    max_hourly: Option<Money>,
    fails_when_interrupted: bool,
    restarts_on_errors: u32,
    /// Labels of the object.
    pub(super) labels: Map<String, Json>,
    /// The image, where the task names one that runs in a container.
    pub(super) image: Option<String>,
}

impl Wanted {
    /// How many accelerators a machine has, where all alternatives have as many.
    pub(super) fn count(&self) -> Option<u32> {
        let count = self.accelerators.first().map_or(0, |one| one.count);
        self.accelerators.iter().all(|one| one.count == count).then_some(count)
    }

    /// Writes it into the spec of an object of this kind.
    pub(super) fn write(self, kind: &str, spec: &mut Map<String, Json>) {
        let mut resources = Map::new();
        let quantities =
            [("cpu", self.cpu), ("memory", self.memory), ("ephemeralStorage", self.disk)];
        for (key, quantity) in quantities {
            if let Some(quantity) = quantity {
                resources.insert(key.into(), json!(quantity));
            }
        }
        let accelerator = |one: &Accelerator| json!({ "models": one.models, "count": one.count });
        match self.accelerators.as_slice() {
            [] => {}
            [one] => {
                resources.insert("accelerator".into(), accelerator(one));
            }
            several => {
                let several: Vec<Json> = several.iter().map(accelerator).collect();
                resources.insert("anyOf".into(), several.into());
            }
        }
        let mut placement = Map::new();
        for (key, names) in [("providers", self.providers), ("regions", self.regions)] {
            if !names.is_empty() {
                placement.insert(key.into(), names.into());
            }
        }
        placement.insert("capacityType".into(), self.capacity.into());
        if let Some(price) = self.max_hourly {
            placement.insert("maxHourlyPrice".into(), price.0.into());
        }
        if kind == "TrainingJob" {
            if self.fails_when_interrupted {
                placement.insert("interruption".into(), json!({ "policy": "Fail" }));
            }
            spec.insert("backoffLimit".into(), self.restarts_on_errors.into());
        }
        if !resources.is_empty() {
            spec.insert("resources".into(), resources.into());
        }
        spec.insert("placement".into(), placement.into());
    }
}

impl<'a> Task<'a> {
    /// Reads `resources`.
    pub(super) fn resources(&mut self) -> Wanted {
        let mut wanted = Wanted { capacity: "OnDemand", ..Wanted::default() };
        let Some(base) = self.top("resources") else { return wanted };
        self.look(base, "resources", "resources.");
        let outer = Layers(vec![(base, "resources".to_owned())]);
        self.once(&outer, &mut wanted);
        let mut candidates = Vec::new();
        let mut alternatives = "resources".to_owned();
        for key in ["any_of", "ordered"] {
            let Some((node, path)) = outer.get(key) else { continue };
            let Value::List(items) = &node.value else {
                self.wrong(&path, format!("expected a list, found {}", node.value), None);
                continue;
            };
            if key == "ordered" {
                self.note(
                    &path,
                    "the order is left out: what is cheapest to finish on comes first",
                );
            }
            for (index, item) in items.iter().enumerate() {
                let path = format!("{path}[{index}]");
                self.look(item, &path, "resources.");
                candidates.push(Layers(vec![(item, path), (base, "resources".to_owned())]));
            }
            alternatives = path;
        }
        if ["any_of", "ordered"].iter().all(|key| outer.get(key).is_some()) {
            self.wrong("resources.ordered", "any_of and ordered exclude each other", None);
        }
        if candidates.is_empty() {
            candidates.push(outer);
        }
        let read: Vec<Candidate> = candidates.iter().map(|layers| self.candidate(layers)).collect();
        self.join(read, &alternatives, &mut wanted);
        wanted
    }

    /// What is the same for all alternatives.
    fn once(&mut self, layers: &Layers<'a>, wanted: &mut Wanted) {
        if let Some((node, path)) = layers.get("image_id") {
            match &node.value {
                Value::Text(image) if image.starts_with("docker:") => {
                    wanted.image = Some(image["docker:".len()..].to_owned());
                }
                _ => self.note(&path, "an image of machines is left out: name one of containers (docker:…, or --image)"),
            }
        }
        if let Some((node, path)) = layers.get("labels") {
            for Entry { key, node, .. } in self.entries(node, &path) {
                let path = join(&path, key);
                let Some(value) = self.text(node, &path) else { continue };
                let name = key.rsplit_once('/').map_or(key.as_str(), |(_, name)| name);
                if is_label(name) && (value.is_empty() || is_label(&value)) {
                    wanted.labels.insert(key.clone(), value.into());
                } else {
                    self.note(
                        &path,
                        "is no label to Kubernetes: at most 63 letters, digits, '-', '_' and '.'",
                    );
                }
            }
        }
        if let Some((node, path)) = layers.get("job_recovery") {
            match &node.value {
                Value::Map(entries) => {
                    for Entry { key, node, .. } in entries {
                        let path = join(&path, key);
                        match key.as_str() {
                            _ if is_null(node) => {}
                            "strategy" => self.strategy(node, &path, wanted),
                            "max_restarts_on_errors" => {
                                wanted.restarts_on_errors = self.whole(node, &path, 1000).unwrap_or(0);
                            }
                            _ => self.note(&path, "is left out: a job's failures are counted by backoffLimit, whatever their exit codes"),
                        }
                    }
                }
                _ => self.strategy(node, &path, wanted),
            }
        }
    }

    fn strategy(&mut self, node: &Node, path: &str, wanted: &mut Wanted) {
        let Some(name) = self.text(node, path) else { return };
        match name.to_ascii_uppercase().as_str() {
            "NONE" => wanted.fails_when_interrupted = true,
            "FAILOVER" | "EAGER_NEXT_REGION" | "EAGER_FAILOVER" => {}
            _ => self.note(
                path,
                "is left out: a job goes on at the place that is cheapest to finish at",
            ),
        }
    }

    /// Joins the alternatives, and says where that allows more than was asked for.
    fn join(&mut self, candidates: Vec<Candidate>, path: &str, wanted: &mut Wanted) {
        let mut differ = 0;
        let mut varies = |several: bool| differ += usize::from(several);
        for one in candidates.iter().flat_map(|candidate| &candidate.accelerators) {
            if !wanted.accelerators.contains(one) {
                wanted.accelerators.push(one.clone());
            }
        }
        varies(different(&candidates, |c| &c.accelerators));
        varies(different(&candidates, |c| (c.provider, &c.region)));
        varies(different(&candidates, |c| c.spot));
        wanted.providers = named(candidates.iter().map(|c| c.provider.map(str::to_owned)));
        wanted.regions = named(candidates.iter().map(|c| c.region.clone()));
        wanted.cpu = least(candidates.iter().map(|c| &c.cpu));
        wanted.memory = least(candidates.iter().map(|c| &c.memory));
        wanted.disk = least(candidates.iter().map(|c| &c.disk));
        let prices = candidates.iter().map(|c| c.max_hourly.as_ref());
        wanted.max_hourly = prices.collect::<Option<Vec<_>>>().and_then(|prices| {
            prices.into_iter().max_by_key(|price| price.micro_dollars().ok()).cloned()
        });
        let owned = candidates.iter().filter(|c| c.provider == Some("nodes")).count();
        let spot = candidates.iter().filter(|c| c.spot && c.provider != Some("nodes")).count();
        wanted.capacity = match (owned, spot, candidates.len() - owned - spot) {
            (_, 0, 0) => "Owned",
            (0, _, 0) => "Spot",
            (0, 0, _) => "OnDemand",
            _ => "Auto",
        };
        let first =
            |c: &Candidate| (c.cpu.clone(), c.memory.clone(), c.disk.clone(), c.max_hourly.clone());
        if different(&candidates, first) {
            self.note(path, "the least processors, memory and disk of all alternatives are asked for, and the highest price is allowed");
        }
        if differ > 1 {
            self.note(path, "alternatives are joined: each accelerator may be had in each place and in each way that any of them names");
        }
        let unnamed = wanted.providers.is_empty()
            && candidates.iter().any(|c| c.provider.is_some())
            || wanted.regions.is_empty() && candidates.iter().any(|c| c.region.is_some());
        if unnamed && candidates.len() > 1 {
            self.note(path, "some alternatives name no provider or region, so any may be used");
        }
    }
}

/// Whether not all have the same.
fn different<'a, T: PartialEq>(
    candidates: &'a [Candidate],
    of: impl Fn(&'a Candidate) -> T,
) -> bool {
    candidates.windows(2).any(|pair| of(&pair[0]) != of(&pair[1]))
}

/// Each name once; none at all where one may be any.
fn named(names: impl Iterator<Item = Option<String>>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for name in names {
        match name {
            None => return Vec::new(),
            Some(name) if all.contains(&name) => {}
            Some(name) => all.push(name),
        }
    }
    all
}

/// The least; none where one asks for nothing.
fn least<'a>(quantities: impl Iterator<Item = &'a Option<Quantity>>) -> Option<Quantity> {
    let all = quantities.map(Option::as_ref).collect::<Option<Vec<_>>>()?;
    all.into_iter().min_by_key(|quantity| quantity.milli().ok()).cloned()
}

/// Whether Kubernetes takes it for a label's name or value.
fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || [b'-', b'_', b'.'].contains(&b);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(|b| inner(*b))
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}
