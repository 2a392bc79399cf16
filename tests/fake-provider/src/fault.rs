//! Every way in which the cloud can misbehave, by name, and when.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// What can be had.
    Quote,
    /// A purchase.
    Create,
    /// A page of a list.
    List,
    /// One machine.
    Get,
    /// An end.
    Terminate,
}

/// A way to misbehave. The wire name of each is its name in kebab-case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Answers 500 although the machine was made.
    #[serde(rename = "created-but-500")]
    CreatedBut500,
    /// Does what it was asked and cuts the connection.
    LostAnswer,
    /// Cuts the connection and does nothing.
    LostRequest,
    /// Does what it was asked and answers this much later.
    SlowAnswer(Duration),
    /// Answers 500 and does nothing.
    ServerError,
    /// Has no machine of that kind now.
    NoCapacity,
    /// The request breaks a rule.
    RuleBroken,
    /// The account's quota is reached.
    Quota,
    /// The account is empty: 402.
    BalanceTooLow,
    /// The key is refused: 401.
    Unauthorized,
    /// 429, with so many seconds of `Retry-After`.
    RateLimited(u32),
    /// This interface is switched off: 410.
    Retired,
    /// A machine younger than this is in no list and not to be had by its id.
    ListingLag(Duration),
    /// Lists show what there was when this was switched on.
    StaleListing,
    /// The first page is short of machines, and there is no second.
    PartialPage,
    /// The page after the first is answered 500.
    ErrorMidList,
    /// The page after the first points to itself.
    RepeatedCursor,
    /// Says that it ends the machine, and does not.
    TerminateIgnored,
    /// Says that it knows no such machine, while it runs.
    TerminateNotFound,
    /// May not end machines: 403.
    TerminateForbidden,
    /// The price rises by so many per cent between quote and purchase.
    PriceChangedAtLaunch(u32),
    /// Says that a machine costs so many per cent more than it is billed at.
    PriceTold(u32),
    /// The machine comes up and no agent with it.
    NeverStarts,
    /// A volume stays behind when the machine ends, and bills at a tenth of its price.
    VolumeLeftBehind,
    /// An open request for a spot machine stays behind when the machine ends, and makes a new one
    /// a minute later, unless it is cancelled.
    SpotRequestLeftBehind,
}

impl Fault {
    /// One of each, for sweeps over all of them.
    pub const ALL: [Self; 25] = [
        Self::CreatedBut500,
        Self::LostAnswer,
        Self::LostRequest,
        Self::SlowAnswer(Duration::from_secs(20)),
        Self::ServerError,
        Self::NoCapacity,
        Self::RuleBroken,
        Self::Quota,
        Self::BalanceTooLow,
        Self::Unauthorized,
        Self::RateLimited(7),
        Self::Retired,
        Self::ListingLag(Duration::from_secs(30)),
        Self::StaleListing,
        Self::PartialPage,
        Self::ErrorMidList,
        Self::RepeatedCursor,
        Self::TerminateIgnored,
        Self::TerminateNotFound,
        Self::TerminateForbidden,
        Self::PriceChangedAtLaunch(50),
        Self::PriceTold(50),
        Self::NeverStarts,
        Self::VolumeLeftBehind,
        Self::SpotRequestLeftBehind,
    ];

    /// Its name: what tests and reports call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CreatedBut500 => "created-but-500",
            Self::LostAnswer => "lost-answer",
            Self::LostRequest => "lost-request",
            Self::SlowAnswer(_) => "slow-answer",
            Self::ServerError => "server-error",
            Self::NoCapacity => "no-capacity",
            Self::RuleBroken => "rule-broken",
            Self::Quota => "quota",
            Self::BalanceTooLow => "balance-too-low",
            Self::Unauthorized => "unauthorized",
            Self::RateLimited(_) => "rate-limited",
            Self::Retired => "retired",
            Self::ListingLag(_) => "listing-lag",
            Self::StaleListing => "stale-listing",
            Self::PartialPage => "partial-page",
            Self::ErrorMidList => "error-mid-list",
            Self::RepeatedCursor => "repeated-cursor",
            Self::TerminateIgnored => "terminate-ignored",
            Self::TerminateNotFound => "terminate-not-found",
            Self::TerminateForbidden => "terminate-forbidden",
            Self::PriceChangedAtLaunch(_) => "price-changed-at-launch",
            Self::PriceTold(_) => "price-told",
            Self::NeverStarts => "never-starts",
            Self::VolumeLeftBehind => "volume-left-behind",
            Self::SpotRequestLeftBehind => "spot-request-left-behind",
        }
    }

    /// Whether it can show in a call of this kind.
    pub const fn shows_in(self, kind: Kind) -> bool {
        match self {
            Self::LostAnswer
            | Self::LostRequest
            | Self::SlowAnswer(_)
            | Self::ServerError
            | Self::Unauthorized
            | Self::RateLimited(_)
            | Self::Retired => true,
            Self::CreatedBut500
            | Self::NoCapacity
            | Self::RuleBroken
            | Self::Quota
            | Self::BalanceTooLow
            | Self::PriceChangedAtLaunch(_)
            | Self::NeverStarts
            | Self::VolumeLeftBehind
            | Self::SpotRequestLeftBehind => matches!(kind, Kind::Create),
            Self::ListingLag(_) | Self::PriceTold(_) => matches!(kind, Kind::List | Kind::Get),
            Self::StaleListing | Self::PartialPage | Self::ErrorMidList | Self::RepeatedCursor => {
                matches!(kind, Kind::List)
            }
            Self::TerminateIgnored | Self::TerminateNotFound | Self::TerminateForbidden => {
                matches!(kind, Kind::Terminate)
            }
        }
    }
}

/// When a fault shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Until it is switched off.
    Always,
    /// In the call of this number among all calls, from 1.
    Call(u64),
    /// After so many more calls of its kind, once.
    After(Kind, u32),
}

/// The faults that are switched on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    list: Vec<(When, Fault)>,
}

impl Faults {
    pub(crate) fn always(&mut self, fault: Fault) {
        self.list.push((When::Always, fault));
    }

    pub(crate) fn in_call(&mut self, sequence: u64, fault: Fault) {
        self.list.push((When::Call(sequence), fault));
    }

    pub(crate) fn after(&mut self, kind: Kind, skip: u32, fault: Fault) {
        self.list.push((When::After(kind, skip), fault));
    }

    /// Switches off everything of this name.
    pub(crate) fn stop(&mut self, name: &str) {
        self.list.retain(|(_, fault)| fault.name() != name);
    }

    pub(crate) fn stop_all(&mut self) {
        self.list.clear();
    }

    /// What shows in this call; what shows once is then spent.
    pub(crate) fn of_call(&mut self, kind: Kind, sequence: u64) -> Vec<Fault> {
        let mut shown = Vec::new();
        self.list.retain_mut(|(when, fault)| {
            let (now, keep) = match when {
                When::Always => (true, true),
                When::Call(number) => (*number == sequence, *number > sequence),
                When::After(of, _) if *of != kind => (false, true),
                When::After(_, 0) => (true, false),
                When::After(_, more) => {
                    *more -= 1;
                    (false, true)
                }
            };
            if now && fault.shows_in(kind) {
                shown.push(*fault);
            }
            keep
        });
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_in_the_list_once_under_its_wire_name() {
        let names: std::collections::BTreeSet<_> = Fault::ALL.iter().map(|f| f.name()).collect();
        assert_eq!(names.len(), Fault::ALL.len());
        for fault in Fault::ALL {
            let wire = serde_json::to_string(&fault).expect("JSON");
            assert!(wire.contains(&format!("\"{}\"", fault.name())), "{wire}");
        }
    }

    #[test]
    fn faults_show_when_they_were_asked_for() {
        let mut faults = Faults::default();
        faults.always(Fault::StaleListing);
        faults.in_call(3, Fault::LostAnswer);
        faults.after(Kind::Create, 1, Fault::NoCapacity);
        assert_eq!(faults.of_call(Kind::List, 1), [Fault::StaleListing]);
        assert_eq!(faults.of_call(Kind::Create, 2), []);
        assert_eq!(faults.of_call(Kind::List, 3), [Fault::StaleListing, Fault::LostAnswer]);
        assert_eq!(faults.of_call(Kind::Create, 4), [Fault::NoCapacity]);
        assert_eq!(faults.of_call(Kind::Create, 5), []);
        faults.stop("stale-listing");
        assert_eq!(faults.of_call(Kind::List, 6), []);
    }
}
