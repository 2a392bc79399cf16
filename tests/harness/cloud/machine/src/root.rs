//! The root file system of an image: its files, untouched, under a layer in memory that is gone with
//! the machine. Every mount is in the machine's own mount namespace.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chroot, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use petaflop_box_machine::{Bind, Inside, Program};

use crate::{Result, of, run};

/// `PATH` where nobody says otherwise, as docker has it.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Devices that every container has.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Mounts everything below the empty folder `at`; where the new root is.
pub(crate) fn build(inside: &Inside, at: &Path) -> Result<PathBuf> {
    let size = format!("mode=755,size={}m", inside.disk);
    mount(&["-t", "tmpfs", "-o", &size, "machine"], at)?;
    let [upper, work, new] = ["upper", "work", "root"].map(|name| at.join(name));
    for folder in [&upper, &work, &new] {
        fs::create_dir(folder).map_err(of(folder.display()))?;
    }
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        inside.image.root.display(),
        upper.display(),
        work.display()
    );
    mount(&["-t", "overlay", "-o", &layers, "overlay"], &new)?;
    for folder in ["proc", "sys", "dev", "etc", "run", "root", "tmp"] {
        fs::create_dir_all(new.join(folder)).map_err(of(folder))?;
    }
    fs::set_permissions(new.join("tmp"), Permissions::from_mode(0o1777)).map_err(of("/tmp"))?;
    mount(&["-t", "proc", "proc"], &new.join("proc"))?;
    mount(&["-t", "sysfs", "-o", "ro", "sysfs"], &new.join("sys"))?;
    devices(&new.join("dev"))?;
    let itself = inside.address.map(|a| format!("{a} {}\n", inside.hostname)).unwrap_or_default();
    let files = [
        ("etc/hostname", format!("{}\n", inside.hostname)),
        ("etc/hosts", format!("127.0.0.1 localhost\n{itself}")),
        // There are no names beyond the machine.
        ("etc/resolv.conf", String::new()),
    ];
    for (name, text) in files {
        let path = new.join(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, text).map_err(of(name))?;
    }
    for bind in &inside.image.binds {
        add(&new, bind)?;
    }
    Ok(new)
}

/// Makes `new` the root of this process and of all that it starts.
pub(crate) fn enter(new: &Path) -> Result<()> {
    std::env::set_current_dir(new).map_err(of(new.display()))?;
    run("mount", &["--move", ".", "/"])?;
    chroot(".").map_err(of("chroot"))?;
    std::env::set_current_dir("/").map_err(of("/"))
}

/// Becomes a program. Returns only if it cannot.
pub(crate) fn exec(program: &Program, hostname: &str) -> String {
    let Some((first, rest)) = program.argv.split_first() else {
        return "no command is specified".to_owned();
    };
    let own = [("PATH", PATH), ("HOSTNAME", hostname), ("HOME", "/root")];
    let mut environment: BTreeMap<&str, &str> = own.into();
    environment.extend(program.environment.iter().map(|(name, value)| (&**name, &**value)));
    let mut command = Command::new(first);
    command.args(rest).env_clear().envs(environment).stdin(Stdio::null());
    let error = command.exec();
    format!("exec {first:?}: {error}")
}

fn devices(dev: &Path) -> Result<()> {
    mount(&["-t", "tmpfs", "-o", "mode=755", "dev"], dev)?;
    for name in DEVICES {
        let from = Path::new("/dev").join(name);
        add(dev, &Bind { from, to: Path::new("/").join(name), read_only: false })?;
    }
    for (name, kind, options) in
        [("pts", "devpts", "newinstance,ptmxmode=0666"), ("shm", "tmpfs", "mode=1777,size=64m")]
    {
        let at = dev.join(name);
        fs::create_dir(&at).map_err(of(at.display()))?;
        mount(&["-t", kind, "-o", options, kind], &at)?;
    }
    let links = [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    for (name, target) in links {
        symlink(target, dev.join(name)).map_err(of(name))?;
    }
    Ok(())
}

fn add(new: &Path, bind: &Bind) -> Result<()> {
    let inside = bind.to.strip_prefix("/").map_err(of(bind.to.display()))?;
    let at = new.join(inside);
    let of_it = || of(at.display());
    if bind.from.is_dir() {
        fs::create_dir_all(&at).map_err(of_it())?;
    } else if !at.exists() {
        fs::create_dir_all(at.parent().unwrap_or(new)).map_err(of_it())?;
        fs::write(&at, "").map_err(of_it())?;
    }
    let from = bind.from.display().to_string();
    mount(&["--bind", &from], &at)?;
    if bind.read_only { mount(&["-o", "remount,bind,ro"], &at) } else { Ok(()) }
}

fn mount(words: &[&str], at: &Path) -> Result<()> {
    let at = at.display().to_string();
    run("mount", &[words, &[at.as_str()]].concat()).map(drop)
}
