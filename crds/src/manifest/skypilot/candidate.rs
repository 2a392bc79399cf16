//! One alternative of a task's resources: the accelerators, processors, memory and disk, the place,
//! and the price.

use petaflop_arbiter::catalogue::Catalogue;

use super::fields::{ACCELERATORS, Fate, fate};
use super::{Node, Task, Value, is_null, join};
use crate::scalar::{Money, Quantity};

/// So many accelerators of any of these models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Accelerator {
    pub(super) models: Vec<String>,
    pub(super) count: u32,
}

/// One alternative, as far as alternatives can differ.
#[derive(Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) accelerators: Vec<Accelerator>,
    pub(super) cpu: Option<Quantity>,
    pub(super) memory: Option<Quantity>,
    pub(super) disk: Option<Quantity>,
    pub(super) provider: Option<&'static str>,
    pub(super) region: Option<String>,
    pub(super) spot: bool,
    pub(super) max_hourly: Option<Money>,
}

/// The fields of one alternative: its own, before those that stand outside.
pub(super) struct Layers<'a>(pub(super) Vec<(&'a Node, String)>);

impl<'a> Layers<'a> {
    /// The field, and its path, unless it is empty.
    pub(super) fn get(&self, key: &str) -> Option<(&'a Node, String)> {
        let found = self.0.iter().find_map(|(node, path)| Some((&node.get(key)?.node, path)));
        found.filter(|(node, _)| !is_null(node)).map(|(node, path)| (node, join(path, key)))
    }
}

impl<'a> Task<'a> {
    /// Reads one alternative.
    pub(super) fn candidate(&mut self, layers: &Layers<'a>) -> Candidate {
        let (provider, region) = self.place(layers);
        let quantity = |task: &mut Self, key: &str| {
            let (node, path) = layers.get(key)?;
            task.quantity(node, &path, key != "cpus")
        };
        Candidate {
            accelerators: layers
                .get("accelerators")
                .map(|(node, path)| self.accelerators(node, &path))
                .unwrap_or_default(),
            cpu: quantity(self, "cpus"),
            memory: quantity(self, "memory"),
            disk: quantity(self, "disk_size"),
            provider,
            region,
            spot: match layers.get("use_spot") {
                None => false,
                Some((Node { value: Value::Bool(spot), .. }, _)) => *spot,
                Some((node, path)) => {
                    self.wrong(
                        &path,
                        format!("expected true or false, found {}", node.value),
                        None,
                    );
                    false
                }
            },
            max_hourly: layers.get("max_hourly_cost").and_then(|(node, path)| {
                let money = Money(self.text(node, &path)?);
                money
                    .micro_dollars()
                    .map_err(|error| self.wrong(&path, error.to_string(), None))
                    .ok()?;
                Some(money)
            }),
        }
    }

    /// Provider and region.
    fn place(&mut self, layers: &Layers<'a>) -> (Option<&'static str>, Option<String>) {
        let text = |task: &mut Self, key: &str| {
            let (node, path) = layers.get(key)?;
            Some((task.text(node, &path)?, path))
        };
        let infra = text(self, "infra");
        let (cloud, region, zone) = match &infra {
            Some((infra, path)) => {
                let mut parts =
                    infra.splitn(3, '/').map(|part| Some((part.to_owned(), path.clone())));
                let mut part =
                    || parts.next().flatten().filter(|(part, _)| part != "*" && !part.is_empty());
                (part(), part(), part())
            }
            None => (text(self, "cloud"), text(self, "region"), None),
        };
        let provider = match &cloud {
            None => None,
            Some((name, path)) => match name.to_ascii_lowercase().as_str() {
                "aws" => Some("aws"),
                "runpod" => Some("runpod"),
                "k8s" | "kubernetes" | "ssh" => Some("nodes"),
                _ => {
                    self.note(
                        path,
                        format!("petaflop does not rent at {name}: any provider may be used"),
                    );
                    return (None, None);
                }
            },
        };
        if let (Some("nodes"), Some((context, path))) = (provider, &region) {
            self.note(
                path,
                format!("{context} is left out: the nodes are those of the cluster that the manifest is applied to"),
            );
            return (provider, None);
        }
        if let (Some((zone, path)), Some(Fate::Left(instead))) = (zone, fate("resources.zone")) {
            self.note(&path, format!("the zone {zone} is left out: {instead}"));
        }
        match (provider, region) {
            (Some("runpod"), Some((region, path))) => {
                self.note(&path, format!("{region} is left out: data centres stand in the ComputeProvider (spec.runpod.dataCenters)"));
                (provider, None)
            }
            (_, region) => (provider, region.map(|(region, _)| region)),
        }
    }

    /// A number with `+` behind it or not; with `sized` of gigabytes, or with a unit of its own.
    fn quantity(&mut self, node: &Node, path: &str, sized: bool) -> Option<Quantity> {
        let text = self.text(node, path)?;
        let lower = text.trim().trim_end_matches('+').trim_end().to_ascii_lowercase();
        let end = lower.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(lower.len());
        let (number, unit) = lower.split_at(end);
        // Powers of two, whatever they are called.
        let unit = match (sized, unit) {
            (false, "") => Some(""),
            (true, "" | "g" | "gb") => Some("Gi"),
            (true, "k" | "kb") => Some("Ki"),
            (true, "m" | "mb") => Some("Mi"),
            (true, "t" | "tb") => Some("Ti"),
            (true, "p" | "pb") => Some("Pi"),
            _ => None,
        };
        let quantity = unit.map(|unit| Quantity(format!("{}{unit}", number.trim())));
        let quantity = quantity.filter(|quantity| quantity.milli().is_ok());
        if quantity.is_none() {
            let example = if sized { "64, 64+ or 64GB" } else { "4 or 4+" };
            self.wrong(path, format!("expected a number such as {example}, found {text:?}"), None);
        }
        quantity
    }

    /// `H100`, `H100:8`, `{H100: 8}`, or several in a list (in order) or a map (in none).
    fn accelerators(&mut self, node: &'a Node, path: &str) -> Vec<Accelerator> {
        let mut asked = Vec::new();
        match &node.value {
            Value::Text(text) => asked.push((text.clone(), None)),
            Value::List(items) => {
                self.note(path, "the order is left out: what is cheapest to finish on comes first");
                asked.extend(items.iter().filter_map(|item| Some((self.text(item, path)?, None))));
            }
            Value::Map(entries) => {
                asked.extend(entries.iter().map(|entry| (entry.key.clone(), Some(&entry.node))))
            }
            other => self.wrong(path, format!("expected such as H100:8, found {other}"), None),
        }
        let (some, wrong) = (!asked.is_empty(), self.findings.len());
        let known: Vec<Accelerator> =
            asked.iter().filter_map(|(name, count)| self.accelerator(name, *count, path)).collect();
        if some && known.is_empty() && self.findings.len() == wrong {
            // Without one the job would go to a machine that has none.
            let help = "`petaflop offers` shows what there is";
            self.wrong(path, "petaflop knows no accelerator of this name", Some(help));
        }
        known
    }

    fn accelerator(&mut self, text: &str, count: Option<&Node>, path: &str) -> Option<Accelerator> {
        let (name, behind) = match text.split_once(':') {
            Some((name, count)) => (name.trim(), Some(count.trim().to_owned())),
            None => (text.trim(), None),
        };
        let given = match count.filter(|node| !is_null(node)) {
            Some(node) => Some(self.text(node, path)?),
            None => behind,
        };
        let count = match given.as_deref().unwrap_or("1").parse::<f64>() {
            Ok(count) if (1.0..=64.0).contains(&count) && count.fract() == 0.0 => count as u32,
            Ok(count) if count > 0.0 && count < 1.0 => {
                self.note(path, format!("{count} of one {name} is a whole one now"));
                1
            }
            _ => {
                self.wrong(
                    path,
                    format!(
                        "expected a whole number of {name}, 1 to 64, found {}",
                        given.unwrap_or_default()
                    ),
                    None,
                );
                return None;
            }
        };
        let same = |known: &&(&str, &[&str])| known.0.eq_ignore_ascii_case(name);
        let models: Vec<String> = match ACCELERATORS.iter().find(same) {
            Some((_, models)) => models.iter().map(|model| (*model).to_owned()).collect(),
            None => vec![name.to_owned()],
        };
        let rows = Catalogue::embedded().rows();
        if models.iter().any(|model| !rows.iter().any(|row| row.answers_to(model))) {
            self.note(path, format!("petaflop knows no {name}: it is left out"));
            return None;
        }
        Some(Accelerator { models, count })
    }
}
