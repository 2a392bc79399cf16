//! Token buckets: for each API, account and region one of its own, as EC2's documentation describes
//! them. Launching and terminating also take from a bucket by the instance.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// So many tokens at most, and so many new ones a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Tokens of a full one.
    pub size: u32,
    /// New ones a second.
    pub refill: u32,
}

/// The buckets of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of each call that changes nothing.
    pub read: Bucket,
    /// Of each call that changes something, where no other is named.
    pub change: Bucket,
    /// Of calls of `RunInstances`.
    pub launches: Bucket,
    /// Of calls of `TerminateInstances`.
    pub ends: Bucket,
    /// Of instances that are launched.
    pub launched: Bucket,
    /// Of instances that are terminated.
    pub ended: Bucket,
}

impl Limits {
    /// `read` and `launched` as read on 2026-11-20; the others as they are commonly known.
    pub const REAL: Self = Self {
        read: Bucket { size: 100, refill: 20 },
        change: Bucket { size: 50, refill: 5 },
        launches: Bucket { size: 5, refill: 2 },
        ends: Bucket { size: 100, refill: 5 },
        launched: Bucket { size: 1000, refill: 2 },
        ended: Bucket { size: 1000, refill: 20 },
    };

    /// None, for tests of something else on a clock that stands.
    pub const NONE: Self = {
        let endless = Bucket { size: u32::MAX, refill: u32::MAX };
        Self {
            read: endless,
            change: endless,
            launches: endless,
            ends: endless,
            launched: endless,
            ended: endless,
        }
    };
}

/// What is in the buckets, in thousandths of a token.
#[derive(Debug, Default)]
pub(crate) struct Buckets(BTreeMap<(String, &'static str), (u64, Timestamp)>);

impl Buckets {
    /// Takes tokens, or says that there are not enough.
    pub(crate) fn take(
        &mut self,
        (region, name): (&str, &'static str),
        bucket: Bucket,
        tokens: u32,
        now: Timestamp,
    ) -> bool {
        let full = u64::from(bucket.size) * 1000;
        let (left, since) = self.0.entry((region.to_owned(), name)).or_insert((full, now));
        let passed = u64::try_from(now.duration_since(*since).as_millis()).unwrap_or_default();
        *left = left.saturating_add(passed.saturating_mul(u64::from(bucket.refill))).min(full);
        *since = now;
        let wanted = u64::from(tokens) * 1000;
        let enough = *left >= wanted;
        if enough {
            *left -= wanted;
        }
        enough
    }
}
