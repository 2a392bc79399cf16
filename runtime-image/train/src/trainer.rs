//! A training run: identify → (finished before? done) → lock and resume → data →
//! model → steps with checkpoints and measurements → artifact.
//!
//! Everything that reaches the artifact is a function of the recipe and the
//! inputs' contents; where it runs, on how many threads, and how often it was
//! interrupted is not seen in it.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use petaflop_kernel::Cpu;
use petaflop_model::{
    place::{Place, Training as Model},
    tokenizer::TOKENIZER_FILE,
    training::{AdamwStep, Loss, NO_TARGET, TrainingModel},
};
use petaflop_plan::{
    machine::Memory,
    plan::Plan,
    recipe::{JobSpec, Optimizer, TrainingLength},
    training::{TrainingOptions, plan_training},
};
use petaflop_store::{ArtifactHash, blocking::Store, report::Progress};
use serde_json::{Value, json};

use crate::{
    artifact::{self, Documents, Training},
    checkpoint::{Checkpoints, Writing},
    data::Data,
    error::Error,
    export,
    history::History,
    identity::{Identified, Identity},
    input::{Builtins, Source},
    pack::Order,
    progress::Reporter,
    start::Start,
    state, summary, xz,
};

/// Times that the validation split is measured on the way, besides at the start and at the end.
const MEASUREMENTS: u64 = 10;
/// Micro-batches of a measurement on the way; the last one takes all there are.
const MEASURED_BATCHES: u64 = 16;
/// Name of the loss curve, in the checkpoints folder.
pub const CURVE: &str = "loss.svg";

/// How to run a job. None of it changes the result, but for a device whose arithmetic is not the
/// processor's: its results have keys of their own.
pub struct Options<'a> {
    /// Texts that the program brings along.
    pub builtins: &'a Builtins,
    /// File that takes one line of JSON for every event.
    pub progress: Option<&'a Path>,
    /// What to compute on where there is no device.
    pub cpu: Cpu,
    /// What the model trains on instead.
    pub device: Option<Box<dyn Place>>,
    /// The machine's memory: a job that needs more than is available is refused.
    pub memory: Option<&'a Memory>,
    /// Train even where a job of this key ended well before. The same artifact comes out.
    pub fresh: bool,
    /// Raised to ask for a checkpoint and an early end.
    pub stop: &'a AtomicBool,
}

/// How a job ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its artifact is in the store.
    Finished {
        /// The artifact's name.
        artifact: ArtifactHash,
        /// It was there before.
        cached: bool,
    },
    /// It was asked to stop; its state is durable.
    Stopped {
        /// Steps done.
        step: u64,
    },
}

/// Runs the job to its end, or to a durable checkpoint where it is asked to stop.
///
/// # Errors
/// Why it did not end well; nothing is in the store then that was not before.
pub fn run(job: &JobSpec, options: Options<'_>) -> Result<Outcome, Error> {
    let Options { builtins, progress, cpu, device, memory, fresh, stop } = options;
    let mut reporter = Reporter::new(progress, true)?;
    let numerics = device.as_ref().map(|device| device.numerics()).unwrap_or_default();
    let Identified { identity, sources, store } = Identified::new(job, builtins, numerics)?;
    for source in sources.iter().filter(|source| source.left_out > 0) {
        reporter.note(format_args!(
            "{}: {} files that are not UTF-8 text were left out",
            source.uri, source.left_out
        ));
    }
    if let Some(artifact) = identity.cached.filter(|_| !fresh) {
        let training = summary::recorded(&store, artifact)?;
        let summary = summary::of_training(&training).into();
        reporter.report(&finished(&training, artifact, true, summary))?;
        return Ok(Outcome::Finished { artifact, cached: true });
    }
    let store = match &job.result {
        Some(result) => Store::open(result).map_err(Error::store)?,
        None => store,
    };
    let checkpoints = Checkpoints::open(&job.checkpoints, &identity.key, job.keep_checkpoints)?;
    let place = (Arc::new(cpu), device);
    Run::prepare(job, identity, sources, checkpoints, place, memory, reporter)?.finish(&store, stop)
}

/// A job on its way.
struct Run<'a> {
    job: &'a JobSpec,
    identity: Identity,
    sources: Vec<Source>,
    checkpoints: Checkpoints,
    reporter: Reporter,
    data: Data,
    order: Order,
    cpu: Arc<Cpu>,
    model: Box<dyn Model>,
    /// Steps in all.
    steps: u64,
    /// Steps done when this process began.
    from_step: u64,
    history: History,
    writing: Option<Writing>,
    last_checkpoint: Instant,
    batch: Batch,
    backend: String,
    spent: Spent,
}

/// One micro-batch, `[B·T]` each.
#[derive(Default)]
struct Batch {
    tokens: Vec<u32>,
    targets: Vec<u32>,
}

/// What this process did, for the summary.
#[derive(Default)]
struct Spent {
    training: Duration,
    steps: u64,
}

impl<'a> Run<'a> {
    fn prepare(
        job: &'a JobSpec,
        identity: Identity,
        mut sources: Vec<Source>,
        checkpoints: Checkpoints,
        (cpu, device): (Arc<Cpu>, Option<Box<dyn Place>>),
        memory: Option<&Memory>,
        mut reporter: Reporter,
    ) -> Result<Self, Error> {
        let recipe = &job.recipe;
        let start = Start::of(recipe, &sources)?;
        let shape = start.shape();
        let training = TrainingOptions::new(recipe.micro_batch_size, recipe.sequence_len);
        let plan = plan_training(shape, &training)
            .map_err(|error| Error::BadInput(format!("recipe: {error}")))?;
        require_memory(&plan, memory, device.is_some())?;

        let mut skipped = Vec::new();
        let checkpoint = checkpoints.newest(|message| skipped.push(message))?;
        for message in skipped {
            reporter.report(&Progress::Skipped { message })?;
        }
        let data = Data::prepare(
            recipe,
            &sources,
            start.folder(),
            checkpoint
                .as_ref()
                .and_then(|checkpoint| Some(&**checkpoint.files.get(TOKENIZER_FILE)?)),
        )?;
        export::check(recipe, &data)?;
        for source in &mut sources {
            // The streams hold it now.
            source.texts = Vec::new();
        }
        let (backend, model) = match device {
            Some(device) => (device.name(), device.training(shape, &training)),
            None => (
                format!("{}, {} threads", cpu.isa(), cpu.threads()),
                TrainingModel::new(Arc::clone(&cpu), shape, &training)
                    .map(|model| Box::new(model) as Box<dyn Model>),
            ),
        };
        let mut model = model.map_err(Error::model)?;
        let mut history = History::default();
        let from_step = match &checkpoint {
            None => {
                start.fill(&mut *model, recipe.seed)?;
                0
            }
            Some(checkpoint) => {
                history = state::restore(&mut *model, checkpoint)?;
                checkpoint.step
            }
        };
        let samples_per_step =
            u64::from(recipe.micro_batch_size) * u64::from(recipe.gradient_accumulation_steps);
        let steps = match recipe.length {
            TrainingLength::Steps(steps) => steps,
            TrainingLength::Epochs(epochs) => {
                (u64::from(epochs) * data.train.samples()).div_ceil(samples_per_step).max(1)
            }
        };
        let (planned_bytes, arena_bytes) = (plan.arena_bytes(), model.arena_bytes());
        assert_eq!(planned_bytes, arena_bytes, "the arena is what was planned");
        reporter.report(&Progress::Started {
            key: identity.key.clone(),
            steps,
            from_step,
            tokens_per_step: samples_per_step * u64::from(recipe.sequence_len),
            backend: backend.clone(),
            planned_bytes,
            arena_bytes,
        })?;
        let rows = recipe.micro_batch_size as usize * recipe.sequence_len as usize;
        Ok(Self {
            job,
            identity,
            sources,
            checkpoints,
            reporter,
            order: Order::new(recipe.seed, data.train.samples()),
            data,
            cpu,
            model,
            steps,
            from_step,
            history,
            writing: None,
            last_checkpoint: Instant::now(),
            batch: Batch { tokens: vec![0; rows], targets: vec![0; rows] },
            backend,
            spent: Spent::default(),
        })
    }

    fn finish(mut self, store: &Store, stop: &AtomicBool) -> Result<Outcome, Error> {
        if let Some(step) = self.train(stop)? {
            self.reporter.report(&Progress::Stopped { step })?;
            return Ok(Outcome::Stopped { step });
        }
        self.wait_for_checkpoint()?;
        self.draw_curve()?;
        for source in &self.sources {
            source.verify()?;
        }
        let mut training = Training::new(
            &self.identity.key,
            &self.identity.digests,
            self.model.shape().parameters(),
            self.tokens_per_step(),
            self.data.documents,
            &self.history,
        );
        let artifact = artifact::publish(
            store,
            self.checkpoints.scratch(),
            &self.job.recipe,
            &mut training,
            &mut *self.model,
            &self.cpu,
            &self.data,
        )?;
        let summary = self.summary(&training);
        self.reporter.report(&finished(&training, artifact, false, summary))?;
        Ok(Outcome::Finished { artifact, cached: false })
    }

    /// Trains to the last step, or returns the durable step at which it was asked to stop.
    fn train(&mut self, stop: &AtomicBool) -> Result<Option<u64>, Error> {
        let mut step = self.from_step;
        loop {
            if self.measurement_is_due(step) && !self.measure(step, stop)? {
                return self.checkpoint_and_stop(step).map(Some);
            }
            if step == self.steps {
                return Ok(None);
            }
            if step > self.from_step {
                self.checkpoint_if_due(step)?;
            }
            let before = Instant::now();
            let Some(loss) = self.step(step, stop)? else {
                return self.checkpoint_and_stop(step).map(Some);
            };
            self.spent.training += before.elapsed();
            self.spent.steps += 1;
            self.history.losses.push(loss);
            self.reporter.step(step + 1, loss, self.learning_rate(step), self.tokens_per_step())?;
            step += 1;
        }
    }

    /// One optimiser step; returns its mean loss, or nothing if it was asked to stop
    /// on the way: the weights are then those before the step.
    fn step(&mut self, step: u64, stop: &AtomicBool) -> Result<Option<f64>, Error> {
        let recipe = &self.job.recipe;
        let passes = u64::from(recipe.gradient_accumulation_steps);
        let samples = u64::from(recipe.micro_batch_size);
        let first = step * passes * samples;
        // All passes weigh their targets alike, so their number must be known before the first.
        let mut targets = 0;
        for pass in 0..passes {
            self.fill_training_batch(first + pass * samples);
            targets += self.batch.targets.iter().filter(|&&target| target != NO_TARGET).count();
        }
        let scale = 1.0 / targets.max(1) as f32;
        let mut loss = Loss::default();
        self.model.zero_gradients().map_err(Error::model)?;
        for pass in 0..passes {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            if passes > 1 {
                self.fill_training_batch(first + pass * samples);
            }
            let Batch { tokens, targets } = &self.batch;
            loss += self
                .model
                .accumulate(tokens, targets, scale)
                .map_err(|error| Error::in_step(step + 1, error))?;
        }
        let norm = self.model.clip(recipe.max_grad_norm).map_err(Error::model)?;
        if !norm.is_finite() {
            return Err(Error::NotFinite { step: step + 1, tensor: self.first_bad_gradient()? });
        }
        let Optimizer::Adamw { beta1, beta2, eps, weight_decay } = recipe.optimizer;
        let learning_rate = self.learning_rate(step);
        let adamw = AdamwStep { step, learning_rate, beta1, beta2, eps, weight_decay };
        self.model.adamw(&adamw).map_err(Error::model)?;
        Ok(Some(loss.mean()))
    }

    fn fill_training_batch(&mut self, position: u64) {
        let len = self.job.recipe.sequence_len as usize;
        let Batch { tokens, targets } = &mut self.batch;
        for (place, (tokens, targets)) in
            (position..).zip(tokens.chunks_mut(len).zip(targets.chunks_mut(len)))
        {
            self.data.train.fill(self.order.sample(place), tokens, targets, NO_TARGET);
        }
    }

    fn first_bad_gradient(&self) -> Result<String, Error> {
        let gradients = self.model.gradients().map_err(Error::model)?;
        let bad = gradients.iter().find(|(_, values)| values.iter().any(|v| !v.is_finite()));
        Ok(bad.map_or_else(
            || "the norm of all gradients".to_owned(),
            |(tensor, _)| format!("the gradient of {}", tensor.name),
        ))
    }

    fn learning_rate(&self, step: u64) -> f64 {
        self.job.recipe.schedule.rate(step, self.steps, self.job.recipe.learning_rate)
    }

    fn tokens_per_step(&self) -> u64 {
        let recipe = &self.job.recipe;
        u64::from(recipe.micro_batch_size)
            * u64::from(recipe.gradient_accumulation_steps)
            * u64::from(recipe.sequence_len)
    }

    /// At the start, at the end and some times in between, each once, also when resumed.
    fn measurement_is_due(&self, step: u64) -> bool {
        let every = self.steps.div_ceil(MEASUREMENTS);
        let due = step.is_multiple_of(every) || step == self.steps;
        due && self.history.validation.last().is_none_or(|&(measured, ..)| measured < step)
    }

    /// Measures the validation split: all of it at the end, evenly spread samples
    /// on the way. Returns false, with nothing recorded, if it was asked to stop.
    fn measure(&mut self, step: u64, stop: &AtomicBool) -> Result<bool, Error> {
        let started = Instant::now();
        let Some(validation) = &self.data.validation else {
            return Ok(true);
        };
        let per_batch = u64::from(self.job.recipe.micro_batch_size);
        let all = validation.samples().div_ceil(per_batch);
        let batches = if step == self.steps { all } else { all.min(MEASURED_BATCHES) };
        let len = self.job.recipe.sequence_len as usize;
        let mut loss = Loss::default();
        for batch in 0..batches {
            if stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let first = batch * all / batches * per_batch;
            let Batch { tokens, targets } = &mut self.batch;
            for (sample, (tokens, targets)) in
                (first..).zip(tokens.chunks_mut(len).zip(targets.chunks_mut(len)))
            {
                validation.fill(sample, tokens, targets, NO_TARGET);
            }
            loss += self
                .model
                .evaluate(tokens, targets)
                .map_err(|error| Error::in_step(step, error))?;
        }
        let loss = loss.mean();
        let Documents { validation_targets, validation_bytes, .. } = self.data.documents;
        let bits_per_byte =
            loss * validation_targets as f64 / std::f64::consts::LN_2 / validation_bytes as f64;
        self.history.validation.push((step, loss, bits_per_byte));
        self.reporter.report(&Progress::Validation { step, loss, bits_per_byte })?;
        self.reporter.leave_out(started.elapsed());
        Ok(true)
    }

    /// Starts a checkpoint where the interval has passed and none is being written.
    fn checkpoint_if_due(&mut self, step: u64) -> Result<(), Error> {
        if self.writing.as_ref().is_some_and(Writing::is_done) {
            self.wait_for_checkpoint()?;
        }
        let interval = Duration::from_secs(self.job.checkpoint_interval_seconds);
        if self.writing.is_none() && self.last_checkpoint.elapsed() >= interval {
            let started = Instant::now();
            self.start_checkpoint(step)?;
            self.reporter.leave_out(started.elapsed());
        }
        Ok(())
    }

    fn start_checkpoint(&mut self, step: u64) -> Result<(), Error> {
        for source in &mut self.sources {
            source.still_the_same()?;
        }
        let files = state::save(&*self.model, &self.history, &self.data.tokenizer)?;
        self.writing = Some(self.checkpoints.write_in_background(step, files));
        self.last_checkpoint = Instant::now();
        self.draw_curve()
    }

    fn wait_for_checkpoint(&mut self) -> Result<(), Error> {
        let Some(writing) = self.writing.take() else {
            return Ok(());
        };
        let written = writing.wait()?;
        self.reporter.report(&Progress::Checkpoint {
            step: written.step,
            path: written.path.display().to_string(),
            seconds: written.took.as_secs_f64(),
            sent: written.sent,
        })
    }

    fn checkpoint_and_stop(&mut self, step: u64) -> Result<u64, Error> {
        self.wait_for_checkpoint()?;
        self.start_checkpoint(step)?;
        self.wait_for_checkpoint()?;
        Ok(step)
    }

    fn draw_curve(&self) -> Result<(), Error> {
        let title = format!(
            "{:.12}, {} of {} steps",
            self.identity.key,
            self.history.losses.len(),
            self.steps
        );
        let (path, next) = (
            self.checkpoints.scratch().join(CURVE),
            self.checkpoints.scratch().join(".writing-loss.svg"),
        );
        // A picture is not worth a sync; the rename keeps it whole for whoever looks.
        fs::write(&next, self.history.curve(&title))
            .and_then(|()| fs::rename(&next, &path))
            .map_err(Error::io("cannot write loss curve", &path))
    }

    fn summary(&mut self, training: &Training) -> Value {
        let seconds = self.spent.training.as_secs_f64();
        let tokens = self.spent.steps * self.tokens_per_step();
        // Beside checkpoints in a bucket there is none: this machine's folder goes with the job.
        let curve = match &self.checkpoints {
            Checkpoints::Folder(folder) => Some(folder.path().join(CURVE).display().to_string()),
            Checkpoints::Bucket(_) => None,
        };
        let mut summary = summary::of_training(training);
        summary.extend([
            ("xz_bits_per_byte".into(), json!(self.data.xz.take().and_then(xz::Measurement::wait))),
            ("tokens_per_second".into(), json!((seconds > 0.0).then(|| tokens as f64 / seconds))),
            ("training_seconds".into(), json!(seconds)),
            ("resumed_from_step".into(), json!((self.from_step > 0).then_some(self.from_step))),
            ("backend".into(), json!(self.backend)),
            ("planned_bytes".into(), json!(self.model.plan().arena_bytes())),
            ("arena_bytes".into(), json!(self.model.arena_bytes())),
            ("peak_rss_bytes".into(), json!(summary::peak_rss_bytes())),
            ("loss_curve".into(), json!(curve)),
        ]);
        summary.into()
    }
}

fn finished(training: &Training, artifact: ArtifactHash, cached: bool, summary: Value) -> Progress {
    Progress::Finished {
        key: training.key.clone(),
        artifact: artifact.to_string(),
        cached,
        caveat: training.exported.and_then(|verified| verified.caveat()),
        summary,
    }
}

/// Refuses what would be killed for lack of memory. A checkpoint's copy lives
/// beside the arena while it is written; of a device's memory the device knows.
fn require_memory(plan: &Plan, memory: Option<&Memory>, elsewhere: bool) -> Result<(), Error> {
    let arena = if elsewhere { 0 } else { plan.arena_bytes() };
    let needed = arena + plan.segments.parameters + plan.segments.moments;
    match memory {
        Some(memory) if needed > memory.available => Err(Error::DoesNotFit {
            needed,
            available: memory.available,
            source_of_limit: memory
                .limit_source
                .clone()
                .unwrap_or_else(|| "free memory of the system".to_owned()),
        }),
        _ => Ok(()),
    }
}
