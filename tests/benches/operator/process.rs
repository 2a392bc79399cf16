//! What a process takes, by `/proc`.

use std::time::Duration;

use anyhow::{Context, Result};

/// Clock ticks a second in `/proc`, on every Linux of today.
const TICKS: f64 = 100.0;

/// Memory in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) rss: f64,
    /// Resident at most, since its start.
    pub(crate) peak: f64,
}

/// Memory of a process.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let of = |name: &str| -> Result<f64> {
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)).context(name.to_owned())?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024.0)
    };
    Ok(Memory { rss: of("VmRSS:")?, peak: of("VmHWM:")? })
}

/// Seconds of processor time that a process has used.
pub(crate) fn processor(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold spaces; what follows it does not.
    let (_, rest) = text.rsplit_once(')').context("no name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| -> Result<f64> { Ok(fields.get(at).context("too short")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}

/// Waits until it has used less than a twentieth of a core for ten seconds: whatever it had to do is done.
pub(crate) async fn settled(pid: u32) -> Result<()> {
    let mut before = processor(pid)?;
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let now = processor(pid)?;
        if now - before < 0.5 {
            return Ok(());
        }
        before = now;
    }
}
