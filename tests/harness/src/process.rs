//! One process of the cluster: started, paused, killed, started again.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::command::tail;
use crate::error::{Error, Result};
use crate::state::State;

/// A process that is told to stop has stopped long before this.
const STOPS: Duration = Duration::from_secs(5);

/// Whether none of its threads runs.
fn has_stopped(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    let stat = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("stat"));
    // The state comes after the name, which is in brackets and may hold anything.
    let runs =
        |stat: String| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('T'));
    !threads.flatten().any(|thread| stat(thread).is_ok_and(runs))
}

/// How to start a program.
#[derive(Clone, Debug)]
pub struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Launch {
    /// By its path, or by its name where that is on the `PATH`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), arguments: Vec::new(), environment: Vec::new() }
    }

    /// With one more argument.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// With more arguments.
    #[must_use]
    pub fn arguments<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// With this in its environment, beside what the test process has there.
    #[must_use]
    pub fn environment(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }
}

/// A process of the cluster. Killed when dropped, and by the guardian of its
/// folder when the test process dies before that.
#[derive(Debug)]
pub struct Component {
    name: String,
    launch: Launch,
    /// The program is the only child of what was started (`nsenter`).
    wrapped: bool,
    state: Arc<State>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// Whom signals go to.
    program: Pid,
}

impl Component {
    pub(crate) fn start(name: &str, launch: Launch, state: &Arc<State>) -> Result<Self> {
        Self::start_as(name, launch, state, false)
    }

    /// For a program that the one started runs as its child.
    pub(crate) fn start_wrapped(name: &str, launch: Launch, state: &Arc<State>) -> Result<Self> {
        Self::start_as(name, launch, state, true)
    }

    fn start_as(name: &str, launch: Launch, state: &Arc<State>, wrapped: bool) -> Result<Self> {
        let component = Self {
            name: name.to_owned(),
            launch,
            wrapped,
            state: Arc::clone(state),
            running: Mutex::new(None),
        };
        component.restart()?;
        Ok(component)
    }

    /// The name, as in `kube-apiserver`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it writes what it has to say, over all its starts.
    pub fn log(&self) -> PathBuf {
        self.state.path("log").join(&self.name)
    }

    /// The process id of the last start, until it is killed.
    pub fn pid(&self) -> Option<u32> {
        self.lock().as_ref().map(|running| running.program.as_raw_nonzero().get().unsigned_abs())
    }

    /// Whether the process is there, paused or not.
    pub fn is_up(&self) -> bool {
        let mut running = self.lock();
        let Some(process) = running.as_mut() else { return false };
        let up = matches!(process.child.try_wait(), Ok(None));
        if !up {
            self.state.strike(process.child.id());
        }
        up
    }

    /// Whether it should be there: started, and not killed or stopped by us.
    pub(crate) fn is_wanted(&self) -> bool {
        self.lock().is_some()
    }

    /// Stops it in its tracks (SIGSTOP): connections stay open, nothing answers.
    ///
    /// # Errors
    /// It is not running.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        // A signal is sent before it is heeded: meanwhile other threads may answer.
        let asked = Instant::now();
        while self.pid().is_some_and(|pid| !has_stopped(pid)) && asked.elapsed() < STOPS {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// It is not running.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Kills it (SIGKILL) and waits until it is gone, so that its port is free.
    /// One that is not running stays so.
    pub fn kill(&self) {
        if let Some(mut process) = self.lock().take() {
            // Its number may belong to another by now if it ended by itself.
            if matches!(process.child.try_wait(), Ok(None)) {
                let _ = kill_process(process.program, Signal::KILL);
            }
            let _ = process.child.wait();
            self.state.strike(process.child.id());
        }
    }

    /// Asks it to end (SIGTERM), waits for it, and kills it after `patience`.
    pub fn stop(&self, patience: Duration) {
        if self.signal(Signal::TERM).is_ok() {
            let asked = Instant::now();
            while self.is_up() && asked.elapsed() < patience {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        self.kill();
    }

    /// Starts it with the same arguments; kills it first if it runs. It is not
    /// necessarily ready when this returns.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn restart(&self) -> Result<()> {
        self.kill();
        let mut running = self.lock();
        let log = self.log();
        let open = || File::options().create(true).append(true).open(&log);
        let output = open().and_then(|file| Ok((file.try_clone()?, file)));
        let (stdout, stderr) = output.map_err(Error::io(log.display().to_string()))?;
        let child = Command::new(&self.launch.program)
            .args(&self.launch.arguments)
            .envs(self.launch.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.state.path(""))
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .map_err(Error::io(format!("starting {}", self.launch.program.display())))?;
        self.state.enter(child.id())?;
        let program = if self.wrapped { self.only_child(child.id())? } else { child.id() };
        let program = Pid::from_raw(program.cast_signed())
            .ok_or_else(|| Error::Unfit(format!("{}: process id 0", self.name)))?;
        *running = Some(Running { child, program });
        Ok(())
    }

    /// An error with the end of the log, for one that should be running.
    ///
    /// # Errors
    /// [`Error::Ended`] if it is not.
    pub fn must_be_up(&self) -> Result<()> {
        if self.is_up() {
            return Ok(());
        }
        Err(Error::Ended { name: self.name.clone(), log: self.log(), tail: self.log_tail() })
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let bytes = std::fs::read(self.log()).unwrap_or_default();
        tail(&String::from_utf8_lossy(&bytes)).to_owned()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        if self.is_wanted() {
            self.must_be_up()?;
        }
        let running = self.lock();
        let Some(process) = running.as_ref() else {
            return Err(Error::Unfit(format!("{} is not running", self.name)));
        };
        kill_process(process.program, signal)
            .map_err(|errno| Error::Io { what: self.name.clone(), source: errno.into() })
    }

    /// The child of a wrapper; it appears within milliseconds.
    fn only_child(&self, wrapper: u32) -> Result<u32> {
        let list = format!("/proc/{wrapper}/task/{wrapper}/children");
        let asked = Instant::now();
        loop {
            let children = std::fs::read_to_string(&list).unwrap_or_default();
            if let Some(child) = children.split_whitespace().next().and_then(|id| id.parse().ok()) {
                return Ok(child);
            }
            if asked.elapsed() > Duration::from_secs(10) {
                let tail = self.log_tail();
                return Err(Error::Ended { name: self.name.clone(), log: self.log(), tail });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        self.kill();
    }
}
