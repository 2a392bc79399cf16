//! From enrolment to the exit report.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use petaflop_agent_api::message::{Exit, State, Why};
use petaflop_agent_api::task::Task;
use petaflop_store::report::ProgressReader;
use rustix::process::Signal;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::command::{self, Ended, Running};
use crate::config::Config;
use crate::folders::Folders;
use crate::inputs::Trouble;
use crate::metadata::{Metadata, Word};
use crate::output::Output;
use crate::session::{SERVING, Session, Stop};
use crate::{
    accelerators, delivery, dial, host, inputs, pass, probes, server, ship, watch as look,
};

/// For output that a process outside the task's group may still hold open.
const OUTPUT_LIMIT: Duration = Duration::from_secs(2);

/// For an operator that was not told yet how the task ended, once the machine is to go.
const LAST_WORD: Duration = Duration::from_secs(3);

/// Why an agent could not be started.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its folder.
    #[error("work folder {}: {source}: give one that can be written to", path.display())]
    Work {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its port.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// An agent that is ready to be enrolled.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    session: Arc<Session>,
    output: Output,
    listener: Option<TcpListener>,
    task: oneshot::Receiver<Task>,
}

/// Asks an agent to end; clones ask the same one.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<Session>);

impl Stopper {
    /// As SIGTERM does: the task gets its own grace.
    pub fn drain(&self) {
        self.0.stop(Why::Drained, None);
    }

    /// As the provider does that gives notice of this long.
    pub fn notice(&self, left: Duration) {
        self.0.stop(Why::Notice, Some(left));
    }
}

impl Agent {
    /// Makes the work folder and begins to listen.
    ///
    /// # Errors
    /// What the machine refuses.
    pub async fn start(config: Config) -> Result<Self, AgentError> {
        let work = |source| AgentError::Work { path: config.work.clone(), source };
        fs::create_dir_all(&config.work).map_err(work)?;
        let output = Output::create(&config.work).map_err(work)?;
        let listener = match config.listen {
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .map_err(|source| AgentError::Listen { address, source })?,
            ),
            None => None,
        };
        let (session, task) = Session::new(&config, output.clone());
        Ok(Self { session: Arc::new(session), config, output, listener, task })
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.as_ref()?.local_addr().ok()
    }

    /// To end it from within this program.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.session.clone())
    }

    /// Enrols, runs its task, and returns how that ended, once somebody asks for the machine's end
    /// or its lease has run out. A future that is dropped leaves a running task behind.
    pub async fn run(self) -> Exit {
        let Self { config, session, output, listener, task } = self;
        let mut others = JoinSet::new();
        if let Some(listener) = listener {
            others.spawn(server::serve(listener, session.clone()));
        }
        if let Some(endpoint) = config.endpoint.clone() {
            others.spawn(dial::dial(endpoint, session.clone()));
        }
        if let Some(file) = config.lease.clone() {
            let deadlines = session.deadlines();
            others.spawn(async move { host::tell_deadlines(&file, deadlines).await });
        }
        let guarded = session.clone();
        let notice = config.notice.clone();
        let metadata = config.metadata.clone();
        others.spawn(async move {
            tokio::select! {
                () = guarded.orphaned() => guarded.stop(Why::Orphaned, None),
                left = noticed(notice.as_deref(), metadata.as_deref(), &guarded) => {
                    guarded.stop(Why::Notice, left);
                    // The lease goes on counting.
                    guarded.orphaned().await;
                    guarded.stop(Why::Orphaned, None);
                }
            }
        });

        let mut stops = session.stops();
        let task = tokio::select! {
            biased;
            task = task => task.ok(),
            _ = stops.wait_for(Option::is_some) => None,
        };
        let Some(mut task) = task else {
            let why = stops.borrow().map_or(Why::Terminated, |stop| stop.why);
            let exit = without_task(why, &config);
            session.set_state(State::Exited(exit.clone()));
            last_word(&session).await;
            return exit;
        };

        if let Some(told) = task.pass.as_ref().map(|pass| pass.told) {
            match pass::serve(&config.work, session.passes()).await {
                Ok((variables, served)) => {
                    others.spawn(served);
                    pass::tell(&mut task, variables, told);
                }
                // Then its command says that it cannot open the store.
                Err(error) => tracing::error!(%error, "what opens the store cannot be served"),
            }
        }
        let (ended, sees_end) = watch::channel(None);
        let shipping = task
            .log_sink
            .clone()
            .map(|sink| tokio::spawn(ship::ship(sink, output.clone(), sees_end)));
        let exit = supervise(&config, &session, &output, &task).await;
        let exit = match task.delivery.take() {
            None => exit,
            Some(delivery) => tokio::select! {
                biased;
                delivered = delivery::deliver(delivery, task.log_sink.take(), exit.clone()) => delivered,
                why = told_to_end(&session) => {
                    let message = "told to end while its result was delivered".to_owned();
                    Exit { why, message, report: None, ..exit }
                }
            },
        };
        session.set_state(State::Exited(exit.clone()));
        ended.send_replace(Some(exit.clone()));
        let shipped = async {
            if let Some(shipping) = shipping {
                let _ = shipping.await;
            }
        };
        // A machine that goes with its task's end would look like one that was lost, to an operator
        // that dies before it has written down what it heard. It is asked again as long as the
        // machine is there, and asks for its end when it knows.
        let asked = async {
            let _ = stops.wait_for(Option::is_some).await;
            last_word(&session).await;
        };
        tokio::join!(shipped, asked);
        exit
    }
}

/// Returns once the provider gave notice, by whatever way, with the time that it leaves where it
/// says so. That notice has become likely is told as progress.
async fn noticed(
    file: Option<&Path>,
    metadata: Option<&str>,
    session: &Session,
) -> Option<Duration> {
    let told = async {
        let Some(base) = metadata else { return std::future::pending().await };
        let mut metadata = Metadata::new(base);
        loop {
            match metadata.next().await {
                Word::Notice(left) => return left,
                Word::Rebalance(time) => {
                    let line = serde_json::json!({ "event": "rebalance", "noticeTime": time });
                    session.set_progress([("rebalance".to_owned(), line)]);
                }
            }
        }
    };
    tokio::select! {
        left = look::notice(file) => left.map(Duration::from_secs),
        left = told => Some(left),
    }
}

/// Stays a moment for an operator that was not told the end yet. Whoever takes the machine away
/// kills what is still there, and the exit code would be lost.
async fn last_word(session: &Session) {
    if session.is_enrolled() {
        let _ = tokio::time::timeout(LAST_WORD, session.exit_told()).await;
        // Its answer is still being written.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn without_task(why: Why, config: &Config) -> Exit {
    let message = match why {
        Why::Orphaned => format!(
            "nobody enrolled this agent within {} s, or its lease ran out before it had a task",
            config.enrol_within.as_secs()
        ),
        _ => "told to end before there was a task".into(),
    };
    Exit {
        why,
        code: None,
        signal: None,
        message,
        started_at: None,
        ended_at: config.clock.now(),
        report: None,
    }
}

/// Returns once somebody asks for the end, with why.
async fn told_to_end(session: &Session) -> Why {
    let mut stops = session.stops();
    let stop = stops.wait_for(Option::is_some).await;
    stop.ok().and_then(|stop| *stop).map_or(Why::Terminated, |stop| stop.why)
}

/// Runs the task to its end.
async fn supervise(config: &Config, session: &Session, output: &Output, task: &Task) -> Exit {
    let started_at = config.clock.now();
    let failed = |message: String| Exit {
        why: Why::NotStarted,
        code: None,
        signal: None,
        message,
        started_at: None,
        ended_at: config.clock.now(),
        report: None,
    };
    if let Some(promised) = &task.accelerators
        && let Some(lack) = accelerators::lack(promised, &config.facts, &config.root).await
    {
        return Exit { why: Why::NoAccelerator, ..failed(lack) };
    }
    // Absolute: a task may run in another folder.
    let work = match config.work.canonicalize() {
        Ok(work) => work,
        Err(e) => return failed(format!("work folder {}: {e}", config.work.display())),
    };
    if let Err(message) = write_files(task, &work) {
        return failed(message);
    }
    // They go with the command.
    let _folders = match Folders::make(&task.folders) {
        Ok(folders) => folders,
        Err(message) => return failed(message),
    };
    let brought = tokio::select! {
        biased;
        why = told_to_end(session) => {
            return Exit { why, ..failed("told to end while its inputs were fetched".into()) };
        }
        brought = inputs::bring(&task.inputs, &config.inputs, task.log_sink.as_ref()) => brought,
    };
    match brought {
        Ok(()) => {}
        Err(Trouble::Lasting(message)) => return Exit { why: Why::BadInput, ..failed(message) },
        Err(Trouble::Passing(message)) => return failed(message),
    }
    let (running, pipe) = match command::start(task, &work, config) {
        Ok(started) => started,
        Err(message) => return failed(message),
    };
    let reading = match output.take(pipe, config.alone.then(io::stdout)) {
        Ok(reading) => reading,
        Err(e) => {
            running.signal(Signal::KILL);
            let _ = running.ended().await;
            return failed(format!("cannot start a thread: {e}"));
        }
    };
    session.set_state(State::Running);

    let mut progress = ProgressReader::new(work.join(&task.progress));
    let mut report = None;
    let mut follow = || {
        let lines = look::progress(&mut progress);
        report = lines
            .last()
            .and_then(|(_, value, line)| line.is_last().then(|| value.clone()))
            .or(report.take().filter(|_| lines.is_empty()));
        let lines = lines.into_iter().map(|(event, value, _)| (event, value));
        // What is asked does not say it itself.
        let asked = task.server.is_some();
        session.set_progress(lines.filter(|(event, _)| !asked || event != SERVING));
    };
    let Waited { ended, stop, unhealthy } =
        wait(config, session, task, &running, &mut follow).await;
    // What it wrote last is in the pipe and in the file.
    let patience = tokio::time::Instant::now() + OUTPUT_LIMIT;
    while !reading.is_finished() && tokio::time::Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    follow();

    let ended = match ended {
        Ok(ended) => ended,
        Err(e) => {
            running.signal(Signal::KILL);
            return failed(format!("cannot wait for the command: {e}"));
        }
    };
    let why = stop.map_or(Why::Finished, |stop| stop.why);
    Exit {
        why,
        code: ended.code,
        signal: ended.signal,
        message: in_words(why, unhealthy, ended),
        started_at: Some(started_at),
        ended_at: config.clock.now(),
        report,
    }
}

/// How a command came to its end.
struct Waited {
    ended: io::Result<Ended>,
    /// Why it was brought about, where it was.
    stop: Option<Stop>,
    /// Which probe failed, where one did.
    unhealthy: Option<String>,
}

/// Waits for the command's end, and brings it about where that is asked for, or where a probe of its
/// fails too often.
async fn wait(
    config: &Config,
    session: &Session,
    task: &Task,
    running: &Running,
    follow: &mut impl FnMut(),
) -> Waited {
    let mut stops = session.stops();
    if stops.borrow().is_some() {
        // It came while the command was being started.
        stops.mark_changed();
    }
    let mut stop: Option<Stop> = None;
    let (mut asked, mut forced) = (false, false);
    let mut ended = std::pin::pin!(running.ended());
    let mut probes = std::pin::pin!(async {
        match &task.server {
            Some(server) => probes::follow(server, session).await,
            None => std::future::pending().await,
        }
    });
    let mut unhealthy = None;
    let mut look = tokio::time::interval(look::LOOK_EVERY);
    loop {
        let next = async {
            match stop {
                Some(stop) if !asked => config.clock.sleep_until(ask_at(task, stop)).await,
                Some(stop) if !forced => config.clock.sleep_until(stop.force_at).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            ended = &mut ended => return Waited { ended, stop, unhealthy },
            Ok(_) = stops.changed() => {
                if stop.is_none() {
                    session.set_state(State::Draining);
                }
                stop = *stops.borrow_and_update();
            }
            () = next => {
                running.signal(if asked { Signal::KILL } else { Signal::TERM });
                (asked, forced) = (true, asked);
            }
            why = &mut probes, if unhealthy.is_none() => {
                tracing::warn!("{why}");
                unhealthy = Some(why);
                let grace = Duration::from_secs(task.grace_seconds);
                let force_at = config.clock.boottime().saturating_add(grace);
                stop.get_or_insert(Stop { why: Why::Unhealthy, force_at });
            }
            _ = look.tick() => follow(),
        }
    }
}

/// When a command is asked to end (time since boot): at once. What serves goes on through the
/// provider's notice, up to its own grace: that is the time in which another is brought up.
fn ask_at(task: &Task, stop: Stop) -> Duration {
    match stop.why {
        Why::Notice if task.relay.is_some() => {
            stop.force_at.saturating_sub(Duration::from_secs(task.grace_seconds))
        }
        _ => Duration::ZERO,
    }
}

fn write_files(task: &Task, work: &Path) -> Result<(), String> {
    for file in &task.files {
        let path = work.join(&file.path);
        let write = || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&path, &file.bytes)
        };
        write().map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    Ok(())
}

fn in_words(why: Why, unhealthy: Option<String>, ended: Ended) -> String {
    let how = match (ended.code, ended.signal) {
        (Some(code), _) => format!("the command ended with code {code}"),
        (None, Some(signal)) => format!("the command was ended by signal {signal}"),
        (None, None) => "the command ended".into(),
    };
    match why {
        Why::Finished
        | Why::NotStarted
        | Why::NoAccelerator
        | Why::BadInput
        | Why::NotDelivered
        | Why::BadDelivery => how,
        Why::Drained => format!("asked to end; {how}"),
        Why::Notice => format!("the provider takes the machine away; {how}"),
        Why::Terminated => format!("ended at once on request; {how}"),
        Why::Orphaned => format!("the lease ran out; {how}"),
        Why::Unhealthy => format!("{}; {how}", unhealthy.unwrap_or_default()),
    }
}
