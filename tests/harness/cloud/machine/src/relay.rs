//! The metadata service's address inside a machine's network: each connection is carried to a socket
//! of the host, where the service itself is.

use std::io::{self, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use rustix::process::Signal;

use crate::{Result, of};

/// Where EC2's instances find it.
pub(crate) const ADDRESS: &str = "169.254.169.254:80";

pub(crate) fn run(socket: &Path, hops: &str) -> Result<u8> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(of("prctl"))?;
    let hops: u32 = hops.parse().map_err(of(hops))?;
    let listener = TcpListener::bind(ADDRESS).map_err(of(ADDRESS))?;
    // Whoever started this goes on now.
    let _ = writeln!(io::stdout(), "listening");
    for inside in listener.incoming().flatten() {
        let _ = inside.set_ttl(hops);
        // Without a service behind it, it is as if nobody listened.
        if let Ok(outside) = UnixStream::connect(socket) {
            thread::spawn(move || carry(&inside, &outside));
        }
    }
    Ok(0)
}

fn carry(inside: &TcpStream, outside: &UnixStream) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = io::copy(&mut &*inside, &mut &*outside);
            let _ = outside.shutdown(Shutdown::Write);
        });
        let _ = io::copy(&mut &*outside, &mut &*inside);
        let _ = inside.shutdown(Shutdown::Both);
    });
}
