//! `docker` on a machine of the box: the command line alone; the containers are process 1's. What it
//! does not know it refuses, so that no script of ours believes in what is not there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use petaflop_box_machine::Bind;

use crate::containers::Run;
use crate::whole::{Request, ask};
use crate::{Result, of};

/// Seconds that `docker stop` gives.
const GRACE: u64 = 10;

pub(crate) fn run(words: &[&str]) -> Result<u8> {
    let Some((command, words)) = words.split_first() else {
        return Err("name a command".to_owned());
    };
    let mut words = Words { left: words.iter().copied().collect() };
    match *command {
        "info" | "version" => {
            words.options(|flag, _| unknown(command, flag))?;
            // Who asks wants to know whether there is a daemon.
            ask(&Request::List(false))?;
            say("Server Version: the cloud in a box\n");
            Ok(0)
        }
        "pull" => {
            words.options(|flag, _| match flag {
                "-q" | "--quiet" => Ok(()),
                _ => unknown(command, flag),
            })?;
            let image = words.one("an image")?;
            or_one(ask(&Request::Pull(image)))
        }
        "login" => login(words),
        "run" => start(words),
        "wait" => {
            words.options(|flag, _| unknown(command, flag))?;
            or_one(ask(&Request::Wait(words.one("a container")?)).inspect(|code| {
                say(&format!("{code}\n"));
            }))
        }
        "logs" => {
            let mut follow = false;
            words.options(|flag, _| match flag {
                "-f" | "--follow" => {
                    follow = true;
                    Ok(())
                }
                _ => unknown(command, flag),
            })?;
            show(&words.one("a container")?, follow).map(|_| 0)
        }
        "stop" => {
            let mut grace = GRACE;
            words.options(|flag, value| match flag {
                "-t" | "--time" | "--timeout" => {
                    grace = value()?.parse().map_err(of(flag))?;
                    Ok(())
                }
                _ => unknown(command, flag),
            })?;
            words.each(|name| ask(&Request::Stop(name, grace)))
        }
        "kill" => {
            words.options(|flag, value| match flag {
                "-s" | "--signal" if ["KILL", "SIGKILL", "9"].contains(&value()?.as_str()) => {
                    Ok(())
                }
                _ => unknown(command, flag),
            })?;
            words.each(|name| ask(&Request::Kill(name)))
        }
        "rm" => {
            let mut force = false;
            words.options(|flag, _| match flag {
                "-f" | "--force" => {
                    force = true;
                    Ok(())
                }
                _ => unknown(command, flag),
            })?;
            words.each(|name| ask(&Request::Remove(name, force)))
        }
        "ps" => {
            let mut all = false;
            words.options(|flag, _| match flag {
                "-q" | "--quiet" => Ok(()),
                "-a" | "--all" | "-aq" | "-qa" => {
                    all = true;
                    Ok(())
                }
                _ => unknown(command, flag),
            })?;
            let names = ask(&Request::List(all))?;
            say(&if names.is_empty() { names } else { names + "\n" });
            Ok(0)
        }
        _ => Err(format!("the box does not know {command:?}")),
    }
}

fn login(mut words: Words<'_>) -> Result<u8> {
    let (mut user, mut stdin) = (None, false);
    words.options(|flag, value| {
        match flag {
            "-u" | "--username" => user = Some(value()?),
            "--password-stdin" => stdin = true,
            _ => return unknown("login", flag),
        }
        Ok(())
    })?;
    let mut password = String::new();
    io::stdin().read_to_string(&mut password).map_err(of("password"))?;
    if user.is_none() || !stdin || password.trim().is_empty() {
        return Err("the box takes a user, and a password from standard input".to_owned());
    }
    say("Login Succeeded\n");
    Ok(0)
}

fn start(mut words: Words<'_>) -> Result<u8> {
    let mut run = Run::default();
    let (mut detached, mut network) = (false, String::new());
    words.options(|flag, value| {
        match flag {
            "-d" | "--detach" => detached = true,
            "--rm" => run.forgotten = true,
            "--name" => run.name = Some(value()?),
            "-e" | "--env" => variable(&mut run.environment, &value()?),
            "--env-file" => {
                let path = value()?;
                let text = fs::read_to_string(&path).map_err(of(path))?;
                let lines = text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
                lines.for_each(|line| variable(&mut run.environment, line));
            }
            "-v" | "--volume" => run.binds.push(volume(&value()?)?),
            "--entrypoint" => run.entrypoint = Some(vec![value()?]),
            "--network" | "--net" => network = value()?,
            "--restart" if value()? == "no" => {}
            // All is one file here.
            "--log-driver" if ["local", "json-file"].contains(&value()?.as_str()) => {}
            "--gpus" => {
                value()?;
                return Err(
                    "Error response from daemon: could not select device driver \"\" with \
                            capabilities: [[gpu]]."
                        .to_owned(),
                );
            }
            _ => return unknown("run", flag),
        }
        Ok(())
    })?;
    if network != "host" {
        return Err("the box has --network host only".to_owned());
    }
    run.image = words.next().ok_or("name an image")?;
    let command: Vec<String> = words.rest();
    run.command = Some(command).filter(|command| !command.is_empty());
    let name = ask(&Request::Run(Box::new(run)))?;
    if detached {
        say(&format!("{name}\n"));
        return Ok(0);
    }
    show(&name, true)
}

/// What a container wrote, and if wished what it writes until it ends; then its code.
fn show(name: &str, follow: bool) -> Result<u8> {
    let path = ask(&Request::Log(name.to_owned()))?;
    let mut log = File::open(&path).map_err(of(&path))?;
    let mut copy = move || io::copy(&mut log, &mut io::stdout()).map_err(of("log"));
    if !follow {
        return copy().map(|_| 0);
    }
    let waiting = {
        let name = name.to_owned();
        thread::spawn(move || ask(&Request::Wait(name)))
    };
    while !waiting.is_finished() {
        copy()?;
        thread::sleep(Duration::from_millis(50));
    }
    copy()?;
    let code = waiting.join().map_err(|_| "waiting failed")??;
    Ok(code.parse::<i32>().map_or(125, |code| code.clamp(0, 255) as u8))
}

fn variable(environment: &mut BTreeMap<String, String>, text: &str) {
    match text.split_once('=') {
        Some((name, value)) => drop(environment.insert(name.to_owned(), value.to_owned())),
        // Its own value goes on.
        None => drop(std::env::var(text).map(|value| environment.insert(text.to_owned(), value))),
    }
}

fn volume(text: &str) -> Result<Bind> {
    let parts: Vec<&str> = text.split(':').collect();
    let (from, to, read_only) = match parts.as_slice() {
        [from, to] | [from, to, "rw"] => (from, to, false),
        [from, to, "ro"] => (from, to, true),
        _ => return Err(format!("the box does not know the volume {text:?}")),
    };
    if !from.starts_with('/') || !to.starts_with('/') {
        return Err(format!("the box has no named volumes: {text:?}"));
    }
    Ok(Bind { from: PathBuf::from(from), to: PathBuf::from(to), read_only })
}

/// A command line: options first, as docker's own.
struct Words<'a> {
    left: std::collections::VecDeque<&'a str>,
}

impl Words<'_> {
    /// Takes what begins with a dash; the value is what follows it, or stands behind `=`.
    fn options(
        &mut self,
        mut take: impl FnMut(&str, &mut dyn FnMut() -> Result<String>) -> Result<()>,
    ) -> Result<()> {
        while let Some(word) = self.left.pop_front_if(|word| word.starts_with('-')) {
            let (flag, given) = match word.split_once('=') {
                Some((flag, value)) if flag.starts_with("--") => (flag, Some(value)),
                _ => (word, None),
            };
            let left = &mut self.left;
            let mut value = || {
                let value = given.or_else(|| left.pop_front());
                value.map(str::to_owned).ok_or_else(|| format!("flag needs an argument: {flag}"))
            };
            take(flag, &mut value)?;
        }
        Ok(())
    }

    fn next(&mut self) -> Option<String> {
        self.left.pop_front().map(str::to_owned)
    }

    fn rest(&mut self) -> Vec<String> {
        self.left.drain(..).map(str::to_owned).collect()
    }

    fn one(&mut self, what: &str) -> Result<String> {
        match (self.next(), self.left.is_empty()) {
            (Some(word), true) => Ok(word),
            _ => Err(format!("name {what}, and one only")),
        }
    }

    /// As docker does: each name is said once it is done, and one that fails stops no other.
    fn each(&mut self, mut work: impl FnMut(String) -> Result<String>) -> Result<u8> {
        let mut code = 0;
        for name in self.rest() {
            match work(name.clone()) {
                Ok(_) => say(&format!("{name}\n")),
                Err(why) => {
                    let _ = writeln!(io::stderr(), "{why}");
                    code = 1;
                }
            }
        }
        Ok(code)
    }
}

/// What the daemon refuses is 1, but for `docker run`.
fn or_one(done: Result<String>) -> Result<u8> {
    match done {
        Ok(_) => Ok(0),
        Err(why) => {
            let _ = writeln!(io::stderr(), "{why}");
            Ok(1)
        }
    }
}

fn unknown(command: &str, flag: &str) -> Result<()> {
    Err(format!("the box does not know {command} {flag}"))
}

fn say(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}
