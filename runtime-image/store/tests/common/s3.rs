//! A real S3 server to test against.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// A versitygw that serves a folder, with one bucket: `bucket`.
pub struct Server {
    child: Child,
    at: SocketAddr,
    pub root: TempDir,
}

impl Server {
    pub fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST)
    }

    /// One at another of this host's addresses.
    pub fn start_at(address: Ipv4Addr) -> Self {
        let at = SocketAddr::from((address, free_port(address)));
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("bucket")).unwrap();
        let child = serve(at, root.path());
        Self { child, at, root }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn again(&mut self) {
        self.child = serve(self.at, self.root.path());
    }

    pub fn credentials(&self) -> BTreeMap<&'static str, String> {
        [
            ("AWS_ACCESS_KEY_ID", "access".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "secret-canary".to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://{}", self.at)),
            ("AWS_REGION", "us-east-1".to_owned()),
        ]
        .into()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Below the range of outgoing connections, so that it is still free after a restart.
fn free_port(address: Ipv4Addr) -> u16 {
    let random = RandomState::new();
    (0..200u32)
        .map(|attempt| 20_000 + (random.hash_one(attempt) % 12_000) as u16)
        .find(|port| TcpListener::bind((address, *port)).is_ok())
        .unwrap()
}

/// As the store takes them.
pub fn borrowed<'a>(
    credentials: &'a BTreeMap<&'static str, String>,
) -> petaflop_store::place::Credentials<'a> {
    credentials.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

fn serve(at: SocketAddr, root: &Path) -> Child {
    let child = Command::new(petaflop_harness::tools::versitygw().unwrap())
        .args(["--access", "access", "--secret", "secret-canary", "--port"])
        .arg(at.to_string())
        .arg("posix")
        .arg(root)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(at).is_err() {
        assert!(Instant::now() < deadline, "the server does not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
    child
}
