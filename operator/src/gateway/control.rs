//! The operator's line to a gateway, on the second port: it learns what the gateway knows, and tells
//! it where the replicas are. Whoever else reaches the port learns and changes nothing; a gateway that
//! hears nothing goes on with what it was told last. The messages are [`petaflop_agent_api::gateway`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::gateway::{DRAINED_AT_ONCE, Known, Told};
use petaflop_agent_api::keys::{NoisePublic, NoiseSecret};
use petaflop_agent_api::message::{LONGEST_WAIT, MessageError, VERSION, from_bytes, to_bytes};
use petaflop_agent_api::session::{Opening, SessionError};
use tokio::sync::watch;

use super::{Config, Connect, Gateway, Replica, State};

/// Messages that may still be answered. More than one operator asks only while they change.
const OPEN: usize = 16;

/// Why what came was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It is no operator's of ours, or answers nothing that is still open.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It cannot be read.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// A gateway that is told its replicas by the operator of one key.
pub struct Control {
    gateway: Arc<Gateway>,
    clock: Clock,
    secret: NoiseSecret,
    operator: NoisePublic,
    replicas: watch::Sender<Vec<Replica>>,
    change: watch::Sender<u64>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    list: Option<String>,
    open: VecDeque<Opening>,
    /// What was known at the last change.
    before: Option<Known>,
}

impl Control {
    /// A gateway without replicas, until it is told of some.
    pub fn new(
        config: Config,
        clock: Clock,
        connect: Arc<dyn Connect>,
        operator: NoisePublic,
    ) -> Arc<Self> {
        let (replicas, said) = watch::channel(Vec::new());
        Arc::new(Self {
            gateway: Gateway::new(config, clock.clone(), connect, said),
            clock,
            secret: NoiseSecret::generate(),
            operator,
            replicas,
            change: watch::Sender::new(0),
            inner: Mutex::default(),
        })
    }

    /// The gateway.
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Notices what changes; never ends.
    pub(super) async fn follow(&self) {
        let (mut wish, mut quiet) = (self.gateway.wish(), self.gateway.quiet());
        loop {
            self.note();
            let open = tokio::select! {
                changed = wish.changed() => changed,
                changed = quiet.changed() => changed,
            };
            if open.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// What is known, in a message that only the operator can read, once there is something newer
    /// than `after`, or after `wait`.
    ///
    /// # Errors
    /// More is known than fits into a message.
    pub async fn known(&self, after: u64, wait: Duration) -> Result<Vec<u8>, SessionError> {
        let mut change = self.change.subscribe();
        self.clock.timeout(wait.min(LONGEST_WAIT), change.wait_for(|now| *now > after)).await;
        // By itself: the channel's lock is not held while `look` waits for ours, which `note` holds
        // while it waits for the channel's.
        let change = *self.change.borrow();
        let known = Known { change, ..self.look() };
        let opening = Opening::begin(&self.secret, &self.operator, &to_bytes(&known))?;
        let message = opening.message().to_vec();
        let mut inner = self.inner();
        inner.open.truncate(OPEN - 1);
        inner.open.push_front(opening);
        Ok(message)
    }

    /// Takes over what the operator tells.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn told(&self, body: &[u8]) -> Result<(), ControlError> {
        let mut inner = self.inner();
        let mut refused = SessionError::Over;
        let told = inner.open.iter_mut().find_map(|opening| match opening.finish(body) {
            Ok(told) => Some(told),
            Err(error) => {
                refused = error;
                None
            }
        });
        let Told { version: _, list, hold, replicas } = from_bytes(&told.ok_or(refused)?)?;
        inner.list = Some(list);
        drop(inner);
        let replicas: Vec<Replica> = replicas
            .into_iter()
            .map(|replica| Replica {
                name: replica.name,
                address: replica.address,
                agent: replica.agent,
                weight: replica.weight,
                state: if replica.draining { State::Draining } else { State::Ready },
                key: Some(replica.key),
                server: replica.server,
            })
            .collect();
        tracing::info!(replicas = replicas.len(), hold, "told");
        self.gateway.may_hold(hold);
        self.replicas.send_replace(replicas);
        self.note();
        Ok(())
    }

    fn look(&self) -> Known {
        let wish = *self.gateway.wish().borrow();
        let mut drained = self.gateway.drained();
        drained.truncate(DRAINED_AT_ONCE);
        let many = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        Known {
            version: VERSION,
            change: 0,
            list: self.inner().list.clone(),
            waiting: many(wish.waiting),
            ready: many(wish.ready),
            idle_millis: u64::try_from(self.gateway.idle_for().as_millis()).unwrap_or(u64::MAX),
            drained,
        }
    }

    /// Counts what is worth telling: another list, somebody who waits in vain, a replica that has
    /// nothing left. Not every request.
    fn note(&self) {
        let now = self.look();
        let mut inner = self.inner();
        let same = inner.before.as_ref().is_some_and(|before| {
            (&before.list, before.wakes(), &before.drained)
                == (&now.list, now.wakes(), &now.drained)
        });
        if !same {
            inner.before = Some(now);
            self.change.send_modify(|change| *change += 1);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use petaflop_agent_api::gateway;
    use petaflop_agent_api::keys::OperatorRoot;
    use petaflop_agent_api::session::Opened;
    use petaflop_agent_api::task::Secret;

    use super::super::Tcp;
    use super::*;

    fn told(draining: bool) -> Told {
        let replica = gateway::Replica {
            name: "infs-a".into(),
            address: "127.0.0.1:1".into(),
            weight: NonZeroU32::MIN,
            draining,
            agent: None,
            key: Secret::default(),
            server: gateway::Server::Ours,
        };
        Told::new(true, vec![replica])
    }

    fn control(root: &OperatorRoot) -> Arc<Control> {
        let clock = Clock::manual(jiff::Timestamp::UNIX_EPOCH);
        Control::new(Config::default(), clock, Arc::new(Tcp), root.noise().public())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_asks_and_whoever_notes_never_wait_for_each_other() {
        let control = control(&OperatorRoot::generate());
        let noting = control.clone();
        let notes = tokio::task::spawn_blocking(move || {
            for _ in 0..20_000 {
                noting.inner().before = None;
                noting.note();
            }
        });
        while !notes.is_finished() {
            control.known(0, Duration::ZERO).await.unwrap();
        }
        assert_eq!(*control.change.borrow(), 20_000);
    }

    #[tokio::test]
    async fn only_the_operator_of_its_key_can_tell_it_something_and_only_once() {
        let (root, other) = (OperatorRoot::generate(), OperatorRoot::generate());
        let control = control(&root);
        let message = control.known(0, Duration::ZERO).await.unwrap();
        assert!(Opened::read(&other.noise(), &message).is_err());
        let opened = Opened::read(&root.noise(), &message).unwrap();
        let known: Known = from_bytes(opened.known()).unwrap();
        assert_eq!((known.list, known.ready), (None, 0));
        let answer = opened.tell(&to_bytes(&told(false))).unwrap();
        let mut forged = answer.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert!(control.told(&forged).is_err());
        control.told(&answer).unwrap();
        assert_eq!(control.inner().list, Some(told(false).list));
        assert!(control.told(&answer).is_err(), "replayed");
    }

    #[tokio::test]
    async fn a_look_waits_for_something_new() {
        let root = OperatorRoot::generate();
        let control = control(&root);
        control.note();
        let read = |message: Vec<u8>| Opened::read(&root.noise(), &message).unwrap();
        let opened = read(control.known(0, Duration::ZERO).await.unwrap());
        let first: Known = from_bytes(opened.known()).unwrap();
        let later = tokio::spawn({
            let (control, after) = (control.clone(), first.change);
            async move { control.known(after, Duration::from_secs(30)).await }
        });
        tokio::task::yield_now().await;
        assert!(!later.is_finished());
        let answer = opened.tell(&to_bytes(&told(true))).unwrap();
        control.told(&answer).unwrap();
        let opened = read(later.await.unwrap().unwrap());
        let second: Known = from_bytes(opened.known()).unwrap();
        assert_eq!(second.list, Some(told(true).list));
        assert!(second.change > first.change);
    }
}
