//! Every target: the parser that has the binary's name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use petaflop_hostile::Parser;

fuzz_target!(|bytes: &[u8]| {
    let parser = Parser::named(env!("CARGO_BIN_NAME")).expect("a target is named after a parser");
    (parser.read)(bytes);
});
