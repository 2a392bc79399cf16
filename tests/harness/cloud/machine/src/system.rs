//! `shutdown` and `systemctl`, as far as user-data needs them. What they do not know they refuse.

use std::io::{self, Write};

use crate::Result;
use crate::whole::{Request, ask};

/// Minutes where nobody says how many.
const DEFAULT_MINUTES: u64 = 1;

pub(crate) fn shutdown(words: &[&str]) -> Result<u8> {
    let mut when = None;
    for word in words {
        match *word {
            "-h" | "-P" | "--poweroff" => {}
            "-c" => return ask(&Request::Cancel).map(|_| 0),
            "now" => when = Some(0),
            word => match word.strip_prefix('+').map(str::parse::<u64>) {
                Some(Ok(minutes)) => when = Some(minutes),
                _ => return Err(format!("the box does not know {word:?}")),
            },
        }
    }
    match when.unwrap_or(DEFAULT_MINUTES) {
        0 => ask(&Request::PowerOff)?,
        minutes => ask(&Request::PowerOffIn(minutes.saturating_mul(60)))?,
    };
    Ok(0)
}

pub(crate) fn systemctl(words: &[&str]) -> Result<u8> {
    let quiet = |word: &&&str| ["-q", "--quiet", "--now", "--no-block"].contains(*word);
    let silent = words.iter().any(|word| ["-q", "--quiet"].contains(word));
    let words: Vec<&str> = words.iter().filter(|word| !quiet(word)).copied().collect();
    match words.as_slice() {
        ["poweroff"] => ask(&Request::PowerOff).map(|_| 0),
        ["is-active" | "is-enabled", "docker" | "docker.service"] => {
            say(silent, if words[0] == "is-active" { "active" } else { "enabled" });
            Ok(0)
        }
        ["start" | "enable" | "restart", "docker" | "docker.service"] => Ok(0),
        ["is-active", _] => {
            say(silent, "inactive");
            Ok(3)
        }
        ["disable", unit] => {
            let _ = writeln!(io::stderr(), "Failed to disable unit: {unit} does not exist.");
            Ok(1)
        }
        ["start" | "enable" | "restart", unit] => {
            let _ = writeln!(io::stderr(), "Failed to start {unit}: Unit {unit} not found.");
            Ok(5)
        }
        other => Err(format!("the box does not know {other:?}")),
    }
}

fn say(silent: bool, text: &str) {
    if !silent {
        let _ = writeln!(io::stdout(), "{text}");
    }
}
