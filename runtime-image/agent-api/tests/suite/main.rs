//! What the messages promise.
#![allow(clippy::unwrap_used)]

mod enrolment;
mod leases;
mod relays;
mod sessions;
