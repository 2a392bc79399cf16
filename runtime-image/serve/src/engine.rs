//! The engine thread: continuous batching over the block table.
//!
//! Each pass mixes one token of every sequence that generates with pieces of
//! prompts that are still being read, within a budget of tokens. There are no
//! phases: a sequence joins when a pass ends and leaves when its last token is
//! sent. A request is admitted when the blocks of its worst case (prompt plus all
//! the tokens it may generate) are free, and holds them until it ends, so no
//! sequence ever has to be thrown out for memory.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use petaflop_model::inference::{Chunk, Logits};
use tokio::sync::oneshot;

use crate::blocks::Blocks;
use crate::error::ApiError;
use crate::forward::Forward;
use crate::metrics::Metrics;
use crate::queue::{Admission, Event, FinishReason, Job, Queue};
use crate::sample::sample;
use crate::text::TextStream;
use crate::vocabulary::Vocabulary;

/// What one pass may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Sequences side by side.
    pub(crate) sequences: usize,
    /// Tokens of all sequences together; at least `sequences`.
    pub(crate) step_tokens: usize,
}

/// Starts the engine on a thread of its own, which ends when the queue says so
/// or when the model fails. A panic in it fails the requests at hand and marks
/// the queue dead; it does not spread. The returned receiver resolves when the
/// thread ends.
pub(crate) fn start(
    model: impl Forward + 'static,
    vocabulary: Arc<Vocabulary>,
    blocks: Blocks,
    limits: Limits,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
) -> std::io::Result<oneshot::Receiver<()>> {
    let (alive, ended) = oneshot::channel();
    std::thread::Builder::new().name("engine".into()).spawn(move || {
        let _alive: oneshot::Sender<()> = alive;
        let mut engine =
            Engine { model, vocabulary, blocks, limits, queue, metrics, running: Vec::new() };
        // After a panic only the sequences' channels are used, and those stay whole.
        let ended = catch_unwind(AssertUnwindSafe(|| engine.run()));
        let why = match ended {
            Ok(Ok(())) => return,
            Ok(Err(why)) => why,
            Err(panic) => format!("panic: {}", panic_message(&*panic)),
        };
        tracing::error!(reason = %why, "the engine has stopped");
        engine.queue.die(&why);
        engine.fail(&ApiError::engine_failed(&why));
    })?;
    Ok(ended)
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// The batch and what it runs on.
struct Engine<M> {
    model: M,
    vocabulary: Arc<Vocabulary>,
    blocks: Blocks,
    limits: Limits,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    /// In the order of their admission.
    running: Vec<Sequence>,
}

/// A request in the batch.
struct Sequence {
    job: Job,
    /// Blocks of the worst case, in the order of positions.
    blocks: Vec<u32>,
    /// The prompt and what was generated so far.
    tokens: Vec<u32>,
    /// Tokens whose keys and values lie in `blocks`: always fewer than `tokens`.
    cached: usize,
    text: TextStream,
    /// When the last token was generated.
    last: Option<Instant>,
}

impl<M: Forward> Engine<M> {
    /// Until the queue ends (`Ok`) or the model fails (`Err`, why).
    fn run(&mut self) -> Result<(), String> {
        loop {
            let Some(Admission { admitted, abandoned }) = self.admit() else {
                self.fail(&ApiError::cut_off());
                return Ok(());
            };
            self.metrics.abandoned.inc_by(abandoned as u64);
            self.running.extend(admitted);
            self.drop_abandoned();
            self.show();
            if !self.running.is_empty() {
                self.step()?;
                self.show();
            }
        }
    }

    /// Lets requests in from the queue while there is room; waits for one where
    /// nothing runs. `None`: the engine is to end.
    fn admit(&mut self) -> Option<Admission<Sequence>> {
        let mut places = self.limits.sequences - self.running.len();
        let blocks = &mut self.blocks;
        self.queue.next(self.running.is_empty(), |job| {
            if places == 0 {
                return Err(job);
            }
            match blocks.allocate(job.prompt.len() + job.max_tokens) {
                None => Err(job),
                Some(held) => {
                    places -= 1;
                    Ok(Sequence::new(job, held))
                }
            }
        })
    }

    /// Takes sequences out of the batch whose clients went away.
    fn drop_abandoned(&mut self) {
        let blocks = &mut self.blocks;
        let before = self.running.len();
        self.running.retain_mut(|sequence| {
            let gone = sequence.job.abandoned();
            if gone {
                blocks.release(std::mem::take(&mut sequence.blocks));
            }
            !gone
        });
        self.metrics.abandoned.inc_by((before - self.running.len()) as u64);
    }

    /// One pass of the model, and what follows from it for each sequence.
    fn step(&mut self) -> Result<(), String> {
        let pending: Vec<usize> = self.running.iter().map(Sequence::pending).collect();
        let parts = share(&pending, self.limits.step_tokens);
        let chunks: Vec<Chunk<'_>> = self
            .running
            .iter()
            .zip(&parts)
            .filter(|&(_, &part)| part > 0)
            .map(|(s, &part)| Chunk {
                tokens: &s.tokens[s.cached..s.cached + part],
                start: s.cached,
                blocks: &s.blocks,
                logits: if part == s.pending() { Logits::Last } else { Logits::None },
            })
            .collect();
        let logits = self.model.forward(&chunks)?;
        let mut rows = logits.chunks_exact(self.vocabulary.len());
        let mut ended = Vec::new();
        for ((i, sequence), part) in self.running.iter_mut().enumerate().zip(parts) {
            sequence.cached += part;
            if part > 0 && sequence.pending() == 0 {
                let row = rows.next().ok_or("the model left out a row of logits")?;
                if sequence.advance(row, &self.vocabulary, &self.metrics) {
                    ended.push(i);
                }
            }
        }
        for i in ended.into_iter().rev() {
            let sequence = self.running.remove(i);
            self.blocks.release(sequence.blocks);
        }
        Ok(())
    }

    /// Ends every running request with an error.
    fn fail(&mut self, error: &ApiError) {
        for sequence in self.running.drain(..) {
            sequence.job.send(Event::Failed(error.clone()));
            self.blocks.release(sequence.blocks);
        }
        self.show();
    }

    /// Tells the metrics what is held.
    fn show(&self) {
        self.metrics.running.set(self.running.len() as i64);
        self.metrics.kv_blocks_used.set(self.blocks.used() as i64);
    }
}

impl Sequence {
    fn new(job: Job, blocks: Vec<u32>) -> Self {
        Sequence {
            tokens: job.prompt.clone(),
            text: TextStream::new(&job.stop),
            job,
            blocks,
            cached: 0,
            last: None,
        }
    }

    /// Tokens that the model has not seen yet.
    fn pending(&self) -> usize {
        self.tokens.len() - self.cached
    }

    /// Chooses the next token from its logits and sends what follows from it.
    /// Whether the answer is complete.
    fn advance(&mut self, logits: &[f32], vocabulary: &Vocabulary, metrics: &Metrics) -> bool {
        let token = sample(logits, &self.job.sampling, self.tokens.len() as u64);
        self.tokens.push(token);
        let generated = self.tokens.len() - self.job.prompt.len();

        let now = Instant::now();
        match self.last.replace(now) {
            None => {
                metrics.prompt_tokens.inc_by(self.job.prompt.len() as u64);
                metrics.first_token(now - self.job.arrived);
            }
            Some(last) => metrics.output_token(now - last),
        }
        metrics.generated_tokens.inc();

        let (mut text, mut reason) = (String::new(), None);
        if vocabulary.ends(token) {
            reason = Some(FinishReason::Stop);
        } else {
            let piece = self.text.push(vocabulary.bytes(token));
            text = piece.text;
            if piece.stopped {
                reason = Some(FinishReason::Stop);
            } else if generated == self.job.max_tokens {
                reason = Some(FinishReason::Length);
            }
        }
        if reason.is_some() {
            text.push_str(&self.text.finish());
        }
        if !text.is_empty() {
            self.job.send(Event::Text(text));
        }
        let Some(reason) = reason else { return false };
        self.job.send(Event::Done {
            reason,
            prompt_tokens: self.job.prompt.len(),
            completion_tokens: generated,
        });
        true
    }
}

/// How many of its pending tokens each sequence gets into the next pass. Those
/// that generate (one pending token) come first, so that nobody's answer waits
/// for somebody else's long prompt; prompts share the rest in order of admission.
fn share(pending: &[usize], budget: usize) -> Vec<usize> {
    let mut left = budget;
    let mut parts = vec![0; pending.len()];
    let (ones, prompts): (Vec<usize>, Vec<usize>) =
        (0..pending.len()).partition(|&i| pending[i] == 1);
    for i in ones.into_iter().chain(prompts) {
        parts[i] = pending[i].min(left);
        left -= parts[i];
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::sync::Semaphore;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::sample::Sampling;

    /// A model whose logits are a hash of the sequence so far, and which keeps its
    /// "cache" in the blocks it is given: a wrong block table, a gap or a block
    /// shared by two sequences gives other tokens or a panic.
    struct Toy {
        cache: HashMap<u32, [u32; 16]>,
        logits: Vec<f32>,
        vocab: usize,
        max_tokens: usize,
        /// Panics when it sees this token.
        poison: Option<u32>,
    }

    impl Forward for Toy {
        fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<&[f32], String> {
            self.logits.clear();
            let tokens: usize = chunks.iter().map(|c| c.tokens.len()).sum();
            assert!(tokens > 0 && tokens <= self.max_tokens, "{tokens} tokens in a pass");
            for chunk in chunks {
                for (i, &token) in chunk.tokens.iter().enumerate() {
                    assert_ne!(Some(token), self.poison, "poison");
                    let at = chunk.start + i;
                    let block = chunk.blocks[at / 16];
                    self.cache.entry(block).or_insert([u32::MAX; 16])[at % 16] = token;
                }
                if chunk.logits == Logits::Last {
                    let end = chunk.start + chunk.tokens.len();
                    let seen = (0..end).map(|at| self.cache[&chunk.blocks[at / 16]][at % 16]);
                    let state = seen.fold(17_u64, |h, t| {
                        (h ^ u64::from(t)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
                    });
                    self.logits.extend((0..self.vocab as u64).map(|v| {
                        let mixed = (state ^ v).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 40;
                        mixed as f32 / (1 << 22) as f32
                    }));
                }
            }
            Ok(&self.logits)
        }
    }

    const VOCAB: usize = 40;

    fn toy(max_tokens: usize, poison: Option<u32>) -> Toy {
        Toy { cache: HashMap::new(), logits: Vec::new(), vocab: VOCAB, max_tokens, poison }
    }

    /// Every token is a letter.
    fn vocabulary(ends: bool) -> Arc<Vocabulary> {
        let bytes = (0..VOCAB).map(|i| Box::from([b'a' + (i % 25) as u8])).collect();
        Arc::new(Vocabulary::new(bytes, if ends { vec![0] } else { vec![] }))
    }

    struct Running {
        queue: Arc<Queue>,
        metrics: Arc<Metrics>,
        ended: oneshot::Receiver<()>,
        tickets: Arc<Semaphore>,
    }

    /// `ends`: token 0 ends an answer; otherwise none does.
    fn running(limits: Limits, blocks: u32, poison: Option<u32>, ends: bool) -> Running {
        let queue = Arc::new(Queue::new());
        let metrics = Arc::new(Metrics::new(blocks as usize, 0));
        let ended = start(
            toy(limits.step_tokens, poison),
            vocabulary(ends),
            Blocks::new(blocks),
            limits,
            queue.clone(),
            metrics.clone(),
        )
        .expect("a thread");
        Running { queue, metrics, ended, tickets: Arc::new(Semaphore::new(10_000)) }
    }

    impl Running {
        fn ask(&self, prompt: Vec<u32>, max_tokens: usize, seed: u64) -> UnboundedReceiver<Event> {
            let (events, receiver) = unbounded_channel();
            let ticket = self.tickets.clone().try_acquire_owned().expect("a ticket");
            let _ = self.queue.push(Job {
                prompt,
                max_tokens,
                sampling: Sampling {
                    temperature: if seed.is_multiple_of(3) { 0.0 } else { 0.9 },
                    top_p: 0.95,
                    seed,
                },
                // Long answers are there to be interrupted.
                stop: if max_tokens < 1_000 { vec!["aa".into()] } else { vec![] },
                arrived: Instant::now(),
                events,
                ticket: Arc::new(ticket),
            });
            receiver
        }
    }

    /// Everything that was sent: text, and the last event.
    fn collect(mut events: UnboundedReceiver<Event>) -> (String, Option<Event>) {
        let mut text = String::new();
        while let Some(event) = events.blocking_recv() {
            match event {
                Event::Text(piece) => text.push_str(&piece),
                last => return (text, Some(last)),
            }
        }
        (text, None)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn an_answer_does_not_depend_on_the_batch(
            jobs in prop::collection::vec((prop::collection::vec(1_u32..VOCAB as u32, 1..70), 1_usize..40, any::<u64>()), 1..24),
            sequences in 1_usize..9, extra_tokens in 0_usize..30, blocks in 7_u32..40,
        ) {
            let limits = Limits { sequences, step_tokens: sequences + extra_tokens };
            let together = running(limits, blocks, None, true);
            let alone = running(Limits { sequences: 1, step_tokens: 200 }, 7, None, true);
            let all: Vec<_> = jobs.iter().cloned().map(|(p, m, s)| together.ask(p, m, s)).collect();
            for (events, (prompt, max_tokens, seed)) in all.into_iter().zip(jobs) {
                let expected = collect(alone.ask(prompt, max_tokens, seed));
                let done = matches!(expected.1, Some(Event::Done { .. }));
                prop_assert!(done, "alone it was not answered");
                prop_assert_eq!(collect(events), expected);
            }
            for mut one in [together, alone] {
                one.queue.drain();
                prop_assert!(one.ended.blocking_recv_timeout().is_some());
                prop_assert_eq!(one.metrics.kv_blocks_used.get(), 0);
            }
        }
    }

    trait Ended {
        /// Waits for the end of the engine; `None` after ten seconds.
        fn blocking_recv_timeout(&mut self) -> Option<()>;
    }

    impl Ended for oneshot::Receiver<()> {
        fn blocking_recv_timeout(&mut self) -> Option<()> {
            let deadline = Instant::now() + Duration::from_secs(10);
            while Instant::now() < deadline {
                if self.try_recv() != Err(oneshot::error::TryRecvError::Empty) {
                    return Some(());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            None
        }
    }

    #[test]
    fn a_panic_fails_what_runs_and_what_waits_and_nothing_hangs() {
        let mut server = running(Limits { sequences: 2, step_tokens: 8 }, 16, Some(39), false);
        // Two fill the batch, the second with poison after a long prompt; two wait.
        let mut poisoned = vec![5; 30];
        poisoned.push(39);
        let asked = [
            server.ask(vec![1; 20], 100, 1),
            server.ask(poisoned, 10, 1),
            server.ask(vec![2; 100], 20, 1),
            server.ask(vec![3; 100], 20, 1),
        ];
        for events in asked {
            let (_, last) = collect(events);
            let Some(Event::Failed(error)) = last else {
                panic!("expected a failure, got {last:?}")
            };
            assert_eq!(error.status, 500);
            assert!(error.message.contains("poison"), "{error:?}");
        }
        assert!(server.ended.blocking_recv_timeout().is_some());
        assert!(matches!(server.queue.phase(), crate::queue::Phase::Dead(_)));
        let refused = server.queue.open().expect_err("dead");
        assert_eq!((refused.status.as_u16(), refused.code), (503, Some("engine_dead")));
        assert_eq!(server.metrics.kv_blocks_used.get(), 0);
    }

    #[test]
    fn what_runs_after_the_grace_period_is_cut_off() {
        let limits = Limits { sequences: 1, step_tokens: 64 };
        let mut server = running(limits, 1 << 16, None, false);
        let endless = [server.ask(vec![1], 1_000_000, 4), server.ask(vec![1], 10, 4)];
        server.queue.drain();
        assert_eq!(server.queue.open().expect_err("draining").code, Some("draining"));
        server.queue.stop();
        for events in endless {
            let (_, last) = collect(events);
            assert_eq!(last, Some(Event::Failed(ApiError::cut_off())));
        }
        assert!(server.ended.blocking_recv_timeout().is_some());
    }

    #[test]
    fn generating_sequences_come_first_and_prompts_share_the_rest_in_order() {
        assert_eq!(share(&[1, 100, 1, 50], 64), [1, 62, 1, 0]);
        assert_eq!(share(&[30, 20, 1], 64), [30, 20, 1]);
        assert_eq!(share(&[1, 1, 1], 3), [1, 1, 1]);
        assert_eq!(share(&[], 3), Vec::<usize>::new());
    }

    #[test]
    fn a_client_that_goes_away_frees_its_blocks_at_once() {
        let limits = Limits { sequences: 4, step_tokens: 64 };
        let server = running(limits, 2_000, None, false);
        // The second does not fit beside the first, the third fits beside neither.
        let first = server.ask(vec![1], 30_000, 1);
        let second = server.ask(vec![2], 30_000, 1);
        while server.metrics.kv_blocks_used.get() == 0 {
            std::thread::yield_now();
        }
        drop((first, second));
        let (_, last) = collect(server.ask(vec![3; 31_000], 10, 1));
        assert!(matches!(last, Some(Event::Done { .. })), "{last:?}");
        assert_eq!(server.metrics.abandoned.get(), 2);
    }
}
