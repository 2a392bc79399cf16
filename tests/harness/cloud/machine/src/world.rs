//! The process beside the test: a switch (a bridge in a network namespace of its own, with one cable
//! to the host), and the machines on it.
//!
//! Its standard input ends when the test's process does, however that ends. Then it kills every
//! machine, and nothing is left: processes in their namespaces die with process 1, mounts and
//! networks with the last process in them, the cable to the host with the switch. What would stay,
//! cgroups and the folder of state, it removes.

mod groups;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use petaflop_box_machine::{Event, Order, Side, Start, What};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use self::groups::Groups;
use crate::enter::{self, Spec, first, pid};
use crate::whole::{self, Request};
use crate::{Result, ip, of};

/// The host's addresses, by their last byte.
const PROVIDER: u8 = 1;
const OPERATOR: u8 = 2;
/// Nobody has it: what is sent there is lost.
const NOWHERE: &str = "02:00:00:00:00:ff";
/// Switches of one host.
const NETWORKS: u16 = 1024;
/// A machine's cable is there long before.
const WIRED_WITHIN: Duration = Duration::from_secs(10);

pub(crate) fn run(state: &Path) -> Result<u8> {
    let parent = rustix::process::getppid().ok_or("nobody started this")?;
    let network = attach(parent)?;
    let world = Arc::new(World {
        state: state.to_owned(),
        network: subnet(network),
        groups: Groups::new(&device(network)),
        live: Mutex::default(),
        changed: Condvar::new(),
    });
    say(&Event::Ready(world.network));
    for line in io::stdin().lines() {
        let Ok(line) = line else { break };
        let done = serde_json::from_str(&line).map_err(of("order")).and_then(|o| world.obey(o));
        if let Err(why) = done {
            say(&Event::Note(why));
        }
    }
    world.end_everything();
    world.groups.remove();
    fs::remove_dir_all(state).map_err(of(state.display()))?;
    Ok(0)
}

struct World {
    state: PathBuf,
    network: [u8; 3],
    groups: Groups,
    live: Mutex<BTreeMap<u32, Live>>,
    /// A machine is gone.
    changed: Condvar,
}

/// A machine that has not ended.
#[derive(Clone, Copy)]
struct Live {
    /// Its process outside of its namespaces but for the network; process 1 is its child. `None`:
    /// it has ended, and something of it is still to be removed.
    shim: Option<Pid>,
    whole: bool,
}

impl World {
    fn obey(self: &Arc<Self>, order: Order) -> Result<()> {
        match order {
            Order::Start(start) => self.start(*start),
            Order::End(machine, grace) => self.end(machine, Duration::from_millis(grace)),
            Order::Kill(machine) => self.kill(machine),
            Order::Cut(machine, side) => return self.cut(machine, side),
            Order::Mend(machine) => return self.mend(machine),
        }
        Ok(())
    }

    fn start(self: &Arc<Self>, start: Start) {
        let (machine, whole) = (start.machine, matches!(start.inside.what, What::Whole(_)));
        match self.spawn(start) {
            Ok(child) => {
                let Some(shim) = pid(child.id()) else { return };
                self.live().insert(machine, Live { shim: Some(shim), whole });
                let world = self.clone();
                thread::spawn(move || world.await_end(machine, shim, child));
            }
            Err(why) => {
                say(&Event::Note(why));
                say(&Event::Ended(machine, -1));
            }
        }
    }

    /// Always by the same thread: the child dies with the thread that made it.
    fn spawn(&self, start: Start) -> Result<Child> {
        let machine = start.machine;
        let path = self.state.join(machine.to_string());
        let log = File::create(path.with_extension("log")).map_err(of("log"))?;
        let groups = self.groups.make(machine, start.cpu_millis, start.memory)?;
        let world = rustix::process::getpid().as_raw_pid();
        enter::write(&path, &Spec { start, groups, world })?;
        Command::new(enter::itself()?)
            .arg("enter")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(of("log"))?)
            .stderr(log)
            .spawn()
            .map_err(of("enter"))
    }

    fn await_end(&self, machine: u32, shim: Pid, mut child: Child) {
        // Its number stays its own until nobody here can send it a signal any more.
        let _ = waitid(WaitId::Pid(shim), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        let status = {
            let mut live = self.live();
            if let Some(machine) = live.get_mut(&machine) {
                machine.shim = None;
            }
            child.wait()
        };
        self.groups.remove_one(machine);
        self.live().remove(&machine);
        self.changed.notify_all();
        let code = status.ok().and_then(|status| status.code());
        say(&Event::Ended(machine, code.unwrap_or(128 + 9)));
    }

    fn end(self: &Arc<Self>, machine: u32, grace: Duration) {
        let Some(Live { shim: Some(shim), whole }) = self.live().get(&machine).copied() else {
            return;
        };
        // One that never got as far as its process 1 has nothing to end in an orderly way.
        let told = first(shim).is_some_and(|init| {
            if whole { press_power_button(init) } else { kill_process(init, Signal::TERM).is_ok() }
        });
        if !told {
            return self.kill(machine);
        }
        let world = self.clone();
        thread::spawn(move || {
            let live = world.live();
            let there = |live: &mut BTreeMap<u32, Live>| live.contains_key(&machine);
            let (live, over) = world
                .changed
                .wait_timeout_while(live, grace, there)
                .unwrap_or_else(PoisonError::into_inner);
            drop(live);
            if over.timed_out() {
                world.kill(machine);
            }
        });
    }

    fn kill(&self, machine: u32) {
        let live = self.live();
        let Some(Live { shim: Some(shim), .. }) = live.get(&machine).copied() else { return };
        // It makes no child any more, so the one that it has is the only one.
        let _ = kill_process(shim, Signal::STOP);
        if let Some(init) = first(shim) {
            let _ = kill_process(init, Signal::KILL);
        }
        let _ = kill_process(shim, Signal::KILL);
    }

    fn cut(&self, machine: u32, side: Side) -> Result<()> {
        let last = match side {
            Side::Operator => OPERATOR,
            Side::Provider => PROVIDER,
            Side::All => {
                self.wired(machine)?;
                return ip(None, &format!("link set m{machine} nomaster\n")).map(drop);
            }
        };
        let line = format!(
            "neighbour replace {} lladdr {NOWHERE} dev eth0 nud permanent\n",
            address(self.network, last)
        );
        ip(Some(self.wired(machine)?), &line).map(drop)
    }

    fn mend(&self, machine: u32) -> Result<()> {
        let process = self.wired(machine)?;
        ip(None, &format!("link set m{machine} master switch\n"))?;
        for last in [OPERATOR, PROVIDER] {
            // One that was not cut has nothing to forget, or what is true.
            let address = address(self.network, last);
            let _ = ip(Some(process), &format!("neighbour del {address} dev eth0\n"));
        }
        Ok(())
    }

    /// A process in the machine's network, once its cable lies.
    fn wired(&self, machine: u32) -> Result<u32> {
        let own = fs::read_link("/proc/self/ns/net").map_err(of("network"))?;
        let asked = Instant::now();
        while asked.elapsed() < WIRED_WITHIN {
            let live = self.live().get(&machine).copied();
            let shim = live.and_then(|live| live.shim);
            let shim = shim.ok_or_else(|| format!("machine {machine} is gone"))?;
            let process = shim.as_raw_pid().cast_unsigned();
            let network = fs::read_link(format!("/proc/{process}/ns/net"));
            if first(shim).is_some() && network.is_ok_and(|network| network != own) {
                return Ok(process);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Err(format!("machine {machine} has no cable"))
    }

    fn end_everything(&self) {
        let all: Vec<u32> = self.live().keys().copied().collect();
        for machine in all {
            self.kill(machine);
        }
        let none = |live: &mut BTreeMap<u32, Live>| !live.is_empty();
        let left = self.changed.wait_while(self.live(), none);
        drop(left.unwrap_or_else(PoisonError::into_inner));
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<u32, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the switch in this process's network, and a cable to the host's, which is that of `parent`.
/// The cable's name there decides which network it is: the kernel gives each name once.
fn attach(parent: Pid) -> Result<u16> {
    let parent = parent.as_raw_pid().cast_unsigned();
    ip(None, "link add switch type bridge stp_state 0\nlink set lo up\nlink set switch up\n")?;
    let first = std::process::id() % u32::from(NETWORKS);
    for step in 0..NETWORKS {
        let network = (first as u16 + step) % NETWORKS;
        let (name, [a, b, c]) = (device(network), subnet(network));
        let range = format!("{a}.{b}.{c}.0/24");
        let routes = format!("route show match {range}\nroute show root {range}\n");
        let elsewhere = |line: &str| !line.is_empty() && !line.starts_with("default");
        if ip(Some(parent), &routes)?.lines().any(elsewhere) {
            continue;
        }
        let cable = ["link", "add", "uplink", "type", "veth", "peer", "name", &name, "netns"];
        match crate::run("ip", &[&cable[..], &[parent.to_string().as_str()]].concat()) {
            Ok(_) => {}
            Err(why) if why.contains("File exists") => continue,
            Err(why) => return Err(why),
        }
        ip(None, "link set uplink master switch\nlink set uplink up\n")?;
        // From the first of them the host dials: what dials machines is the user's.
        let [first, second] = [OPERATOR, PROVIDER].map(|last| address([a, b, c], last));
        let host = format!(
            "address add {first}/24 dev {name}\naddress add {second}/24 dev {name}\n\
             link set {name} up\n"
        );
        return ip(Some(parent), &host).map(|_| network);
    }
    Err("every network of the box is taken on this host".to_owned())
}

fn device(network: u16) -> String {
    format!("pfbox{network}")
}

fn subnet(network: u16) -> [u8; 3] {
    let [high, low] = network.to_be_bytes();
    [10, 100 + high, low]
}

fn address([a, b, c]: [u8; 3], last: u8) -> String {
    format!("{a}.{b}.{c}.{last}")
}

/// As ACPI does; whether somebody heard it.
fn press_power_button(init: Pid) -> bool {
    let socket = format!("/proc/{}/root{}", init.as_raw_pid(), whole::SOCKET);
    whole::ask_at(&socket, &Request::PowerOff).is_ok()
}

fn say(event: &Event) {
    let Ok(mut line) = serde_json::to_string(event) else { return };
    line.push('\n');
    // Whoever listened is gone: the end of the input says the same.
    let _ = io::stdout().lock().write_all(line.as_bytes());
}
