//! Machines with the images that the tests know, and what they say.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use petaflop_cloud_box::host::{Boot, Host};
use petaflop_cloud_box::machines::{Image, Machines};
use petaflop_harness::{roots, tools};

/// busybox alone, as in Alpine.
pub(crate) const ALPINE: &str = "example.org/alpine:1";
/// Debian, with bash and curl.
pub(crate) const DEBIAN: &str = "example.org/debian:1";
/// No shell, no program but the one it is for.
pub(crate) const DISTROLESS: &str = "example.org/distroless:1";
/// The programs of [`DEBIAN`] on a whole machine.
pub(crate) const AMI: &str = "ami-0123456789abcdef0";

/// Generous: the machines of several tests start on few processors.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// `None` where they cannot be: said, and under CI a failure.
pub(crate) fn machines() -> Option<Machines> {
    if !tools::is_root() {
        assert!(std::env::var_os("CI").is_none(), "not tested: machines of the box need root");
        eprintln!("NOT TESTED HERE: machines of the box need root");
        return None;
    }
    // Another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let program = petaflop_tests::static_binary("petaflop-box-machine").unwrap();
    let debian = Image::new(roots::debian().unwrap()).starting(&["/bin/bash"]);
    let distroless = Image::new(roots::empty().unwrap());
    let images = BTreeMap::from([
        (ALPINE.to_owned(), Image::new(roots::busybox().unwrap()).starting(&["/bin/sh"])),
        (AMI.to_owned(), debian.clone()),
        (DEBIAN.to_owned(), debian),
        (
            DISTROLESS.to_owned(),
            distroless.with(agent(), "/petaflop-agent").starting(&["/petaflop-agent"]),
        ),
    ]);
    Some(Machines::start(&program, images).unwrap())
}

/// The static agent.
pub(crate) fn agent() -> PathBuf {
    petaflop_tests::static_binary("petaflop-agent").unwrap()
}

/// A container that runs these lines of shell.
pub(crate) fn shell(image: &str, script: &str) -> Boot {
    let words = ["/bin/sh", "-c", script];
    Boot {
        image: image.to_owned(),
        entrypoint: Some(words.iter().map(|word| (*word).to_owned()).collect()),
        ..Boot::default()
    }
}

/// Asks again until there is something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let asked = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(asked.elapsed() < SOON, "still not: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until a machine has written this.
pub(crate) fn says(machines: &Machines, machine: &str, text: &str) -> String {
    let asked = Instant::now();
    loop {
        let log = machines.log(machine);
        if log.contains(text) {
            return log;
        }
        let ended = machines.exit(machine);
        assert!(ended.is_none(), "{machine} ended ({ended:?}) without {text:?}: {log}");
        assert!(asked.elapsed() < SOON, "{machine} does not say {text:?}: {log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How a machine ended, and what it had written.
pub(crate) fn ended(machines: &Machines, machine: &str) -> (i32, String) {
    let code = until("the end of a machine", || machines.exit(machine));
    (code, machines.log(machine))
}

/// A server on one side of the host that answers every request with this.
pub(crate) fn serve(machines: &Machines, at: Ipv4Addr, body: Vec<u8>) -> SocketAddr {
    machines.serve(at, body).unwrap()
}

/// Starts a machine, as an engine does.
pub(crate) fn start(machines: &Machines, machine: &str, boot: &Boot) {
    machines.clone().start(machine, boot);
}
