//! What reads text that others wrote, each as a function of bytes that must come back, whatever
//! they are. `tests/mutated.rs` feeds each the samples with some things changed, in `make test`;
//! `fuzz/` lets libFuzzer look for more.

use std::path::Path;

use petaflop_agent_api::keys::{NoisePublic, OperatorRoot};
use petaflop_agent_api::lease::SignedLease;
use petaflop_agent_api::message::{self, Hello, Request, Response, Welcome};
use petaflop_agent_api::poll::PollBody;
use petaflop_agent_api::session::{Candidate, Incoming, Opened};
use petaflop_agent_api::token::EnrolmentToken;
use petaflop_arbiter::catalogue::Catalogue;
use petaflop_arbiter::decide::{decide, explain};
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::spot::law::{BASE, Shape};
use petaflop_arbiter::spot::trace::{Means, Trace};
use petaflop_arbiter::world::World;
use petaflop_crds::manifest::{self, skypilot};
use petaflop_crds::scalar::{Decimal, Money, Quantity, Span};
use petaflop_plan::shape::ModelShape;
use petaflop_providers::{runpod, snapshot};

/// Something that reads.
pub struct Parser {
    /// Its name: of a target of `fuzz/`, and of a folder of `samples/`.
    pub name: &'static str,
    /// Files and folders with what it should read, below the repository's root.
    pub samples: &'static [&'static str],
    /// Reads, and makes use of what was read.
    pub read: fn(&[u8]),
}

/// All of them.
pub const PARSERS: &[Parser] = &[
    Parser { name: "agent", samples: &["tests/hostile/samples/agent"], read: agent },
    Parser { name: "catalogue", samples: &["arbiter/data/gpus.csv"], read: catalogue },
    Parser { name: "config", samples: &["tests/hostile/samples/config"], read: config },
    Parser {
        name: "manifest",
        samples: &["examples/quickstart.yaml", "examples/container.yaml", "crds/tests/valid.yaml"],
        read: manifest,
    },
    Parser {
        name: "price_table",
        samples: &["arbiter/providers/data/price_points.csv"],
        read: price_table,
    },
    Parser { name: "runpod", samples: &["tests/hostile/samples/runpod"], read: runpod::read_any },
    Parser { name: "scalars", samples: &["tests/hostile/samples/scalars"], read: scalars },
    Parser { name: "skypilot", samples: &["crds/tests/skypilot"], read: skypilot },
    Parser { name: "trace", samples: &["tests/hostile/samples/trace"], read: trace },
    Parser { name: "world", samples: &["tests/hostile/samples/world"], read: world },
];

impl Parser {
    /// The one of this name.
    pub fn named(name: &str) -> Option<&'static Parser> {
        PARSERS.iter().find(|parser| parser.name == name)
    }

    /// What it should read, in the order of the files' names.
    ///
    /// # Panics
    /// Where a sample is missing.
    pub fn samples(&self) -> Vec<Vec<u8>> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut files = Vec::new();
        for sample in self.samples {
            let path = root.join(sample);
            match path.is_dir() {
                false => files.push(path),
                true => {
                    let entries = path.read_dir().expect("a folder of samples");
                    files.extend(entries.map(|entry| entry.expect("an entry").path()));
                }
            }
        }
        files.sort();
        let read = |path| std::fs::read(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        files.into_iter().map(read).collect()
    }
}

/// Of a recording, whatever spot and prices are made of it.
fn trace(bytes: &[u8]) {
    let Ok(trace) = Trace::parse(bytes) else { return };
    for tick in [60, BASE, 86_400] {
        let Ok(there) = trace.available(tick, Means::Positive) else { continue };
        let _ = Shape::fitted(&[there]);
        let _ = trace.prices(tick);
    }
}

/// Of a recorded world, decided and explained at its newest quote and long before and after.
fn world(bytes: &[u8]) {
    let Ok(world) = serde_json::from_slice::<World>(bytes) else { return };
    let newest = world.market.offers().map(|offer| offer.quoted_at).max();
    for now in [newest, Some(jiff::Timestamp::MIN), Some(jiff::Timestamp::MAX)] {
        let Some(now) = now else { continue };
        let plan = decide(&world, now);
        assert_eq!(plan.decisions.len(), world.workloads.len(), "each workload is decided");
        for workload in &world.workloads {
            let _ = explain(&world, now, &workload.id);
        }
    }
}

fn config(bytes: &[u8]) {
    let Ok(config) = serde_json::from_slice(bytes) else { return };
    let Ok(shape) = ModelShape::from_hf_config(&config) else { return };
    let again = ModelShape::from_hf_config(&shape.to_hf_config());
    assert_eq!(again.as_ref(), Ok(&shape), "what was read is written as it is read");
}

fn catalogue(bytes: &[u8]) {
    let Ok(table) = Catalogue::parse(&String::from_utf8_lossy(bytes)) else { return };
    for row in table.rows() {
        let _ = (row.nominal_bytes(), row.plannable_bytes(), row.compute_capability());
        assert!(row.answers_to(&row.key));
    }
}

fn price_table(bytes: &[u8]) {
    let _ = snapshot::parse(&String::from_utf8_lossy(bytes));
}

fn manifest(bytes: &[u8]) {
    let shown = manifest::parse(bytes, "job.yaml", Path::new("/")).map_err(|e| e.to_string());
    let judged = manifest::judge(bytes, "job.yaml");
    assert!(shown.is_err() || judged.is_ok(), "what is read is what a server takes");
}

fn skypilot(bytes: &[u8]) {
    match skypilot::convert(bytes, "task.yaml", skypilot::IMAGE) {
        Ok(conversion) => {
            manifest::parse(conversion.yaml().as_bytes(), "job.yaml", Path::new("/"))
                .unwrap_or_else(|errors| panic!("{errors}"));
        }
        Err(errors) => assert!(!errors.0.is_empty() && !errors.to_string().is_empty()),
    }
}

/// One scalar a line.
fn scalars(bytes: &[u8]) {
    for text in String::from_utf8_lossy(bytes).lines() {
        if let Ok(usd) = text.parse::<Usd>() {
            assert_eq!(usd.to_string().parse(), Ok(usd), "{text}");
        }
        if let Ok(price) = text.parse::<UsdPerHour>() {
            assert_eq!(price.to_string().parse(), Ok(price), "{text}");
        }
        if let Ok(number) = Decimal(text.to_owned()).number() {
            let again = Decimal::of(number).expect("finite, and 0 or more").number();
            assert_eq!(again.map(f64::to_bits), Ok(number.to_bits()), "{text}");
        }
        let _ = Money(text.to_owned()).micro_dollars();
        let _ = Quantity(text.to_owned()).units();
        let _ = Span(text.to_owned()).seconds();
    }
}

/// What an operator and an agent hear before and after they know each other.
fn agent(bytes: &[u8]) {
    let operator = OperatorRoot::from_bytes([7; 32]).noise();
    let stranger = OperatorRoot::from_bytes([8; 32]).noise();
    // Nothing is sealed by chance.
    assert!(Opened::read(&operator, bytes).is_err());
    assert!(Candidate::read(&operator, bytes).is_err());
    assert!(Incoming::read(&operator, &stranger.public(), bytes).is_err());
    if let Ok(poll) = PollBody::parse(bytes) {
        assert!(poll.open(&operator, &stranger.public()).is_err());
    }
    let _ = message::from_bytes::<Hello>(bytes);
    let _ = message::from_bytes::<Welcome>(bytes);
    let _ = message::from_bytes::<Request>(bytes);
    let _ = message::from_bytes::<Response>(bytes);
    let _ = serde_json::from_slice::<SignedLease>(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = (text.parse::<EnrolmentToken>(), text.parse::<NoisePublic>());
    }
}
