//! The lines of shell with which an instance starts: `user_data.sh`, filled in. Pure.
//!
//! Everything is in there but the one-time token, which is put in its place when the request is
//! sent.

use std::collections::BTreeMap;

use super::config::AwsConfig;
use crate::machine::{AGENT, AgentDownload, EnrolmentToken, WORK_FOLDER, env};

const SCRIPT: &str = include_str!("user_data.sh");
/// Where the token comes to stand.
const TOKEN: &str = "@TOKEN@";
/// AWS's limit, in bytes.
const MOST: usize = 16 << 10;
/// Bytes that the token may have.
const TOKEN_ROOM: usize = 256;
/// Folder of the host's in which the agent writes until when its lease reaches.
const LEASE_FOLDER: &str = "/petaflop/lease";
/// The agent's variable for the file in it.
pub(super) const LEASE_FILE: &str = "PETAFLOP_LEASE_FILE";
/// The agent's variable for the address of the metadata service, which tells of interruptions.
pub(super) const METADATA: &str = "PETAFLOP_METADATA";
/// The metadata service's address, on every instance.
const METADATA_ADDRESS: &str = "http://169.254.169.254";
/// Seconds that the agent has for its last words, beside the work's own grace.
const LAST_WORDS: u64 = 120;
/// No lease is longer, in seconds.
const LONGEST_LEASE: u64 = 24 * 3600;

/// What the host is to run.
#[derive(Clone, Debug)]
pub(super) struct Host<'a> {
    pub(super) agent: &'a AgentDownload,
    pub(super) image: &'a str,
    pub(super) accelerated: bool,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) grace_seconds: u64,
}

/// The script, without the token.
///
/// # Errors
/// What cannot be said in it, in words.
pub(super) fn render(config: &AwsConfig, host: Host<'_>) -> Result<String, String> {
    let Host { agent, image, accelerated, mut environment, grace_seconds } = host;
    agent.check()?;
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '\'' | '"' | '\\' | '$' | '`' | '@');
    // A digest has the one @ that a reference may have.
    if image.is_empty() || image.starts_with('-') || !image.replacen('@', "", 1).chars().all(plain)
    {
        return Err(format!("{image:?} is no reference of an image"));
    }
    environment.insert(LEASE_FILE.to_owned(), format!("{LEASE_FOLDER}/deadline"));
    environment.insert(METADATA.to_owned(), METADATA_ADDRESS.to_owned());
    let mut lines = Vec::new();
    for (name, value) in &environment {
        // One line each, and none that could end the list.
        if value.chars().any(char::is_control) || value.contains(TOKEN) {
            return Err(format!("the variable {name} has characters that cannot be handed over"));
        }
        lines.push(format!("{name}={value}"));
    }
    lines.push(format!("{}={TOKEN}", env::TOKEN));
    let fill = [
        ("@ALLOWANCE@", config.start_allowance.as_secs().to_string()),
        ("@GRACE@", grace_seconds.saturating_add(LAST_WORDS).to_string()),
        ("@LONGEST@", LONGEST_LEASE.to_string()),
        ("@URL@", agent.url.clone()),
        ("@SHA256@", agent.sha256.to_ascii_lowercase()),
        ("@GPUS@", if accelerated { " --gpus all --ipc host" } else { "" }.to_owned()),
        ("@AGENT@", AGENT.to_owned()),
        ("@LEASE@", LEASE_FOLDER.to_owned()),
        ("@WORK@", WORK_FOLDER.to_owned()),
        ("@IMAGE@", image.to_owned()),
        // Last: nothing in it is a place to fill.
        ("@ENVIRONMENT@", lines.join("\n")),
    ];
    let script =
        fill.iter().fold(SCRIPT.to_owned(), |text, (place, value)| text.replace(place, value));
    if script.len() + TOKEN_ROOM > MOST {
        return Err(format!("the user-data has {} bytes; AWS takes {MOST}", script.len()));
    }
    Ok(script)
}

/// The script with the one secret.
///
/// # Errors
/// When the token is none, without saying it.
pub(super) fn with_token(script: &str, token: &EnrolmentToken) -> Result<String, String> {
    let token = token.expose();
    let plain = |c: char| c.is_ascii_alphanumeric() || "+/=_-.".contains(c);
    if token.len() > TOKEN_ROOM || !token.chars().all(plain) {
        return Err("the enrolment token has characters that no token has".to_owned());
    }
    Ok(script.replacen(TOKEN, token, 1))
}

#[cfg(test)]
mod tests {
    use super::super::offers::tests::config;
    use super::*;

    fn host(agent: &AgentDownload) -> Host<'_> {
        let environment = BTreeMap::from([(env::PORT.to_owned(), "7443".to_owned())]);
        let image = "ghcr.io/example/job@sha256:00ff";
        Host { agent, image, accelerated: true, environment, grace_seconds: 30 }
    }

    #[test]
    fn the_host_timer_is_armed_before_anything_is_fetched() {
        let config = config();
        let agent = config.agent.clone().expect("an agent");
        let script = render(&config, host(&agent)).expect("a script");
        let place = |text: &str| script.find(text).unwrap_or_else(|| panic!("no {text:?}"));
        assert!(script.starts_with("#!/bin/sh\n"));
        assert!(place("deadline=$(") < place("systemctl"));
        assert!(place("over \"nobody renewed the lease\"") < place("curl"));
        assert!(place("sha256sum") < place("docker pull"));
        assert!(script.contains("allowance=1800 grace=150 longest=86400"), "{script}");
        assert!(script.contains("--gpus all"));
        assert!(script.contains("\nPETAFLOP_TOKEN=@TOKEN@\nPETAFLOP_ENVIRONMENT\n"));
        let places: Vec<&str> = script.split('@').collect();
        // The token's two, and one in each place of the digest.
        assert_eq!(places.len(), 1 + 2 + 2, "{script}");
    }

    #[test]
    fn the_token_is_put_in_last_and_in_one_place() {
        let config = config();
        let agent = config.agent.clone().expect("an agent");
        let script = render(&config, host(&agent)).expect("a script");
        let token = EnrolmentToken::new("canary+/=");
        let whole = with_token(&script, &token).expect("a token");
        assert_eq!(whole.matches("canary").count(), 1);
        assert!(whole.contains("PETAFLOP_TOKEN=canary+/=\n"));
        let error = with_token(&script, &EnrolmentToken::new("canary\n")).expect_err("no token");
        assert!(!error.contains("canary"), "{error}");
    }

    #[test]
    fn what_could_break_out_of_the_script_is_refused() {
        let config = config();
        let agent = config.agent.clone().expect("an agent");
        let with = |change: &dyn Fn(&mut Host<'_>)| {
            let mut host = host(&agent);
            change(&mut host);
            render(&config, host)
        };
        assert!(with(&|_| ()).is_ok());
        for image in ["", "a'b", "a b", "$(x)", "a\nb", "-v", "a@b@c", "@TOKEN@"] {
            assert!(with(&|host| host.image = image).is_err(), "{image}");
        }
        for value in ["a\nPETAFLOP_ENVIRONMENT\nreboot", "@TOKEN@", "\u{0}"] {
            let change = |host: &mut Host<'_>| {
                host.environment.insert("X".into(), value.to_owned());
            };
            assert!(with(&change).is_err(), "{value:?}");
        }
        let long = "x".repeat(MOST);
        let long = |host: &mut Host<'_>| {
            host.environment.insert("X".into(), long.clone());
        };
        assert!(with(&long).is_err_and(|error| error.contains("16384")));
    }
}
