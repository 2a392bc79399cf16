//! Quotas of calls, and the headers that tell of them. RunPod publishes no numbers: those here are
//! made.

use jiff::Timestamp;

/// Calls in a window of time.
#[derive(Clone, Debug)]
struct Window {
    name: &'static str,
    seconds: i64,
    quota: u32,
    used: u32,
    /// Number of the window since 1970.
    current: i64,
}

impl Window {
    fn new(name: &'static str, seconds: i64, quota: u32) -> Self {
        Self { name, seconds, quota, used: 0, current: 0 }
    }

    fn left(&self) -> u32 {
        self.quota.saturating_sub(self.used)
    }

    fn resets_in(&self, now: Timestamp) -> i64 {
        self.seconds - now.as_second().rem_euclid(self.seconds)
    }
}

/// The quotas of an account.
#[derive(Clone, Debug)]
pub struct Limits {
    windows: [Window; 3],
}

impl Limits {
    /// So many calls a minute, an hour and a day.
    pub fn new(minute: u32, hour: u32, day: u32) -> Self {
        let windows = [
            Window::new("minute", 60, minute),
            Window::new("hour", 3600, hour),
            Window::new("day", 86_400, day),
        ];
        Self { windows }
    }

    /// Counts a call; where there is none left, the seconds to wait.
    pub(crate) fn take(&mut self, now: Timestamp) -> Result<(), u32> {
        for window in &mut self.windows {
            let current = now.as_second().div_euclid(window.seconds);
            if current != window.current {
                (window.current, window.used) = (current, 0);
            }
        }
        let empty = self.windows.iter().filter(|window| window.left() == 0);
        if let Some(wait) = empty.map(|window| window.resets_in(now)).max() {
            return Err(u32::try_from(wait).unwrap_or(u32::MAX));
        }
        for window in &mut self.windows {
            window.used += 1;
        }
        Ok(())
    }

    /// `RateLimit`: what is left (`r`) and seconds until that is renewed (`t`).
    pub(crate) fn header(&self, now: Timestamp) -> String {
        let members = self.windows.iter();
        let member = |w: &Window| format!("{};r={};t={}", w.name, w.left(), w.resets_in(now));
        members.map(member).collect::<Vec<_>>().join(", ")
    }

    /// `RateLimit-Policy`: quota (`q`) and window in seconds (`w`).
    pub(crate) fn policy(&self) -> String {
        let member = |w: &Window| format!("{};q={};w={}", w.name, w.quota, w.seconds);
        self.windows.iter().map(member).collect::<Vec<_>>().join(", ")
    }
}
