//! A job of seconds, and the real binary to run it.
#![allow(dead_code, reason = "each test file uses its own share")]

use std::{
    fs,
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use petaflop_plan::{
    recipe::{
        Dataset, DatasetKind, Decay, Export, Input, JobSpec, ModelSource, Optimizer, Precision,
        ResolvedRecipe, Schedule, TokenizerSource, TrainingLength,
    },
    shape::{ModelShape, Rope, RopeScaling},
};
use petaflop_store::{
    blocking::Store,
    report::{Progress, ProgressReader},
};

/// Nothing here takes nearly as long, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder with data, and a job over it.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
    pub(crate) job: JobSpec,
}

impl Bench {
    /// A job of so many steps over a few files of text.
    pub(crate) fn new(steps: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        for file in 0..12u64 {
            let lines = (0..40).map(|line| {
                let (a, b) = (file * 7 + line % 13, line * 3 + file % 5);
                format!("{a} plus {b} is {}, and {a} times {b} is {}.\n", a + b, a * b)
            });
            fs::write(data.join(format!("{file:02}.txt")), lines.collect::<String>()).unwrap();
        }
        let path = |name: &str| dir.path().join(name).display().to_string();
        let job = JobSpec {
            recipe: recipe(steps),
            inputs: vec![Input { name: "data".into(), uri: path("data"), digest: None }],
            store: path("store"),
            result: None,
            checkpoints: path("checkpoints"),
            checkpoint_interval_seconds: 3600,
            keep_checkpoints: 2,
        };
        Self { dir, job }
    }

    /// The same with steps that take longer than a checkpoint, so that it can be interrupted between them.
    pub(crate) fn slow(steps: u64) -> Self {
        let mut bench = Self::new(steps);
        let ModelSource::Scratch(shape) = &mut bench.job.recipe.model else {
            panic!("recipe() is from scratch")
        };
        (shape.layers, shape.hidden, shape.head_dim, shape.intermediate) = (4, 128, 32, 384);
        bench.job.recipe.micro_batch_size = 16;
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Forgets everything but the data.
    pub(crate) fn fresh(&mut self, name: &str) {
        self.job.store = self.path(&format!("store-{name}")).display().to_string();
        self.job.checkpoints = self.path(&format!("checkpoints-{name}")).display().to_string();
        let _ = fs::remove_file(self.path("progress"));
    }

    pub(crate) fn write_job(&self) -> PathBuf {
        let path = self.path("job.json");
        fs::write(&path, serde_json::to_vec_pretty(&self.job).unwrap()).unwrap();
        path
    }

    /// `petaflop-runtime train` over the job, ready to start.
    pub(crate) fn command(&self, flags: &[&str]) -> Command {
        let mut command = runtime(&["train"]);
        command
            .arg("--job")
            .arg(self.write_job())
            .arg("--progress")
            .arg(self.path("progress"))
            .args(flags);
        command
    }

    pub(crate) fn train(&self, flags: &[&str]) -> Ended {
        let _ = fs::remove_file(self.path("progress"));
        self.ended(self.command(flags).output().unwrap())
    }

    pub(crate) fn start(&self, flags: &[&str]) -> Started<'_> {
        self.start_command(self.command(flags))
    }

    pub(crate) fn start_command(&self, mut command: Command) -> Started<'_> {
        let _ = fs::remove_file(self.path("progress"));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Started {
            bench: self,
            child,
            reader: ProgressReader::new(self.path("progress")),
            seen: Vec::new(),
        }
    }

    pub(crate) fn ended(&self, output: Output) -> Ended {
        let progress = ProgressReader::new(self.path("progress")).poll().unwrap();
        Ended {
            code: output.status.code(),
            signal: output.status.signal(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            progress,
        }
    }

    /// How many artifacts its store holds.
    pub(crate) fn artifacts(&self) -> usize {
        Store::open(&self.job.store).unwrap().list().unwrap().len()
    }
}

/// The binary under test.
pub(crate) fn runtime(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_petaflop-runtime"));
    command
        .args(args)
        .env_remove("PETAFLOP_ISA")
        .env_remove("PETAFLOP_THREADS")
        .env_remove("PETAFLOP_DEVICE")
        .env("PETAFLOP_LOG", "warn");
    command
}

/// A runtime at work.
pub(crate) struct Started<'a> {
    bench: &'a Bench,
    pub(crate) child: Child,
    reader: ProgressReader,
    seen: Vec<Progress>,
}

impl Started<'_> {
    /// Waits for a line that fits.
    pub(crate) fn wait_for(&mut self, what: &str, fits: impl Fn(&Progress) -> bool) {
        let start = Instant::now();
        loop {
            let lines = self.reader.poll().unwrap();
            let found = lines.iter().any(&fits);
            self.seen.extend(lines);
            if found {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "no {what} in {:?}", self.seen);
            assert!(
                self.child.try_wait().unwrap().is_none(),
                "ended before {what}: {:?}",
                self.seen
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn wait_for_checkpoint(&mut self, at_least: u64) {
        self.wait_for(
            "checkpoint",
            |line| matches!(line, Progress::Checkpoint { step, .. } if *step >= at_least),
        );
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status =
            Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn end(self) -> Ended {
        self.bench.ended(self.child.wait_with_output().unwrap())
    }
}

/// What a run left.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) progress: Vec<Progress>,
}

impl Ended {
    /// The artifact of a run that ended well, and whether it was there before.
    pub(crate) fn artifact(&self) -> (String, bool) {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert_eq!(self.stdout, "", "stdout is for machines");
        match self.progress.last() {
            Some(Progress::Finished { artifact, cached, .. }) => (artifact.clone(), *cached),
            other => panic!("expected Finished, found {other:?}"),
        }
    }

    /// The step it went on from.
    pub(crate) fn began_at(&self) -> u64 {
        let mut started = self.progress.iter().filter_map(|line| match line {
            Progress::Started { from_step, .. } => Some(*from_step),
            _ => None,
        });
        started.next_back().unwrap_or_else(|| panic!("never started: {self:?}"))
    }

    /// The message of a run that failed with this code; the same on stderr and in the progress file.
    pub(crate) fn failure(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{self:?}");
        match self.progress.last() {
            Some(Progress::Failed { message, retry }) => {
                assert!(self.stderr.contains(message.as_str()), "{self:?}");
                assert_eq!(*retry, matches!(code, 1 | 4), "{message}");
                message
            }
            other => panic!("expected Failed, found {other:?}"),
        }
    }
}

fn recipe(steps: u64) -> ResolvedRecipe {
    let vocab = 300;
    ResolvedRecipe {
        model: ModelSource::Scratch(ModelShape {
            layers: 2,
            hidden: 32,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            intermediate: 64,
            vocab,
            max_positions: 64,
            norm_eps: 1e-5,
            rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
            tied_embeddings: true,
            qkv_bias: false,
            qk_norm: false,
        }),
        tokenizer: TokenizerSource::TrainBpe { vocab },
        datasets: vec![Dataset { input: "data".into(), kind: DatasetKind::Completion }],
        val_set_size: 0.1,
        sequence_len: 32,
        micro_batch_size: 2,
        gradient_accumulation_steps: 2,
        length: TrainingLength::Steps(steps),
        optimizer: Optimizer::Adamw { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 },
        learning_rate: 3e-3,
        schedule: Schedule { warmup_steps: steps.min(2), decay: Decay::Cosine, min_ratio: 0.1 },
        max_grad_norm: 1.0,
        seed: 42,
        precision: Precision::F32,
        output: Export::Safetensors,
    }
}

/// Says loudly that a check needs hardware that is not here.
pub(crate) fn not_run(what: &str, why: &str) {
    // Not by a macro, whose output the test harness swallows.
    let _ = writeln!(std::io::stderr(), "\n##### NOT RUN HERE: {what}: {why} #####");
}

/// Says loudly that a check needs what this machine may not do, rather than what it lacks;
/// in CI it must be allowed.
pub(crate) fn not_tested(what: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "\n##### NOT TESTED: {what}: {why} #####");
    assert!(
        std::env::var_os("CI").is_none(),
        "where CI is set, what is not tested is a failure: {what}: {why}"
    );
}

/// A folder of its own file system, unmounted when dropped; none where mounting is not allowed.
pub(crate) struct Tmpfs(PathBuf);

impl Tmpfs {
    pub(crate) fn mount(at: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(at)
            .stderr(Stdio::null())
            .status()
            .ok()?;
        status.success().then(|| Self(at.to_owned()))
    }

    pub(crate) fn remount(&self, options: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(&self.0)
            .status()
            .unwrap();
        assert!(status.success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
