//! A relay before a server that counts what clients send, and holds it up at a chosen byte.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

#[derive(Default)]
struct State {
    sent: AtomicU64,
    /// Nothing beyond so many bytes is passed on; 0: all is.
    limit: AtomicU64,
    held_up: AtomicBool,
    /// How often the limit was taken away.
    turn: AtomicU64,
}

pub struct Relay {
    address: SocketAddr,
    state: Arc<State>,
}

impl Relay {
    /// Before the server at this URL.
    pub fn before(url: &str) -> Self {
        let server: SocketAddr = url.strip_prefix("http://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, state) = (client.unwrap(), shared.clone());
                let Ok(server) = TcpStream::connect(server) else { continue };
                let (back, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pass(server, back, |_| true));
                std::thread::spawn(move || {
                    let turn = state.turn.load(SeqCst);
                    pass(client, to, |bytes| state.lets_through(bytes, turn));
                });
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Bytes that clients have sent, headers included, since the last asking.
    pub fn take(&self) -> u64 {
        self.state.sent.swap(0, SeqCst)
    }

    /// Passes on no more than this from now on, until [`Relay::go_on`].
    pub fn hold_up_after(&self, bytes: u64) {
        self.state.limit.store(self.state.sent.load(SeqCst) + bytes, SeqCst);
    }

    /// Waits until that many were passed on.
    pub fn wait_until_held_up(&self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !self.state.held_up.load(SeqCst) {
            assert!(Instant::now() < deadline, "the client sends too little");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Cuts the connections that were held up; new ones pass, counted from 0.
    pub fn go_on(&self) {
        self.state.limit.store(0, SeqCst);
        self.state.turn.fetch_add(1, SeqCst);
        self.state.sent.store(0, SeqCst);
    }
}

impl State {
    fn lets_through(&self, bytes: u64, turn: u64) -> bool {
        let limit = self.limit.load(SeqCst);
        let now = self.sent.fetch_add(bytes, SeqCst) + bytes;
        if limit == 0 || now <= limit {
            return turn == self.turn.load(SeqCst);
        }
        self.held_up.store(true, SeqCst);
        while turn == self.turn.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, may: impl Fn(u64) -> bool) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if !may(read as u64) || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
