//! How often RunPod may be asked. It publishes no numbers: each answer says how many calls are
//! left in the minute, the hour and the day (`RateLimit`), how many there are in all
//! (`RateLimit-Policy`), and after a 429 how long to stay away (`Retry-After`). Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// How long to stay away where a 429 does not say.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest wait that is believed: the longest window.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Calls that looking at prices leaves for buying, watching and ending: a quarter of the quota, or
/// this many where that is not known.
const RESERVE: u64 = 10;

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Looking at prices; can wait.
    Price,
    /// Buying, watching or ending a machine.
    Machine,
}

/// The headers of an answer that say how much more may be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) limit: Option<String>,
    pub(super) policy: Option<String>,
    pub(super) retry_after: Option<String>,
}

/// What is left to us.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    windows: Vec<Window>,
    /// Nothing is asked before this.
    not_before: Option<Timestamp>,
}

#[derive(Clone, Debug)]
struct Window {
    name: String,
    quota: Option<u64>,
    left: u64,
    resets: Timestamp,
}

impl Pace {
    /// How long to wait before a call; `None`: not at all, and the call is counted.
    pub(super) fn call(&mut self, purpose: Purpose, now: Timestamp) -> Option<Duration> {
        self.windows.retain(|window| window.resets > now);
        let window = self.windows.iter().filter(|window| window.left <= window.reserve(purpose));
        let until = window.map(|window| window.resets).chain(self.not_before).max();
        if let Some(until) = until.filter(|until| *until > now) {
            // Whole seconds, rounded up: as the API counts, and never 0.
            let wait = until.duration_since(now).as_millis().unsigned_abs().div_ceil(1000);
            return Some(Duration::from_secs(u64::try_from(wait).unwrap_or(u64::MAX)));
        }
        for window in &mut self.windows {
            window.left = window.left.saturating_sub(1);
        }
        None
    }

    /// Takes over what an answer told. Returns how long to stay away where the answer was a 429.
    pub(super) fn heard(&mut self, told: &Told, status: u16, now: Timestamp) -> Option<Duration> {
        let policy: Vec<(String, Option<u64>, Option<u64>)> =
            members(told.policy.as_deref().unwrap_or_default(), ["q", "w"]);
        for (name, left, seconds) in members(told.limit.as_deref().unwrap_or_default(), ["r", "t"])
        {
            let (Some(left), Some(seconds)) = (left, seconds) else { continue };
            let quota = policy.iter().find(|(known, ..)| *known == name).and_then(|(_, q, _)| *q);
            let resets = after(now, Duration::from_secs(seconds));
            let known = self.windows.iter().position(|window| window.name == name);
            // Calls that are under way are not in there yet, but in the next answer.
            let window = Window { name, quota, left, resets };
            match known {
                Some(known) => self.windows[known] = window,
                None => self.windows.push(window),
            }
        }
        let told = told.retry_after.as_deref().and_then(|text| seconds_of(text, now));
        if status != 429 && told.is_none() {
            return None;
        }
        let wait = told.unwrap_or(PAUSE).min(LONGEST);
        let until = after(now, wait);
        self.not_before = Some(self.not_before.map_or(until, |known| known.max(until)));
        (status == 429).then_some(wait)
    }
}

impl Window {
    fn reserve(&self, purpose: Purpose) -> u64 {
        match (purpose, self.quota) {
            (Purpose::Machine, _) => 0,
            (Purpose::Price, Some(quota)) => quota / 4,
            (Purpose::Price, None) => RESERVE,
        }
    }
}

fn after(now: Timestamp, wait: Duration) -> Timestamp {
    let wait = SignedDuration::try_from(wait.min(LONGEST)).unwrap_or(SignedDuration::MAX);
    now.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

/// `Retry-After`: seconds, or a date.
fn seconds_of(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO))
}

/// `minute;r=3;t=7, hour;r=9;t=70`: name and two whole numbers of each member. What cannot be read is
/// left out.
fn members(text: &str, keys: [&str; 2]) -> Vec<(String, Option<u64>, Option<u64>)> {
    let members = text.split(',').filter_map(|member| {
        let mut parts = member.split(';').map(str::trim);
        let name = parts.next()?.trim_matches('"').to_owned();
        let mut found = [None, None];
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            if let Some(place) = keys.iter().position(|wanted| *wanted == key.trim()) {
                found[place] = value.trim().parse().ok();
            }
        }
        (!name.is_empty()).then_some((name, found[0], found[1]))
    });
    members.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).expect("a time")
    }

    fn told(limit: &str, policy: &str, retry_after: Option<&str>) -> Told {
        Told {
            limit: Some(limit.to_owned()),
            policy: Some(policy.to_owned()),
            retry_after: retry_after.map(str::to_owned),
        }
    }

    #[test]
    fn nothing_is_asked_once_a_window_is_used_up() {
        let mut pace = Pace::default();
        assert_eq!(pace.call(Purpose::Price, at(0)), None);
        pace.heard(&told("minute;r=2;t=30, hour;r=900;t=600", "", None), 200, at(0));
        assert_eq!(pace.call(Purpose::Machine, at(1)), None);
        assert_eq!(pace.call(Purpose::Machine, at(1)), None);
        assert_eq!(pace.call(Purpose::Machine, at(1)), Some(Duration::from_secs(29)));
        assert_eq!(pace.call(Purpose::Machine, at(30)), None);
    }

    #[test]
    fn prices_leave_calls_for_buying_and_ending() {
        let mut pace = Pace::default();
        let policy = "\"minute\";q=60;w=60";
        pace.heard(&told("\"minute\";r=16;t=60", policy, None), 200, at(0));
        assert_eq!(pace.call(Purpose::Price, at(0)), None);
        assert_eq!(pace.call(Purpose::Price, at(0)), Some(Duration::from_secs(60)));
        assert_eq!(pace.call(Purpose::Machine, at(0)), None);
        // Without a policy, so many.
        let mut pace = Pace::default();
        pace.heard(&told("minute;r=10;t=60", "", None), 200, at(0));
        assert_eq!(pace.call(Purpose::Price, at(0)), Some(Duration::from_secs(60)));
        assert_eq!(pace.call(Purpose::Machine, at(0)), None);
    }

    #[test]
    fn a_429_is_obeyed_by_everything_for_as_long_as_it_says() {
        let mut pace = Pace::default();
        let heard = told("minute;r=0;t=7, hour;r=50;t=900", "", Some("7"));
        assert_eq!(pace.heard(&heard, 429, at(0)), Some(Duration::from_secs(7)));
        assert_eq!(pace.call(Purpose::Machine, at(0)), Some(Duration::from_secs(7)));
        assert_eq!(pace.call(Purpose::Machine, at(7)), None);

        let mut pace = Pace::default();
        assert_eq!(pace.heard(&Told::default(), 429, at(0)), Some(PAUSE));
        assert_eq!(pace.call(Purpose::Machine, at(4)), Some(Duration::from_secs(1)));
    }

    #[test]
    fn retry_after_may_be_a_date() {
        let now: Timestamp = "2026-11-20T10:00:00Z".parse().expect("a time");
        let date = seconds_of("Fri, 20 Nov 2026 10:01:30 GMT", now);
        assert_eq!(date, Some(Duration::from_secs(90)));
        assert_eq!(seconds_of("Fri, 20 Nov 2026 09:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(seconds_of("soon", now), None);
    }

    #[test]
    fn what_cannot_be_read_limits_nothing_and_breaks_nothing() {
        let mut pace = Pace::default();
        for text in ["", ";;;", "minute", "minute;r=;t=", "minute;r=-1;t=5", "=,=;,", "m;r=1"] {
            assert_eq!(pace.heard(&told(text, text, None), 200, at(0)), None, "{text}");
            assert_eq!(pace.call(Purpose::Machine, at(0)), None, "{text}");
        }
        let huge = format!("minute;r=0;t={}", u64::MAX);
        pace.heard(&told(&huge, "", Some("99999999999999999999")), 429, at(0));
        let wait = pace.call(Purpose::Machine, at(0)).expect("a wait");
        assert!(wait <= LONGEST);
    }
}
