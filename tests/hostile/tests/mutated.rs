//! Every parser, fed its samples with some things changed. The same changes each time; more of
//! them with `PETAFLOP_MUTATIONS=100000`.

use petaflop_hostile::{PARSERS, Parser};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

/// Changes that `make test` tries on each parser.
const MUTATIONS: u32 = 400;

/// What tends to be forgotten.
const ODD: &[&[u8]] = &[
    b"",
    b"0",
    b"-1",
    b"1e999",
    b"-0.0",
    b"1e-320",
    b"0.000000000000000000000000000001",
    b"4294967296",
    b"9223372036854775807",
    b"18446744073709551615",
    b"18446744073709551616",
    b"NaN",
    b"null",
    b"true",
    b"\"\"",
    b"[]",
    b"{}",
    b"~",
    b"-9999-01-02T01:59:59Z",
    b"9999-12-30T22:00:00.999999999Z",
    b"\xff",
    b"\0",
    "\u{1f980}".as_bytes(),
    b"\r\n",
    b"\t",
    b": ",
    b"- ",
    b",",
    b"&a *a",
    b"/",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
];

/// One change; places are shares of the text.
#[derive(Clone, Debug)]
enum Change {
    /// The number from here on becomes another thing.
    Number(Index, Index),
    /// The quoted word from here on becomes another thing.
    Word(Index, Index),
    /// Something comes in between.
    Insert(Index, Index),
    /// Some bytes go.
    Remove(Index, usize),
    /// Some bytes come again, somewhere.
    Copy(Index, usize, Index),
    /// One byte is another.
    Byte(Index, u8),
    /// The text ends.
    Cut(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        4 => (at(), at()).prop_map(|(at, with)| Change::Number(at, with)),
        2 => (at(), at()).prop_map(|(at, with)| Change::Word(at, with)),
        2 => (at(), at()).prop_map(|(at, with)| Change::Insert(at, with)),
        2 => (at(), 1..80_usize).prop_map(|(at, length)| Change::Remove(at, length)),
        2 => (at(), 1..80_usize, at()).prop_map(|(from, length, to)| Change::Copy(from, length, to)),
        1 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        1 => at().prop_map(Change::Cut),
    ]
}

impl Change {
    fn apply(&self, text: &mut Vec<u8>) {
        let place = |at: &Index, length: usize| at.index(length + 1);
        let odd = |with: &Index| ODD[with.index(ODD.len())].iter().copied();
        // From the first such byte after a place to the first that is not.
        let run = |text: &[u8], at: &Index, begins: fn(u8) -> bool, goes_on: fn(u8) -> bool| {
            let from = place(at, text.len());
            let start = from + text[from..].iter().position(|b| begins(*b))?;
            let rest = &text[start + 1..];
            let length = rest.iter().position(|b| !goes_on(*b)).unwrap_or(rest.len());
            Some(start..start + 1 + length)
        };
        match self {
            Change::Number(at, with) => {
                let found =
                    run(text, at, |b| b.is_ascii_digit(), |b| b.is_ascii_digit() || b == b'.');
                if let Some(found) = found {
                    text.splice(found, odd(with));
                }
            }
            Change::Word(at, with) => {
                if let Some(found) = run(text, at, |b| b == b'"', |b| b != b'"') {
                    let end = (found.end + 1).min(text.len());
                    text.splice(found.start..end, odd(with));
                }
            }
            Change::Insert(at, with) => {
                let at = place(at, text.len());
                text.splice(at..at, odd(with));
            }
            Change::Remove(at, length) => {
                let at = place(at, text.len());
                let end = (at + length).min(text.len());
                text.drain(at..end);
            }
            Change::Copy(from, length, to) => {
                let (from, to) = (place(from, text.len()), place(to, text.len()));
                let piece = text[from..(from + length).min(text.len())].to_vec();
                text.splice(to..to, piece);
            }
            Change::Byte(at, byte) => {
                let at = place(at, text.len());
                if let Some(found) = text.get_mut(at) {
                    *found = *byte;
                }
            }
            Change::Cut(at) => text.truncate(place(at, text.len())),
        }
    }
}

/// Feeds it; what fails is made as small as it can be, and shown.
fn feed(name: &str) {
    let Parser { name, read, .. } = Parser::named(name).expect("a parser of this name");
    let samples = Parser::named(name).expect("the same").samples();
    assert!(!samples.is_empty(), "{name} has no samples");
    for sample in &samples {
        read(sample);
    }
    let cases = std::env::var("PETAFLOP_MUTATIONS").ok().map(|n| n.parse().expect("a number"));
    let config = Config {
        cases: cases.unwrap_or(MUTATIONS),
        failure_persistence: None,
        ..Config::default()
    };
    let mutated =
        (any::<Index>(), prop::collection::vec(change(), 1..5)).prop_map(|(sample, changes)| {
            let mut text = samples[sample.index(samples.len())].clone();
            changes.iter().for_each(|change| change.apply(&mut text));
            text
        });
    let rng = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    let outcome = TestRunner::new_with_rng(config, rng).run(&mutated, |text| {
        read(&text);
        Ok(())
    });
    if let Err(proptest::test_runner::TestError::Fail(why, text)) = &outcome {
        panic!("{name}: {why}\n{}", String::from_utf8_lossy(text));
    }
    outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
}

macro_rules! each {
    ($($name:ident)*) => {
        $(#[test] fn $name() { feed(stringify!($name)); })*
        #[test]
        fn all_are_fed() {
            let names: Vec<&str> = PARSERS.iter().map(|parser| parser.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

each!(agent catalogue config manifest price_table runpod scalars skypilot trace world);
