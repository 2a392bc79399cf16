//! From a process of the host to process 1 of a machine, by becoming one program after the other:
//! `enter` joins the cgroups, `unshare` makes the network, `wire` lays the cable, `unshare` makes the
//! other namespaces, `shim` stays as the machine's only process outside of them, `init` is process 1.
//!
//! Each dies with its parent, so that the end of `world` is the end of all.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use petaflop_box_machine::{Inside, Start, What};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::{Result, ip, of, relay, root, whole};

/// What a machine's first process is told, in a file that is gone once process 1 has read it: there
/// are secrets in its environment.
#[derive(Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) start: Start,
    /// Files that take a process into the machine's cgroups.
    pub(crate) groups: Vec<PathBuf>,
    /// Process id of `world`, whose network is the switch.
    pub(crate) world: i32,
}

/// What process 1 is told.
#[derive(Serialize, Deserialize)]
pub(crate) struct First {
    pub(crate) inside: Inside,
    /// An empty folder to mount on.
    pub(crate) at: PathBuf,
}

pub(crate) fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = fs::read(path).map_err(of(path.display()))?;
    serde_json::from_slice(&text).map_err(of(path.display()))
}

pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(of(path.display()))?;
    fs::write(path, text).map_err(of(path.display()))
}

pub(crate) fn enter(path: &Path) -> Result<u8> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(of("prctl"))?;
    let spec: Spec = read(path)?;
    if rustix::process::getppid().map(Pid::as_raw_pid) != Some(spec.world) {
        return Err("the world is gone".to_owned());
    }
    for group in &spec.groups {
        fs::write(group, "0").map_err(of(group.display()))?;
    }
    become_again(&["--net"], "wire", path)
}

pub(crate) fn wire(path: &Path) -> Result<u8> {
    let Spec { start, world, .. } = read(path)?;
    let (port, world) = (format!("m{}", start.machine), world.cast_unsigned());
    ip(
        None,
        &format!(
            "link add eth0 type veth peer name {port} netns {world}\n\
             address add {}/24 dev eth0\nlink set lo up\nlink set eth0 up\n",
            start.address
        ),
    )?;
    ip(Some(world), &format!("link set {port} master switch\nlink set {port} up\n"))?;
    if let Some((socket, hops)) = &start.metadata {
        let address = relay::ADDRESS.split(':').next().unwrap_or_default();
        ip(None, &format!("address add {address}/32 dev lo\n"))?;
        let mut service = Command::new(itself()?)
            .arg("relay")
            .arg(socket)
            .arg(hops.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(of("relay"))?;
        let mut line = String::new();
        if let Some(stdout) = service.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(of("relay"))?;
        }
    }
    let at = path.with_extension("root");
    fs::create_dir(&at).map_err(of(at.display()))?;
    write(path, &First { inside: start.inside, at })?;
    become_again(&NAMESPACES, "shim", path)
}

/// Namespaces of a machine beside its network, and of a container on one.
pub(crate) const NAMESPACES: [&str; 6] =
    ["--pid", "--mount", "--uts", "--ipc", "--propagation", "private"];

/// Its first child is process 1 of the new namespace; its code is that one's.
pub(crate) fn shim(path: &Path) -> Result<u8> {
    let mut first = Command::new(itself()?)
        .arg("init")
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .map_err(of("process 1"))?;
    if let Some(mut line) = first.stdin.take() {
        // One that ended at once is waited for all the same.
        let _ = line.write_all(b"\n");
    }
    let status = first.wait().map_err(of("process 1"))?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    Ok(code.unwrap_or_default() as u8)
}

pub(crate) fn init(path: &Path) -> Result<u8> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(of("prctl"))?;
    // A shim that died before the line above says nothing any more.
    if std::io::stdin().read(&mut [0]).map_err(of("the shim"))? == 0 {
        return Err("the shim is gone".to_owned());
    }
    let First { inside, at } = read(path)?;
    fs::remove_file(path).map_err(of(path.display()))?;
    rustix::system::sethostname(inside.hostname.as_bytes()).map_err(of("hostname"))?;
    let new = root::build(&inside, &at)?;
    root::enter(&new)?;
    match inside.what {
        What::Whole(machine) => whole::boot(machine),
        What::Container(program) => Err(root::exec(&program, &inside.hostname)),
    }
}

pub(crate) fn itself() -> Result<PathBuf> {
    std::env::current_exe().map_err(of("this program"))
}

/// Becomes this program again, in new namespaces.
fn become_again(namespaces: &[&str], what: &str, path: &Path) -> Result<u8> {
    let mut command = Command::new("unshare");
    command.args(namespaces).arg("--").arg(itself()?).arg(what).arg(path);
    Err(format!("unshare: {}", command.exec()))
}

/// Process 1 behind its process outside, as we number it: the child that has a number inside too.
pub(crate) fn first(shim: Pid) -> Option<Pid> {
    let shim = shim.as_raw_pid();
    let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).ok()?;
    let mut children = children.split_whitespace().filter_map(|child| child.parse::<u32>().ok());
    let inner = |child: &u32| {
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        numbers.is_some_and(|numbers| numbers.split_whitespace().count() > 1)
    };
    children.find(inner).and_then(pid)
}

pub(crate) fn pid(number: u32) -> Option<Pid> {
    Pid::from_raw(number.cast_signed())
}
