//! One machine of the cloud.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::OfferId;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::manners::Style;
use crate::wire::{State, View};

/// A machine, from the purchase until nothing of it is known any more.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) id: String,
    pub(crate) name: String,
    /// The tag; `None` for what others made without one.
    pub(crate) identity: Option<String>,
    /// The request that made it; `None` where there was none.
    pub(crate) request: Option<crate::wire::Create>,
    pub(crate) offer: OfferId,
    pub(crate) price: UsdPerHour,
    pub(crate) state: State,
    pub(crate) created: Timestamp,
    pub(crate) ended: Option<Timestamp>,
    pub(crate) reason: Option<&'static str>,
    pub(crate) exit: Option<i32>,
    pub(crate) never_starts: bool,
    pub(crate) leaves_volume: bool,
    pub(crate) leaves_request: bool,
    pub(crate) endpoint: Arc<Mutex<Option<SocketAddr>>>,
    pub(crate) notice: watch::Sender<Option<Duration>>,
    pub(crate) agent: Option<AbortHandle>,
}

impl Machine {
    pub(crate) fn leftovers(&self) -> Vec<String> {
        if self.state != State::Terminated {
            return Vec::new();
        }
        let kinds = [(self.leaves_volume, "volume"), (self.leaves_request, "spot-request")];
        kinds.into_iter().filter(|(left, _)| *left).map(|(_, kind)| kind.to_owned()).collect()
    }

    /// Whether the cloud still tells of it. AWS does for an hour after the end, RunPod does not.
    pub(crate) fn is_told_of(&self, style: Style, now: Timestamp) -> bool {
        let Some(ended) = self.ended else { return true };
        !self.leftovers().is_empty()
            || match style {
                Style::Aws => now.duration_since(ended).as_secs() < 3600,
                Style::RunPod => false,
            }
    }

    pub(crate) fn view(&self, style: Style) -> View {
        let endpoint = *self.endpoint.lock().unwrap_or_else(PoisonError::into_inner);
        // Only AWS says why; neither says with what status, but the console of one does.
        let tells = style == Style::Aws;
        View {
            id: self.id.clone(),
            name: self.name.clone(),
            identity: self.identity.clone(),
            state: self.state,
            offer: self.offer.clone(),
            offered: self.request.as_ref().map(|request| request.offered.clone()),
            price: self.price,
            created: self.created,
            ended: self.ended,
            endpoint: endpoint.map(|address| address.to_string()),
            exit: self.exit.filter(|_| tells),
            reason: self.reason.filter(|_| tells).map(str::to_owned),
            leftovers: self.leftovers(),
        }
    }
}
