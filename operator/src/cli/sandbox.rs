//! `petaflop sandbox`: a command among clouds that cost nothing; and `petaflop run --provider
//! sandbox`, which is that command there.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::{Code, Failure, Outcome, say, show, waiting};
use crate::embedded::home::Home;
use crate::sandbox::{Clouds, Market, Receipt};

/// From the start of a machine to what happens to it, in seconds: long enough for a checkpoint of
/// the examples, so that one sees what is lost, and what is not.
const AFTER: u32 = 45;

/// Between two looks at the market.
const LOOK: Duration = Duration::from_millis(500);

/// Nothing has run for so long: a service goes on here, and no more is billed in the clouds.
const OVER: SignedDuration = SignedDuration::from_secs(20);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Nothing happens by itself: no machine is taken away, no host dies
    #[arg(long)]
    calm: bool,
    /// From the start of a machine to what happens to it, in seconds
    #[arg(long, value_name = "N", default_value_t = AFTER)]
    after: u32,
    /// Write what was billed there to this file, as JSON
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
    /// What to run there, such as `petaflop run -f job.yaml` [default: your shell]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(crate) fn run(home: &Home, args: Args) -> Outcome {
    let mut words = args.command.into_iter();
    let shell = || std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    let program = words.next().unwrap_or_else(shell);
    let market = (!args.calm).then(|| Market::new(args.after));
    among(home, program, words.collect(), market, args.receipt)
}

/// The command line of this program once more, in a sandbox.
pub(super) fn again(home: &Home) -> Outcome {
    among(
        home,
        std::env::current_exe()?.into(),
        inside(std::env::args_os().skip(1)),
        Some(Market::new(AFTER)),
        None,
    )
}

/// The same words without those that led here: inside, the environment says both.
fn inside(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words = words;
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        if text == "--provider" || text == "--home" {
            words.next();
        } else if !text.starts_with("--provider=") && !text.starts_with("--home=") {
            kept.push(word);
        }
    }
    kept
}

fn among(
    home: &Home,
    program: OsString,
    words: Vec<OsString>,
    market: Option<Market>,
    file: Option<PathBuf>,
) -> Outcome {
    waiting()?.block_on(async {
        let folder = home.root().join("sandbox");
        let clouds = Clouds::start(&folder).await.map_err(Failure::failed)?;
        say(format_args!(
            "sandbox: clouds on this machine; nothing here is paid, and what it leaves is in {}",
            folder.display()
        ));
        let mut command = Command::new(&program);
        command.args(words).envs(clouds.environment());
        let mut child = command
            .spawn()
            .map_err(|error| Failure::bad_input(format!("{}: {error}", program.display())))?;
        let status = watch(&clouds, &mut child, market).await?;
        let receipt = Receipt::of(&clouds);
        say(shown(&receipt));
        if let Some(file) = file {
            std::fs::write(file, serde_json::to_vec_pretty(&receipt)?)?;
        }
        let consoles = clouds.keep_consoles().map_err(Failure::failed)?;
        say(format_args!("what each machine wrote: {}", consoles.display()));
        ended(status)
    })
}

/// Until the command ends, the market goes on. Signals are the command's.
async fn watch(
    clouds: &Clouds,
    child: &mut Child,
    mut market: Option<Market>,
) -> Result<ExitStatus, Failure> {
    // Ctrl-C reaches it too: it has the same terminal.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut told = 0;
    loop {
        tokio::select! {
            status = child.wait() => return Ok(status?),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {
                let pid = child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32));
                if let Some(pid) = pid {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                }
            }
            () = tokio::time::sleep(LOOK) => {
                let event = market.as_mut().and_then(|market| market.turn(clouds, Timestamp::now()));
                if let Some(event) = event {
                    say(format_args!("sandbox: {event}"));
                }
                let receipt = Receipt::of(clouds);
                if receipt.machines.len() > told && receipt.is_settled(OVER, Timestamp::now()) {
                    told = receipt.machines.len();
                    say(shown(&receipt));
                }
            }
        }
    }
}

fn shown(receipt: &Receipt) -> String {
    let headings =
        ["PROVIDER", "MACHINE", "KIND", "WHERE", "", "TIME", "BILLED $", "ON DEMAND $", "END"];
    let mut table = show::table(&headings, &[5, 6, 7]);
    for machine in &receipt.machines {
        let until = machine.until.unwrap_or_else(Timestamp::now);
        table.add_row([
            machine.provider.clone(),
            machine.machine.clone(),
            machine.kind.clone(),
            machine.place.clone(),
            if machine.spot { "spot" } else { "on demand" }.to_owned(),
            show::age(machine.since, until),
            machine.billed_usd.to_string(),
            machine.on_demand_usd.to_string(),
            if machine.bills { "STILL BILLS".to_owned() } else { machine.end.clone() },
        ]);
    }
    let saved = receipt.on_demand_usd.saturating_sub(receipt.billed_usd);
    format!(
        "\nsandbox: what the clouds billed\n{}\n{} $ for {} machines; {} $ where nobody may take them away: {saved} $ saved",
        show::lines(&table),
        receipt.billed_usd,
        receipt.machines.len(),
        receipt.on_demand_usd,
    )
}

/// The command has said itself what went wrong.
fn ended(status: ExitStatus) -> Outcome {
    let known = [Code::Done, Code::Failed, Code::NoOffer, Code::Stopped, Code::Interrupted];
    let code = known.into_iter().find(|code| status.code() == Some(*code as i32));
    code.ok_or_else(|| Failure::failed(format!("in the sandbox: {status}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inside_of_it_the_same_words_mean_the_sandbox() {
        let words = ["--home", "/x", "run", "--provider=sandbox", "-f", "job.yaml", "--json"];
        let kept = inside(words.into_iter().map(OsString::from));
        assert_eq!(kept, ["run", "-f", "job.yaml", "--json"]);
        let words = ["run", "--provider", "sandbox", "-f", "-"];
        assert_eq!(inside(words.into_iter().map(OsString::from)), ["run", "-f", "-"]);
    }
}
