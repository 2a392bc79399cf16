//! The process beside the test that makes the machines. Its standard input is the line by which it is
//! told; when that ends, it clears up.

use std::io::{self, BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use petaflop_box_machine::{Event, Order};

pub(super) struct World {
    folder: PathBuf,
    network: [u8; 3],
    line: Mutex<Option<ChildStdin>>,
    process: Mutex<Child>,
}

impl World {
    pub(super) fn start(program: &Path, hear: impl Fn(Event) + Send + 'static) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("petaflop-box-").tempdir()?;
        // A group of its own: what ends the test from a terminal does not end it.
        let mut process = Command::new("unshare")
            .args(["--net", "--"])
            .arg(program)
            .arg("world")
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let (Some(line), Some(events)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let mut events = BufReader::new(events).lines();
        let first = events.next().transpose()?.unwrap_or_default();
        let Ok(Event::Ready(network)) = serde_json::from_str(&first) else {
            drop(line);
            let status = process.wait()?;
            return Err(io::Error::other(format!("there is no switch for machines ({status})")));
        };
        std::thread::Builder::new().name("machines".into()).spawn(move || {
            for event in events.map_while(Result::ok) {
                match serde_json::from_str(&event) {
                    Ok(event) => hear(event),
                    Err(why) => complain(&format!("{event}: {why}")),
                }
            }
        })?;
        // From here on the process removes it.
        let folder = folder.keep();
        Ok(Self { folder, network, line: Mutex::new(Some(line)), process: Mutex::new(process) })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The address that ends so.
    pub(super) fn address(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.network;
        Ipv4Addr::new(a, b, c, last)
    }

    pub(super) fn tell(&self, order: &Order) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let text = serde_json::to_string(order).map(|text| text + "\n");
        if let (Some(line), Ok(text)) = (line.as_mut(), text)
            && let Err(why) = line.write_all(text.as_bytes())
        {
            complain(&format!("the machines' process is gone: {why}"));
        }
    }

    pub(super) fn log(&self, number: u32) -> String {
        let path = self.folder.join(format!("{number}.log"));
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.line.lock().unwrap_or_else(PoisonError::into_inner).take());
        let _ = self.process.lock().unwrap_or_else(PoisonError::into_inner).wait();
    }
}

/// Where a test's reader finds it.
pub(super) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "machines in the box: {text}");
}
