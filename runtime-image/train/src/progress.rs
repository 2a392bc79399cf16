//! Telling others how the job goes: lines of JSON for the program that started
//! it, lines of text on stderr for people.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use petaflop_store::{
    StoreError,
    report::{Progress, ProgressWriter},
};

use crate::error::Error;

/// Two reports of a step are at least this far apart.
const EVERY: Duration = Duration::from_millis(500);

/// Where the job reports to.
#[derive(Debug)]
pub struct Reporter {
    file: Option<ProgressWriter>,
    /// Print lines for people on stderr.
    people: bool,
    steps: u64,
    rate: Rate,
}

/// Tokens a second between two reports.
#[derive(Debug)]
struct Rate {
    since: Instant,
    tokens: u64,
}

impl Reporter {
    /// Appends to `file` where one is given; `people`: also prints to stderr.
    ///
    /// # Errors
    /// The file cannot be opened for appending.
    pub fn new(file: Option<&Path>, people: bool) -> Result<Self, Error> {
        Ok(Self {
            file: file.map(ProgressWriter::append).transpose().map_err(in_file)?,
            people,
            steps: 0,
            rate: Rate { since: Instant::now(), tokens: 0 },
        })
    }

    /// Reports; the line is whole and in the file when this returns.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn report(&mut self, progress: &Progress) -> Result<(), Error> {
        if let Progress::Started { steps, .. } = progress {
            self.steps = *steps;
            self.rate = Rate { since: Instant::now(), tokens: 0 };
        }
        if let Some(file) = &mut self.file {
            file.write(progress).map_err(in_file)?;
        }
        if self.people {
            self.print(progress);
        }
        Ok(())
    }

    /// Reports a step, unless the last report of one is too young. The last step is always reported.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn step(
        &mut self,
        step: u64,
        loss: f64,
        learning_rate: f64,
        tokens: u64,
    ) -> Result<(), Error> {
        self.rate.tokens += tokens;
        let passed = self.rate.since.elapsed();
        if passed < EVERY && step != self.steps {
            return Ok(());
        }
        let tokens_per_second = self.rate.tokens as f64 / passed.as_secs_f64().max(1e-9);
        self.rate = Rate { since: Instant::now(), tokens: 0 };
        self.report(&Progress::Step { step, loss, learning_rate, tokens_per_second })
    }

    /// Leaves the time of something else than training out of the rate.
    pub fn leave_out(&mut self, time: Duration) {
        self.rate.since += time;
    }

    /// A line for people alone.
    pub fn note(&self, text: std::fmt::Arguments<'_>) {
        if self.people {
            eprintln!("{text}");
        }
    }

    fn print(&self, progress: &Progress) {
        match progress {
            Progress::Started {
                key,
                steps,
                from_step,
                tokens_per_step,
                backend,
                planned_bytes,
                arena_bytes: _,
            } => {
                let from = if *from_step == 0 {
                    String::new()
                } else {
                    format!(", going on after step {from_step}")
                };
                eprintln!(
                    "job {key:.12}: {steps} steps of {tokens_per_step} tokens on {backend}, arena {:.1} MiB as planned{from}",
                    *planned_bytes as f64 / f64::from(1 << 20)
                );
            }
            Progress::Step { step, loss, learning_rate, tokens_per_second } => eprintln!(
                "step {step}/{}  loss {loss:.4}  learning rate {learning_rate:.2e}  {tokens_per_second:.0} tokens/s",
                self.steps
            ),
            Progress::Validation { step, loss, bits_per_byte } => {
                eprintln!(
                    "validation after step {step}: loss {loss:.4}, {bits_per_byte:.4} bits per byte"
                );
            }
            Progress::Checkpoint { step, path, seconds, sent } => eprintln!(
                "checkpoint of step {step} is durable after {seconds:.2} s and {:.1} MiB: {path}",
                *sent as f64 / f64::from(1 << 20)
            ),
            // Said by servers, which train nothing.
            Progress::Serving { port: _, model: _ } => {}
            Progress::Skipped { message } => eprintln!("skipped: {message}"),
            Progress::Finished { artifact, cached, caveat, .. } => {
                if let Some(caveat) = caveat {
                    eprintln!("{caveat}");
                }
                eprintln!(
                    "{}: artifact {artifact}",
                    if *cached { "finished before" } else { "finished" }
                );
            }
            Progress::Stopped { step } => {
                eprintln!(
                    "stopped: step {step} is durable; start the same job again to go on from there"
                );
            }
            // Said by whoever ends the process.
            Progress::Failed { .. } => {}
        }
    }
}

fn in_file(error: StoreError) -> Error {
    Error::Progress(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_thinned_out_but_the_last_one_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let mut reporter = Reporter::new(Some(&path), false).unwrap();
        reporter
            .report(&Progress::Started {
                key: "k".into(),
                steps: 100,
                from_step: 0,
                tokens_per_step: 8,
                backend: "test".into(),
                planned_bytes: 1,
                arena_bytes: 1,
            })
            .unwrap();
        for step in 1..=100 {
            reporter.step(step, 1.0, 0.1, 8).unwrap();
        }
        let lines: Vec<Progress> = std::fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert!(lines.len() < 10, "{}", lines.len());
        assert!(matches!(lines.last(), Some(Progress::Step { step: 100, .. })));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let error = Reporter::new(Some(Path::new("/nonexistent/progress")), false).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/progress"), "{error}");
    }
}
