//! The program as a process of its own.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::operator::{IDENTITY, Operator};

pub struct Program {
    pub child: Child,
    pub address: SocketAddr,
    pub work: tempfile::TempDir,
}

/// Where it was built.
pub const BUILT: &str = env!("CARGO_BIN_EXE_petaflop-agent");

pub fn command(program: &Path, operator: &Operator, work: &Path, port: u16) -> Command {
    let mut command = Command::new(program);
    command
        .arg("supervise")
        .env("PETAFLOP_IDENTITY", IDENTITY)
        .env("PETAFLOP_OPERATOR_KEY", operator.root.noise().public().to_string())
        .env("PETAFLOP_TOKEN", operator.root.token("uid-1", 1).expose().as_str())
        .env("PETAFLOP_PORT", port.to_string())
        .env("PETAFLOP_WORK", work)
        .env("PETAFLOP_NOTICE_FILE", work.join("notice"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

impl Program {
    pub fn start(operator: &Operator) -> Self {
        Self::start_with(Path::new(BUILT), operator, |_| ())
    }

    pub fn start_with(
        program: &Path,
        operator: &Operator,
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let work = tempfile::tempdir().unwrap();
        let mut command = command(program, operator, work.path(), port);
        change(&mut command);
        let child = command.spawn().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let program = Self { child, address, work };
        crate::operator::until("listening", || std::net::TcpStream::connect(address).is_ok());
        program
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "still running after {limit:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Resident bytes.
    pub fn memory(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    /// Processor time used so far.
    pub fn processor(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
