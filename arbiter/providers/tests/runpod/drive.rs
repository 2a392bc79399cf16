//! The buying protocol, driven as the operator drives it, with a claim that is only a value.

use petaflop_arbiter::claim::{Claim, ClaimSpec, Device, Identity, Phase};
use petaflop_arbiter::launch::{
    LaunchAnswer, Listing, Observation, ReadBack, Step, Wanted, next_step,
};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::Offer;
use petaflop_arbiter::workload::{OwnerKind, WorkloadId};
use petaflop_providers::{EnrolmentToken, InstanceId, Machine, Order, Provider, Work};

use super::{Hands, TOKEN, identity, machine};

/// Whoever wants one machine.
pub(crate) struct Buyer {
    pub(crate) provider: Box<dyn Provider>,
    pub(crate) hands: Hands,
    pub(crate) machine: Machine,
    pub(crate) claim: Claim,
}

impl Buyer {
    pub(crate) fn new(provider: impl Provider + 'static, hands: Hands, offer: Offer) -> Self {
        let claim = claim(offer, &hands);
        Self { provider: Box::new(provider), hands, machine: machine(), claim }
    }

    pub(crate) fn identity(&self) -> Identity {
        self.claim.identity(&identity().installation)
    }

    async fn look(&self) -> Listing {
        match self.provider.find(&self.identity()).await {
            Ok(found) if found.complete => {
                let there = found.instances.into_iter().filter(|one| one.state.may_bill());
                Listing::Complete(there.map(|one| one.id.0).collect())
            }
            _ => Listing::Failed,
        }
    }

    /// Drives the claim until there is nothing to do, or until `crash` launches were sent.
    pub(crate) async fn drive(&mut self, wanted: Wanted, crash: Option<u32>) {
        let safety = self.provider.capabilities().launch_safety;
        let mut seen = Observation::new(self.hands.now(), wanted);
        if matches!(self.claim.phase, Phase::Launched { .. }) {
            seen.looked(self.look().await);
        }
        let mut launches = 0;
        for _ in 0..500 {
            match next_step(&self.claim, safety, &seen) {
                Step::ReadBack => seen.read = ReadBack::Ours,
                Step::Look { after_millis } => {
                    self.hands.forward((after_millis + 999) / 1000);
                    seen.now = self.hands.now();
                    seen.looked(self.look().await);
                }
                Step::WriteAttempt { request } => {
                    let identity = self.identity();
                    let offer = &self.claim.spec.offer;
                    let work = Work::Machine(&self.machine);
                    let order = Order { identity: &identity, offer, work };
                    let request = match request {
                        Some(request) => request,
                        None => self.provider.prepare(order).await.expect("a request"),
                    };
                    self.claim.phase = Phase::Attempted { request, at: self.hands.now() };
                    seen = Observation::new(self.hands.now(), wanted);
                    seen.fresh_attempt = true;
                }
                Step::Launch { request } => {
                    let token = EnrolmentToken::new(TOKEN);
                    let answer = self.provider.launch(&request, &token).await;
                    launches += 1;
                    if crash == Some(launches) {
                        return;
                    }
                    seen.now = self.hands.now();
                    seen.answer = Some(match answer {
                        Ok(InstanceId(instance)) => LaunchAnswer::Accepted { instance },
                        Err(error) => error.answer(),
                    });
                }
                Step::Record { phase, attempt, note: _ } => {
                    (self.claim.phase, self.claim.attempt) = (phase, attempt);
                    seen = Observation::new(self.hands.now(), wanted);
                }
                Step::Terminate { instance } => {
                    // A failure is met again at the next pass.
                    match self.provider.terminate(&InstanceId(instance)).await {
                        Ok(()) => seen.terminate_sent = true,
                        Err(_) => seen = Observation::new(self.hands.now(), wanted),
                    }
                }
                Step::CloseLedger => seen.ledger_closed = true,
                Step::WaitUntil { at, reason: _ } => {
                    let wait = at.duration_since(self.hands.now()).as_secs().max(1);
                    self.hands.forward(wait);
                    seen = Observation::new(self.hands.now(), wanted);
                }
                Step::Leave | Step::Nothing | Step::Release => return,
            }
        }
        panic!("the claim does not settle: {:?}", self.claim.phase);
    }
}

fn claim(offer: Offer, hands: &Hands) -> Claim {
    let Identity { namespace, claim, claim_uid, .. } = identity();
    let owner =
        WorkloadId { kind: OwnerKind::TrainingJob, namespace, name: "a".into(), uid: "u".into() };
    let spec = ClaimSpec {
        name: claim,
        owner,
        placement: 1,
        index: 0,
        offer,
        device: Device::Cpu,
        reserved: Usd::ZERO,
        decided_at: hands.now(),
        revision: None,
        checkpoint_interval_seconds: None,
        runners_up: Vec::new(),
    };
    Claim { spec, uid: claim_uid, phase: Phase::Planned, attempt: 1, spent: Usd::ZERO }
}
