//! Free TCP ports on loopback, from below the range that the kernel gives to
//! outgoing connections: a server that is down for a minute still finds its
//! port free when it comes back.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

/// Linux gives outgoing connections 32768 and up.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// Ports this process has given out; never given twice.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port that nobody listens on, and that this process has not given before.
pub(crate) fn free() -> Result<u16> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let random = RandomState::new();
    for attempt in 0..200_u32 {
        let port = RANGE.start + (random.hash_one(attempt) % RANGE.len() as u64) as u16;
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    Err(Error::Unfit(format!("no free TCP port found in {RANGE:?}")))
}
