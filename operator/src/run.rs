//! What an agent said last of the command that it supervises, folded together. Held in memory: a
//! new leader asks the agents again.

use std::sync::Arc;

use object_store::ObjectStore;
use petaflop_agent_api::message::{Exit, Why};
use petaflop_arbiter::claim::ClaimSpec;
use petaflop_crds::training_job::TrainingProgress;
use petaflop_store::StoreError;
use petaflop_store::logs::{LogReader, prefix};
use petaflop_store::report::Progress;

/// A claim's command, as its agent reports it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// Where its agent is called, once that is known.
    pub called_at: Option<String>,
    /// The runtime has said what it does.
    pub started: bool,
    /// The command has been started.
    pub up: bool,
    /// A server answers its readiness probe.
    pub ready: bool,
    /// It has said how it is, since we began to ask.
    pub heard: bool,
    /// It was told to end, and not by us: its provider takes the machine away.
    pub taken: bool,
    /// What a server answers with, and where, as long as it does.
    pub serving: Option<Serving>,
    /// Key of the result, once the runtime has said it.
    pub key: Option<String>,
    /// How far a job is.
    pub progress: TrainingProgress,
    /// What was said to people last.
    pub message: String,
    /// What the runtime said last of its end.
    word: Option<End>,
    /// How it ended, once the command is over.
    pub end: Option<End>,
}

/// What a server answers with, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// Its port on the machine.
    pub port: u16,
    /// Hash of the artifact; empty of a server that is not ours.
    pub model: String,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The job is done.
    Finished {
        /// The artifact's hash.
        artifact: String,
        /// It was there before.
        cached: bool,
        /// What is not as it was asked for.
        caveat: Option<String>,
    },
    /// It ended well, and named no result: what a command of the user's does.
    Done,
    /// It was asked to stop, and can go on from its checkpoint.
    Stopped,
    /// It named a result that is not what it says.
    Refused {
        /// What does not agree.
        message: String,
    },
    /// It was not started: the machine lacks the accelerators that it was bought for.
    Unfit {
        /// What is missing.
        message: String,
    },
    /// It failed.
    Failed {
        /// What went wrong and how to mend it.
        message: String,
        /// Whether another try could help.
        retry: bool,
    },
}

/// How the command of a claim ended, as its agent left it in the store: its machine is gone, and
/// with it the agent. `None`: it left nothing, so the machine went first.
///
/// # Errors
/// The store cannot be read, which says nothing about the command.
pub async fn left_behind(
    store: Arc<dyn ObjectStore>,
    claim: &ClaimSpec,
) -> Result<Option<Exit>, StoreError> {
    let owner = &claim.owner;
    let reader = LogReader::new(store, &prefix(&owner.namespace, &owner.name, &claim.name));
    Ok(reader.exit().await?.and_then(|report| serde_json::from_slice(&report).ok()))
}

impl Run {
    /// Of an agent that is called at this address, and has said nothing yet.
    pub fn called_at(address: String) -> Self {
        Self { called_at: Some(address), ..Self::default() }
    }

    /// Takes one line of progress over. Lines come in the order they were written; repeating some changes nothing.
    pub fn take_over(&mut self, line: &Progress) {
        match line {
            Progress::Started { key, steps, from_step, .. } => {
                self.key = Some(key.clone());
                self.word = None;
                self.progress.steps = *steps;
                self.progress.step = self.progress.step.max(*from_step);
                self.progress.checkpoint_step = Some(*from_step);
            }
            Progress::Step { step, loss, learning_rate: _, tokens_per_second } => {
                self.progress.step = *step;
                self.progress.loss = Some(*loss);
                self.progress.tokens_per_second = Some(*tokens_per_second);
            }
            Progress::Validation { step: _, loss: _, bits_per_byte } => {
                self.progress.bits_per_byte = Some(*bits_per_byte);
            }
            Progress::Checkpoint { step, path: _, seconds, sent: _ } => {
                self.progress.checkpoint_step = Some(*step);
                self.progress.checkpoint_seconds = Some(*seconds);
            }
            Progress::Serving { port, model } => {
                self.serving = Some(Serving { port: *port, model: model.clone() });
            }
            Progress::Skipped { message } => self.message.clone_from(message),
            Progress::Finished { key, artifact, cached, caveat, summary: _ } => {
                self.key = Some(key.clone());
                self.word = Some(End::Finished {
                    artifact: artifact.clone(),
                    cached: *cached,
                    caveat: caveat.clone(),
                });
            }
            Progress::Stopped { step } => {
                self.progress.step = *step;
                self.progress.checkpoint_step = Some(*step);
                self.word = Some(End::Stopped);
            }
            Progress::Failed { message, retry } => {
                self.word = Some(End::Failed { message: message.clone(), retry: *retry });
            }
        }
    }

    /// What its machine lacks of what it was bought for.
    pub fn lacks(&self) -> Option<&str> {
        match &self.end {
            Some(End::Unfit { message }) => Some(message),
            _ => None,
        }
    }

    /// The command is over. What the runtime said last counts; without a word it depends on why
    /// the agent ended it.
    pub fn exited(&mut self, exit: &Exit) {
        if let Some(report) = &exit.report
            && let Ok(line) = serde_json::from_value::<Progress>(report.clone())
        {
            self.take_over(&line);
        }
        // It said so before its result was brought to where it is wanted, and that was not done: the agent
        // then reports none. By itself it ends only with what it said.
        if exit.report.is_none() && exit.why != Why::Finished {
            self.word = self.word.take().filter(|word| !matches!(word, End::Finished { .. }));
        }
        self.end = Some(self.word.clone().unwrap_or_else(|| match exit.why {
            // It may have had no time to say so. Its last checkpoint is what counts.
            Why::Drained | Why::Notice | Why::Terminated | Why::Orphaned => End::Stopped,
            Why::Finished if exit.code == Some(0) => End::Done,
            Why::NoAccelerator => End::Unfit { message: exit.message.clone() },
            Why::BadInput | Why::BadDelivery => {
                End::Failed { message: exit.message.clone(), retry: false }
            }
            Why::Finished | Why::NotStarted | Why::NotDelivered | Why::Unhealthy => {
                End::Failed { message: exit.message.clone(), retry: true }
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_and_silence_is_a_failure_worth_another_try() {
        let finished = Progress::Finished {
            key: "k".into(),
            artifact: "a".into(),
            cached: false,
            caveat: Some("not as a GGUF file".into()),
            summary: serde_json::Value::Null,
        };
        let mut run = Run::default();
        run.take_over(&finished);
        assert_eq!(run.end, None, "the process still runs");
        let over = |exit: &Exit| {
            let mut over = run.clone();
            over.exited(exit);
            over.end
        };
        let caveat = Some("not as a GGUF file".into());
        let named = Some(End::Finished { artifact: "a".into(), cached: false, caveat });
        assert_eq!(over(&exit(Why::Finished, Some(0))), named);
        let report = serde_json::to_value(&finished).ok();
        assert_eq!(over(&Exit { report, ..exit(Why::Notice, Some(0)) }), named);

        // Its result was not brought to where it is wanted.
        let failed = |retry| Some(End::Failed { message: "said".into(), retry });
        assert_eq!(over(&exit(Why::NotDelivered, Some(0))), failed(true));
        assert_eq!(over(&exit(Why::BadDelivery, Some(0))), failed(false));
        assert_eq!(over(&exit(Why::Notice, Some(0))), Some(End::Stopped));

        let mut killed = Run::default();
        killed.exited(&exit(Why::Finished, None));
        assert_eq!(killed.end, Some(End::Failed { message: "said".into(), retry: true }));

        let mut done = Run::default();
        done.exited(&exit(Why::Finished, Some(0)));
        assert_eq!(done.end, Some(End::Done));

        let mut unfit = Run::default();
        unfit.exited(&exit(Why::NoAccelerator, None));
        assert_eq!(unfit.lacks(), Some("said"));

        let mut wrong = Run::default();
        wrong.exited(&exit(Why::BadInput, None));
        assert_eq!(wrong.end, Some(End::Failed { message: "said".into(), retry: false }));

        let mut drained = Run::default();
        drained.exited(&exit(Why::Notice, None));
        assert_eq!(drained.end, Some(End::Stopped));
    }

    fn exit(why: Why, code: Option<i32>) -> Exit {
        Exit {
            why,
            code,
            signal: None,
            message: "said".into(),
            started_at: None,
            ended_at: jiff::Timestamp::UNIX_EPOCH,
            report: None,
        }
    }
}
