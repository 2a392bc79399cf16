//! Conditions as kstatus, Helm, Flux and Argo CD read them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use petaflop_arbiter::reason::Reason;

/// Longest message that is written; the API server takes 32 KiB, people read less.
const MESSAGE_BYTES: usize = 1024;

/// Whether something is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// It is.
    True,
    /// It is not.
    False,
    /// Nobody knows yet.
    Unknown,
}

impl Is {
    /// As the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Is {
    fn from(is: bool) -> Self {
        if is { Self::True } else { Self::False }
    }
}

/// The conditions of one object, for one generation of its spec.
#[derive(Debug)]
pub struct Conditions<'a> {
    list: &'a mut Vec<Condition>,
    generation: Option<i64>,
    now: Timestamp,
}

impl<'a> Conditions<'a> {
    /// Those of a status.
    pub fn of(list: &'a mut Vec<Condition>, generation: Option<i64>, now: Timestamp) -> Self {
        Self { list, generation, now }
    }

    /// Sets a condition. Its time of transition moves only when its truth does.
    pub fn set(&mut self, type_: &str, is: Is, reason: Reason, message: &str) {
        let message = shortened(message);
        let status = is.as_str().to_owned();
        let new = Condition {
            type_: type_.to_owned(),
            status,
            reason: reason.as_str().to_owned(),
            message,
            observed_generation: self.generation,
            last_transition_time: time(self.now),
        };
        match self.list.iter_mut().find(|known| known.type_ == type_) {
            Some(known) => {
                let since = match known.status == new.status {
                    true => known.last_transition_time.clone(),
                    false => new.last_transition_time.clone(),
                };
                *known = Condition { last_transition_time: since, ..new };
            }
            None => self.list.push(new),
        }
    }

    /// A condition, as it is now.
    pub fn get(&self, type_: &str) -> Option<&Condition> {
        self.list.iter().find(|known| known.type_ == type_)
    }

    /// Takes a condition away that says nothing any more.
    pub fn clear(&mut self, type_: &str) {
        self.list.retain(|known| known.type_ != type_);
    }

    /// kstatus: works towards the spec.
    pub fn progressing(&mut self, reason: Reason, message: &str) {
        self.set("Ready", Is::Unknown, reason, message);
        self.set("Reconciling", Is::True, reason, message);
        self.set("Stalled", Is::False, reason, "");
    }

    /// kstatus: all is as it should be.
    pub fn ready(&mut self, reason: Reason, message: &str) {
        self.set("Ready", Is::True, reason, message);
        self.set("Reconciling", Is::False, reason, "");
        self.set("Stalled", Is::False, reason, "");
    }

    /// kstatus: cannot go on without a change by somebody.
    pub fn stalled(&mut self, reason: Reason, message: &str) {
        self.set("Ready", Is::False, reason, message);
        self.set("Reconciling", Is::False, reason, "");
        self.set("Stalled", Is::True, reason, message);
    }
}

/// Whether a condition is there and true.
pub fn is_true(list: &[Condition], type_: &str) -> bool {
    list.iter().any(|known| known.type_ == type_ && known.status == "True")
}

/// A time as the API writes it: whole seconds.
pub fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// The first part of a text, cut between characters.
pub fn shortened(text: &str) -> String {
    if text.len() <= MESSAGE_BYTES {
        return text.to_owned();
    }
    let mut end = MESSAGE_BYTES - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_transition_moves_only_with_the_truth() {
        let at = |second| Timestamp::from_second(second).expect("a small time");
        let mut list = Vec::new();
        Conditions::of(&mut list, Some(1), at(10)).progressing(Reason::Launching, "one");
        Conditions::of(&mut list, Some(2), at(20)).progressing(Reason::Launching, "two");
        let ready = &list[0];
        assert_eq!((ready.message.as_str(), ready.observed_generation), ("two", Some(2)));
        assert_eq!(ready.last_transition_time.0, at(10));
        Conditions::of(&mut list, Some(2), at(30)).ready(Reason::Succeeded, "");
        assert_eq!(list[0].last_transition_time.0, at(30));
        assert_eq!(list.len(), 3);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let text = "é".repeat(2000);
        let cut = shortened(&text);
        assert!(cut.len() <= MESSAGE_BYTES && cut.ends_with('…'), "{}", cut.len());
    }
}
