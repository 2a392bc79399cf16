//! Following a job: a progress bar on a terminal, plain lines elsewhere. The first
//! Ctrl-C or SIGTERM asks the job to stop after a checkpoint, the second leaves.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use super::show::{grouped, span};
use super::{Failure, say};
use crate::embedded::home::Home;
use crate::embedded::job::{Folder, Intent, Phase, Status};
use crate::embedded::operate;
use crate::status::without_numbers;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// Between two plain lines.
const LINE: Duration = Duration::from_secs(5);

/// Operators that may die under us before we give up.
const MOST_DEATHS: u32 = 5;

/// How following ended.
#[derive(Debug)]
pub(crate) enum Followed {
    /// The wanted state is reached, or nothing more happens.
    Ended(Status),
    /// A second signal: whatever runs goes on stopping by itself.
    Left,
}

/// Follows a job or service until `until` says so or it is over.
pub(crate) async fn follow(
    home: &Home,
    folder: &Folder,
    until: impl Fn(&Status) -> bool,
) -> Result<Followed, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut view = View::new();
    let mut asked = false;
    let (mut deaths, mut missing_since) = (0, None::<Instant>);
    loop {
        let operated = folder.is_operated();
        let status = folder.status()?;
        view.show(&status);
        if until(&status) || (status.phase.is_over() && !operated) {
            view.close(&status);
            return Ok(Followed::Ended(status));
        }
        if operated {
            missing_since = None;
        } else if missing_since.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(2)
        {
            // Whoever worked for it died; everything it knew is in files.
            deaths += 1;
            missing_since = None;
            if deaths > MOST_DEATHS {
                let log = folder.root().join("operator.log");
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let last =
                    text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no message");
                return Err(Failure::failed(format!(
                    "the operator of {} keeps ending: {last} ({})",
                    folder.reference(),
                    log.display()
                )));
            }
            operate::start(home, folder)?;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => continue,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if asked {
            return Ok(Followed::Left);
        }
        asked = true;
        view.note("stopping after a checkpoint; once more leaves at once");
        folder.write_intent(Intent { suspend: true })?;
    }
}

/// What is drawn.
struct View {
    bar: Option<ProgressBar>,
    shown: (Phase, u64, String),
    next: Instant,
}

impl View {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8));
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style);
            bar
        });
        Self { bar, shown: (Phase::Pending, 0, String::new()), next: Instant::now() }
    }

    fn show(&mut self, status: &Status) {
        if let Some(bar) = &self.bar {
            bar.set_length(status.steps);
            bar.set_position(status.step);
            bar.set_message(match status.steps {
                0 => state(status),
                _ => facts(status),
            });
            return;
        }
        let (phase, step, message) = &self.shown;
        let news =
            *phase != status.phase || without_numbers(message) != without_numbers(&status.message);
        let advanced = *step != status.step && Instant::now() >= self.next;
        if !news && !advanced {
            return;
        }
        match status.phase {
            Phase::Running if status.steps > 0 => {
                say(format_args!("step {}/{}  {}", status.step, status.steps, facts(status)));
            }
            _ => say(state(status)),
        }
        self.shown = (status.phase, status.step, status.message.clone());
        self.next = Instant::now() + LINE;
    }

    fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    fn close(&self, status: &Status) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        } else if status.steps > 0 && self.shown.1 != status.step {
            say(format_args!("step {}/{}  {}", status.step, status.steps, facts(status)));
        }
    }
}

/// Phase, reason and message.
fn state(status: &Status) -> String {
    let reason = status.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    let message = match status.message.as_str() {
        "" => String::new(),
        text => format!(": {text}"),
    };
    format!("{}{reason}{message}", status.phase)
}

/// Loss, tokens/s, $/h, ETA.
pub(crate) fn facts(status: &Status) -> String {
    let mut facts = Vec::new();
    if let Some(loss) = status.loss {
        facts.push(format!("loss {loss:.3}"));
    }
    if let Some(rate) = status.tokens_per_second {
        facts.push(format!("{} tokens/s", grouped(rate.max(0.0) as u64)));
    }
    if let Some(place) = &status.place {
        facts.push(format!("{} $/h", place.price));
    }
    if let Some(rate) = status.tokens_per_second.filter(|rate| *rate > 0.0) {
        let left = status.steps.saturating_sub(status.step) * status.tokens_per_step;
        facts.push(format!("ETA {}", span((left as f64 / rate * 1000.0) as i64)));
    }
    facts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_job_shows_loss_speed_and_time_left() {
        let status = Status {
            step: 10,
            steps: 20,
            tokens_per_step: 1000,
            loss: Some(3.25),
            tokens_per_second: Some(2000.0),
            ..Status::default()
        };
        assert_eq!(facts(&status), "loss 3.250  2,000 tokens/s  ETA 5s");
    }
}
