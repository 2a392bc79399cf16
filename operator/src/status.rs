//! Status: what a running job says of itself, taken over into [`Status`], and what of it is news.

use petaflop_store::report::Progress;

use crate::embedded::job::Status;

/// The last thing an instance said, where that was its end.
#[derive(Clone, Debug, PartialEq)]
pub enum LastWord {
    /// Nothing yet, or it was cut off.
    None,
    /// The job is done.
    Finished {
        /// The artifact's hash.
        artifact: String,
        /// What is not as it was asked for.
        caveat: Option<String>,
    },
    /// It was asked to stop, and can go on.
    Stopped,
    /// It failed.
    Failed {
        /// What went wrong and how to mend it.
        message: String,
        /// Whether another try could help.
        retry: bool,
    },
}

/// Takes one line of progress over. Lines come in the order they were written.
pub fn take_over(status: &mut Status, last: &mut LastWord, line: &Progress) {
    match line {
        Progress::Started {
            key: _,
            steps,
            from_step,
            tokens_per_step,
            backend,
            planned_bytes,
            arena_bytes,
        } => {
            *last = LastWord::None;
            status.steps = *steps;
            status.step = *from_step;
            status.checkpoint_step = *from_step;
            status.tokens_per_step = *tokens_per_step;
            status.backend = Some(backend.clone());
            status.arena_bytes = Some((*planned_bytes, *arena_bytes));
        }
        Progress::Step { step, loss, learning_rate: _, tokens_per_second } => {
            status.step = *step;
            status.first_loss.get_or_insert(*loss);
            status.loss = Some(*loss);
            status.tokens_per_second = Some(*tokens_per_second);
        }
        Progress::Validation { step: _, loss: _, bits_per_byte } => {
            status.bits_per_byte = Some(*bits_per_byte);
        }
        Progress::Checkpoint { step, path: _, seconds, sent: _ } => {
            status.checkpoint_step = *step;
            status.checkpoint_seconds = Some(*seconds);
        }
        Progress::Skipped { message } => status.message.clone_from(message),
        // Without a cluster a server's port is known before it starts.
        Progress::Serving { port: _, model: _ } => {}
        Progress::Finished { key: _, artifact, cached, caveat, summary } => {
            status.artifact = Some(artifact.clone());
            status.cached = *cached;
            status.summary = Some(summary.clone());
            *last = LastWord::Finished { artifact: artifact.clone(), caveat: caveat.clone() };
        }
        Progress::Stopped { step } => {
            status.step = *step;
            status.checkpoint_step = *step;
            *last = LastWord::Stopped;
        }
        Progress::Failed { message, retry } => {
            *last = LastWord::Failed { message: message.clone(), retry: *retry };
        }
    }
}

/// What a message says, whatever its numbers: those move with every look, and are no news.
pub(crate) fn without_numbers(message: &str) -> String {
    message.replace(|c: char| c.is_ascii_digit(), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_start_forgets_how_the_last_one_ended() {
        let mut status = Status::default();
        let mut last = LastWord::None;
        take_over(
            &mut status,
            &mut last,
            &Progress::Failed { message: "disk full".into(), retry: true },
        );
        assert!(matches!(last, LastWord::Failed { retry: true, .. }));
        let started = Progress::Started {
            key: "k".into(),
            steps: 10,
            from_step: 4,
            tokens_per_step: 8,
            backend: "cpu".into(),
            planned_bytes: 1,
            arena_bytes: 1,
        };
        take_over(&mut status, &mut last, &started);
        assert_eq!(last, LastWord::None);
        assert_eq!((status.step, status.checkpoint_step), (4, 4));
    }

    #[test]
    fn the_first_loss_stays_across_restarts() {
        let mut status = Status::default();
        let mut last = LastWord::None;
        for (step, loss) in [(1, 6.0), (2, 5.0)] {
            let line = Progress::Step { step, loss, learning_rate: 0.1, tokens_per_second: 1.0 };
            take_over(&mut status, &mut last, &line);
        }
        assert_eq!((status.first_loss, status.loss), (Some(6.0), Some(5.0)));
    }
}
