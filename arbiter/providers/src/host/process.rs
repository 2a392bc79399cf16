//! Processes of this host that carry an instance's identity.
//!
//! The identity is in the environment of every process of an instance, so it is
//! found again whoever died: the terminal, the operator, or the first process
//! itself. A process is only ever signalled through a pidfd that was opened
//! *before* its environment was checked: a reused process id is never hit.
//!
//! Reads `/proc`; Linux only.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The variable that carries a claim's identity in an instance's environment.
pub const IDENTITY_VARIABLE: &str = "PETAFLOP_IDENTITY";

/// A live process of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Process id.
    pub pid: i32,
    /// Process group.
    pub group: i32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
    /// The value of [`IDENTITY_VARIABLE`].
    pub identity: String,
}

/// All live processes that this user may inspect and that carry an identity.
///
/// # Errors
/// When `/proc` cannot be listed; a single process that ends meanwhile, or that
/// belongs to somebody else, is left out.
pub fn members() -> io::Result<Vec<Member>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        if let Some(member) = inspect(pid) {
            found.push(member);
        }
    }
    found.sort_by_key(|m| m.pid);
    Ok(found)
}

/// Sends a signal to a member, if it is still the process that was seen.
/// Returns whether a process was there to take it.
///
/// # Errors
/// When the system refuses for another reason than "no such process".
pub fn signal(member: &Member, signal: Signal) -> io::Result<bool> {
    let Some(pid) = Pid::from_raw(member.pid) else {
        return Ok(false);
    };
    let fd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    // From here on the descriptor means one process; is it the one we saw?
    if inspect(member.pid).as_ref() != Some(member) {
        return Ok(false);
    }
    match pidfd_send_signal(&fd, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Seconds since the epoch at which a process started, from its ticks since boot.
pub fn started_at(start_ticks: u64) -> Option<i64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot: i64 =
        stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    Some(boot + i64::try_from(start_ticks / ticks_per_second).ok()?)
}

/// Bytes of memory a process holds; 0 when it is gone.
pub fn resident_bytes(pid: i32) -> u64 {
    let pages = fs::read_to_string(format!("/proc/{pid}/statm"))
        .ok()
        .and_then(|text| text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

fn inspect(pid: i32) -> Option<Member> {
    let folder = format!("/proc/{pid}");
    let folder = Path::new(&folder);
    // In the middle of an exec a process has no environment for some microseconds, after
    // `spawn` has returned already. It must not be taken for gone then.
    for _ in 0..EXEC_LOOKS {
        let stat = stat_of(folder)?;
        // Zombies and the dead have done their work; somebody has only not looked yet.
        if matches!(stat.state, 'Z' | 'X') || stat.flags & KERNEL_THREAD != 0 {
            return None;
        }
        let environment = fs::read(folder.join("environ")).ok()?;
        if environment.is_empty() {
            std::thread::sleep(std::time::Duration::from_millis(1));
            continue;
        }
        let identity = identity_in(&environment)?;
        return Some(Member { pid, group: stat.group, start_ticks: stat.start_ticks, identity });
    }
    None
}

/// Looks at a process without an environment, a millisecond apart, until it is taken to have none.
const EXEC_LOOKS: u32 = 20;

/// `PF_KTHREAD`: kernel threads never have an environment.
const KERNEL_THREAD: u64 = 0x0020_0000;

fn identity_in(environment: &[u8]) -> Option<String> {
    environment.split(|byte| *byte == 0).find_map(|entry| {
        let value = entry.strip_prefix(IDENTITY_VARIABLE.as_bytes())?.strip_prefix(b"=")?;
        String::from_utf8(value.to_vec()).ok()
    })
}

/// What `stat` says of a process.
struct Stat {
    state: char,
    group: i32,
    flags: u64,
    start_ticks: u64,
}

/// `man 5 proc`: fields 3, 5, 9 and 22. The command (field 2) may hold blanks and
/// parentheses, so fields count from the last `)`.
fn stat_of(folder: &Path) -> Option<Stat> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    let rest = stat.get(stat.rfind(')')? + 1..)?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        group: fields.get(2)?.parse().ok()?,
        flags: fields.get(6)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}
