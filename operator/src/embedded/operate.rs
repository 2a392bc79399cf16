//! The embedded operator: observe → decide → act → record, for one job or service,
//! in a process of its own that outlives the terminal.
//!
//! Everything it knows is in files: killed at any line, it goes on from them when it
//! is started again. One process at a time works for a job (`operator.lock`).

mod moves;
mod rented;
mod runs;

use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::{Identity, Phase as ClaimPhase};
use petaflop_arbiter::launch::Wanted;
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::workload::OwnerKind;
use petaflop_providers::{Command, EnrolmentToken, InstanceState, Machine, Work, host};
use petaflop_store::report::ProgressReader;

use crate::act::{self, ActError, Actor, Driven, left_alone_for};
use crate::claims::{Claims, ClaimsError, StoredClaim};
use crate::embedded::claims::FileClaims;
use crate::embedded::config::Config;
use crate::embedded::elsewhere::Elsewhere;
use crate::embedded::home::{Home, HomeError};
use crate::embedded::job::{Admission, End, Folder, Phase, Status, Task};
use crate::embedded::observe::{self, Providers};
use crate::embedded::place::{PlaceError, place};
use crate::embedded::runtime::{self, RuntimeError};
use crate::embedded::{command, publish};
use crate::learned::Lesson;
use crate::ledger::Ledger;
use crate::restart::not_before;

use crate::status::LastWord;

/// Between two looks while something runs.
const LOOK: Duration = Duration::from_millis(150);

/// Between two placement passes while there is no place.
const PLACE_AGAIN: SignedDuration = SignedDuration::from_secs(10);

/// A ledger row at least this often while something runs.
const CHARGE: SignedDuration = SignedDuration::from_secs(60);

/// Machines that could not be had, in a row, after which it fails.
const MOST_REFUSALS: u32 = 5;

/// Why the operator stopped before its work was done. It can be started again.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// The home refuses.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The claims refuse.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    /// The ledger refuses.
    #[error(transparent)]
    Ledger(#[from] crate::ledger::Error),
    /// A claim could not be driven on.
    #[error(transparent)]
    Act(#[from] ActError),
    /// The runtime is nowhere.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// There is no such job or service.
    #[error("{0} does not exist")]
    Missing(String),
}

/// Works for a job or service until it is over. Returns at once when another process does.
pub async fn operate(home: &Home, folder: &Folder) -> Result<(), OperateError> {
    // Whoever only asks whether somebody is at work holds the lock for a moment.
    let mut lock = None;
    for _ in 0..20 {
        lock = folder.try_operate()?;
        if lock.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let Some(_lock) = lock else { return Ok(()) };
    let admission = folder.admission()?.ok_or_else(|| OperateError::Missing(folder.reference()))?;
    let runtime = runtime::find()?;
    let (config, clock) = (Config::read(home)?, Clock::system());
    let providers = Providers::of(home, &config, runtime.clone())?;
    let elsewhere = Elsewhere::of(home, &config, clock.clone())?;
    let mut operator = Operator {
        token: token(elsewhere.as_ref()),
        elsewhere,
        home,
        folder,
        claims: FileClaims::of(home),
        ledger: home.ledger()?,
        clock,
        status: folder.status()?,
        admission,
        providers,
        runtime,
        reading: None,
        charged: Timestamp::UNIX_EPOCH,
        placed: Timestamp::UNIX_EPOCH,
        looked_around: Timestamp::UNIX_EPOCH,
        rests: None,
        others: None,
    };
    operator.run().await
}

struct Operator<'a> {
    home: &'a Home,
    folder: &'a Folder,
    claims: FileClaims,
    ledger: Ledger,
    clock: Clock,
    admission: Admission,
    status: Status,
    providers: Providers,
    /// Where machines are rented too.
    elsewhere: Option<Elsewhere>,
    token: Token,
    runtime: std::path::PathBuf,
    /// Progress of the claim that is read now.
    reading: Option<(String, ProgressReader, LastWord)>,
    charged: Timestamp,
    placed: Timestamp,
    /// When a better place was looked for last.
    looked_around: Timestamp,
    /// Until when nothing is asked for again that was refused for now.
    rests: Option<Timestamp>,
    /// A claim, and what all others have cost.
    others: Option<(String, petaflop_arbiter::money::Usd)>,
}

type Token = Box<dyn Fn(&Identity) -> EnrolmentToken + Send + Sync>;

fn token(elsewhere: Option<&Elsewhere>) -> Token {
    match elsewhere.map(Elsewhere::installation) {
        Some(installation) => Box::new(move |identity| installation.token(identity)),
        None => Box::new(|_| EnrolmentToken::unused()),
    }
}

/// What a claim's machine does.
enum Doing {
    /// It is a process of this host.
    Process(Command),
    /// It is elsewhere, with an agent that is told what to run.
    Machine(Box<Machine>),
}

impl Doing {
    fn work(&self) -> Work<'_> {
        match self {
            Self::Process(command) => Work::Process(command),
            Self::Machine(machine) => Work::Machine(machine),
        }
    }
}

impl Operator<'_> {
    async fn run(&mut self) -> Result<(), OperateError> {
        loop {
            let before = self.status.clone();
            let over = self.pass().await?;
            if self.status != before {
                self.folder.write_status(&self.status)?;
            }
            if over {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One pass. Returns whether there is nothing left to do.
    async fn pass(&mut self) -> Result<bool, OperateError> {
        let suspend = self.folder.intent()?.suspend;
        let claims: Vec<StoredClaim> = self
            .claims
            .list()
            .await?
            .into_iter()
            .filter(|stored| stored.claim.spec.owner.uid == self.admission.uid)
            .collect();
        if claims.is_empty() {
            return self.without_a_claim(suspend).await;
        }
        for stored in claims {
            self.with_a_claim(stored, suspend).await?;
        }
        Ok(false)
    }

    async fn without_a_claim(&mut self, suspend: bool) -> Result<bool, OperateError> {
        if let Some(End { phase, reason, message }) = self.status.end.clone() {
            self.status.phase = phase;
            self.status.reason = Some(reason);
            self.status.message = message;
            if let (Phase::Complete, Task::Training(task), Some(artifact), Some(elsewhere)) =
                (phase, &self.admission.task, &self.status.artifact, &self.elsewhere)
                && let Err(error) =
                    elsewhere.bring_home(self.home, &self.admission.uid, artifact, task).await
            {
                self.status.phase = Phase::Failed;
                self.status.reason = Some(Reason::InvalidSpec);
                self.status.message = error;
            }
            // No machine is paid for any more while it is copied.
            if let (Phase::Complete, Task::Training(task), Some(artifact)) =
                (phase, &self.admission.task, &self.status.artifact)
                && let Some(output) = &task.spec.output.uri
                && let Err(error) = publish::copy(self.home, artifact, &task.key, output).await
            {
                self.status.phase = Phase::Failed;
                self.status.reason = Some(Reason::InvalidSpec);
                self.status.message = error.to_string();
            }
            self.status.completed.get_or_insert_with(|| self.clock.now());
            return Ok(true);
        }
        if suspend {
            self.status.phase = Phase::Suspended;
            self.status.reason = Some(Reason::Suspended);
            self.status.message.clear();
            self.status.started = None;
            return Ok(true);
        }
        let now = self.clock.now();
        let too_soon = self.status.not_before.is_some_and(|at| now < at)
            || now.duration_since(self.placed) < PLACE_AGAIN;
        if too_soon {
            return Ok(false);
        }
        self.placed = now;
        self.status.phase = Phase::Pending;
        match place(self.home, &self.providers, self.folder, &self.admission, &mut self.status)
            .await
        {
            Ok(placed) if !placed.claims.is_empty() => {
                self.status.phase = Phase::Launching;
                // The next need not wait after this one.
                self.placed = Timestamp::UNIX_EPOCH;
            }
            Ok(_) => {
                // Limits of the manifest's own, which no waiting moves.
                let limits = [Reason::CostLimitExceeded, Reason::SpotInterrupted];
                if let Some(reason) = self.status.reason.filter(|reason| limits.contains(reason)) {
                    let message = self.status.message.clone();
                    self.end(Phase::Failed, reason, &message);
                }
            }
            Err(PlaceError::Home(error)) => return Err(error.into()),
            Err(PlaceError::Claims(error)) => return Err(error.into()),
            Err(PlaceError::Spec(message)) => {
                self.end(Phase::Failed, Reason::InvalidSpec, &message)
            }
            Err(PlaceError::NoOffers(message)) => {
                self.status.reason = Some(Reason::ProviderUnavailable);
                self.status.message = message;
            }
        }
        Ok(false)
    }

    async fn with_a_claim(
        &mut self,
        stored: StoredClaim,
        suspend: bool,
    ) -> Result<(), OperateError> {
        let name = stored.claim.spec.name.clone();
        self.read_progress(&name);
        let doing = self.doing(&stored)?;
        let mut stored = stored;
        if let ClaimPhase::Launched { at, .. } = stored.claim.phase {
            stored = match &doing {
                Doing::Process(_) => self.here(stored, at, &doing).await?,
                Doing::Machine(_) => self.rented(stored, at, suspend, &doing).await?,
            };
        }
        let wanted = self.wanted(&stored, suspend);
        // What was concluded must outlive us before the claim that shows it goes.
        self.folder.write_status(&self.status)?;
        let rests = self.rests.is_some_and(|until| self.clock.now() < until);
        if rests && stored.claim.phase == ClaimPhase::Planned && wanted == Wanted::Yes {
            return Ok(());
        }
        if wanted != Wanted::Yes && self.still_saves(&stored) {
            return Ok(());
        }
        let (driven, refusal) = self.actor(&stored, &doing).drive(stored, wanted).await?;
        match driven {
            Driven::Steady(_) | Driven::Gone => {}
            // Why it was interrupted says more than that its machine is still being ended.
            Driven::Waiting(..) if self.status.phase == Phase::Interrupted => {}
            Driven::Waiting(_, reason) => self.status.reason = Some(reason),
            Driven::Over(stored, reason) => self.claim_is_over(&stored, reason).await?,
        }
        if let Some(error) = refusal {
            self.status.message = error.to_string();
            let rest = act::rest(&error).and_then(|wait| SignedDuration::try_from(wait).ok());
            self.rests = rest.map(|rest| self.clock.now() + rest);
            if let (Some(wait), Some(place)) = (left_alone_for(&error), &self.status.place) {
                let until = self.clock.now() + SignedDuration::try_from(wait).unwrap_or(CHARGE);
                let offer = petaflop_arbiter::offer::OfferId(place.offer.clone());
                observe::leave_alone(self.home, &offer, until, error.reason())?;
            }
        }
        Ok(())
    }

    /// What a claim's machine is to do.
    fn doing(&self, stored: &StoredClaim) -> Result<Doing, HomeError> {
        let elsewhere = self.elsewhere.as_ref();
        if stored.claim.spec.offer.provider != host::NAME
            && let Some(machine) =
                elsewhere.and_then(|there| there.machine(&self.admission, stored))
        {
            return Ok(Doing::Machine(Box::new(machine)));
        }
        let Self { home, folder, admission, runtime, .. } = self;
        Ok(Doing::Process(command::of(home, folder, admission, runtime, elsewhere, stored)?))
    }

    /// A process of this host was launched.
    async fn here(
        &mut self,
        mut stored: StoredClaim,
        at: Timestamp,
        doing: &Doing,
    ) -> Result<StoredClaim, OperateError> {
        let instance = self.actor(&stored, doing).instance(&stored).await?;
        match instance.map(|instance| instance.state) {
            Some(InstanceState::Running | InstanceState::Pending) => {
                stored = self.charge(stored, doing).await?;
                self.runs(&stored, at).await;
            }
            Some(InstanceState::Terminating) => {}
            Some(InstanceState::Terminated) | None => {
                // Its last words may have been written since they were last read.
                self.read_progress(&stored.claim.spec.name);
                self.count_end(&stored.claim.spec.name);
            }
        }
        Ok(stored)
    }

    /// A row of the ledger, if it is time for one.
    async fn charge(
        &mut self,
        stored: StoredClaim,
        doing: &Doing,
    ) -> Result<StoredClaim, OperateError> {
        let now = self.clock.now();
        if now.duration_since(self.charged) < CHARGE {
            return Ok(stored);
        }
        self.charged = now;
        Ok(self.actor(&stored, doing).charge(stored).await?)
    }

    /// Who takes a claim through the protocol.
    fn actor<'a>(&'a self, stored: &StoredClaim, doing: &'a Doing) -> Actor<'a> {
        Actor {
            installation: self.home.installation(),
            claims: &self.claims,
            ledger: &self.ledger,
            beside: &|_| {},
            budgets: None,
            provider: self.providers.seller(&stored.claim.spec.offer.provider),
            work: Some(doing.work()),
            token: &*self.token,
            leads: &|| true,
            heard: self.elsewhere.as_ref().and_then(|elsewhere| elsewhere.heard_at(stored)),
            grace: self.grace(),
            clock: &self.clock,
        }
    }

    /// What its command is given to end by itself.
    fn grace(&self) -> SignedDuration {
        match &self.admission.task {
            Task::Training(task) => {
                SignedDuration::from_secs(i64::from(task.spec.checkpoint.grace_seconds))
            }
            _ => SignedDuration::from_mins(10),
        }
    }

    /// Money is booked, what was learned is kept, the finalizer goes.
    async fn claim_is_over(
        &mut self,
        stored: &StoredClaim,
        reason: Reason,
    ) -> Result<(), OperateError> {
        let spec = &stored.claim.spec;
        // It may have ended between two looks, or while it was being told to: its last word counts.
        self.read_progress(&spec.name);
        let finished = matches!(&self.reading, Some((_, _, LastWord::Finished { .. })));
        let ran = stored.billed_from.is_some();
        // Ended because we wanted it so: nothing was lost.
        let ours = reason == Reason::Suspended || self.status.leaves(&spec.name).is_some();
        if ran && self.status.end.is_none() && (finished || !ours) {
            self.count_end(&spec.name);
        }
        // What is sold out is left alone, and the next is tried at once: a market has many.
        let sold_out = [Reason::InsufficientCapacity, Reason::PriceChanged].contains(&reason);
        if !ran && self.status.end.is_none() && reason != Reason::Suspended && !sold_out {
            self.status.refusals += 1;
            if self.status.refusals >= MOST_REFUSALS || reason == Reason::InvalidSpec {
                let message = match self.status.message.as_str() {
                    "" => "no machine could be had".to_owned(),
                    said => said.to_owned(),
                };
                self.end(Phase::Failed, reason, &message);
            } else {
                self.status.not_before = Some(not_before(self.clock.now(), self.status.refusals));
            }
        }
        let said = self.status.summary.as_ref();
        let rate = said.and_then(|said| said.get("tokens_per_second")?.as_f64());
        if let (Task::Training(task), Some(rate), true) = (&self.admission.task, rate, finished)
            && let Some(lesson) = Lesson::of(spec, &task.work, rate)
        {
            observe::learn(self.home, &lesson)?;
        }
        self.status.cost = self.cost().await?;
        // The cost is in the status before the claim goes: crashed here, the sum is made again.
        self.folder.write_status(&self.status)?;
        self.claims.release(stored).await?;
        if let (Some(elsewhere), true) = (&mut self.elsewhere, spec.offer.provider != host::NAME) {
            elsewhere.bring_log(stored, &self.folder.run(&spec.name), true).await;
            elsewhere.forget(stored);
        }
        self.reading = None;
        Ok(())
    }

    fn wanted(&self, stored: &StoredClaim, suspend: bool) -> Wanted {
        if let Some(end) = &self.status.end {
            return Wanted::No(end.reason);
        }
        if suspend {
            return Wanted::No(Reason::Suspended);
        }
        if self.status.counted.as_deref() == Some(stored.claim.spec.name.as_str()) {
            return Wanted::No(self.status.reason.unwrap_or(Reason::HeartbeatLost));
        }
        if let Some(reason) = self.status.leaves(&stored.claim.spec.name) {
            return Wanted::No(reason);
        }
        Wanted::Yes
    }
}

/// Starts the operator of a job or service as a process of its own, unless one is at work.
pub fn start(home: &Home, folder: &Folder) -> Result<(), HomeError> {
    if folder.is_operated() {
        return Ok(());
    }
    let log_path = folder.root().join("operator.log");
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(HomeError::unusable(&log_path))?;
    let errors = log.try_clone().map_err(HomeError::unusable(&log_path))?;
    let me = std::env::current_exe().map_err(HomeError::unusable(Path::new("/proc/self/exe")))?;
    let kind = match folder.kind {
        OwnerKind::TrainingJob => "job",
        OwnerKind::InferenceService => "service",
    };
    std::process::Command::new(&me)
        .arg("operate")
        .args(["--kind", kind, "--namespace", &folder.namespace, "--name", &folder.name])
        .env("PETAFLOP_HOME", home.root())
        .stdin(std::process::Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map(drop)
        .map_err(HomeError::unusable(&me))
}
