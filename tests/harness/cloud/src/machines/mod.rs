//! Machines that are real: each a process tree in network, mount, process and host name namespaces of
//! its own, on a switch that only this test's machines and the host are on. Root only.
//!
//! | module | holds |
//! |---|---|
//! | `world` | the process beside the test that makes the machines, and outlives it to clear up |
//! | `relay` | ports of a machine, at other ports of the host |
//! | `metadata` | EC2's metadata service, which a machine finds at its usual address |
//!
//! The host has two addresses on the switch: the provider's, for clouds in a box
//! ([`Machines::provider`]), and the operator's, for everything that is the user's
//! ([`Machines::operator`]): so that a machine can lose one and keep the other. A machine reaches
//! these two and other machines, and nothing else.

mod metadata;
mod relay;
mod world;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use petaflop_box_machine::{Bind, Event, Inside, Order, Start, What, Whole, carried};
pub use petaflop_box_machine::{Image, Side};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::task::AbortHandle;

use self::metadata::Service;
use self::world::World;
use crate::host::{Boot, Host, Wake};

/// The first machine's last byte; the host has the ones below.
const FIRST: u32 = 10;
/// How many machines have addresses of their own.
const ADDRESSES: u32 = 240;
/// Megabytes that a machine may write; they are in memory.
const DISK: u64 = 8192;
/// Says to petaflop's runtime which of its kernels to use.
const ISA: &str = "PETAFLOP_ISA";

/// Machines on one switch. Clones are the same machines; with the last one they end, and so they do
/// with the test's process, however that ends.
#[derive(Clone)]
pub struct Machines(Arc<Inner>);

struct Inner {
    program: PathBuf,
    images: BTreeMap<String, Image>,
    /// Kernels that this host can run, best first.
    variants: Vec<&'static str>,
    shared: Arc<Mutex<Shared>>,
    world: World,
    runtime: Option<Runtime>,
}

#[derive(Default)]
struct Shared {
    started: u32,
    rented: BTreeMap<String, Rented>,
    wakes: Vec<Wake>,
    /// Files of the host's, and after how many machines each has them.
    equipment: Vec<(u32, Bind)>,
}

struct Rented {
    number: u32,
    address: Ipv4Addr,
    ports: BTreeMap<u16, SocketAddr>,
    service: Option<Arc<Service>>,
    tasks: Vec<AbortHandle>,
    /// How its process 1 ended.
    ended: Option<i32>,
}

impl Machines {
    /// A switch without machines. `program` is `petaflop-box-machine`, static: it also runs inside
    /// of images. The images are all that can be pulled, by name.
    ///
    /// # Errors
    /// We are not root, or `unshare`, `nsenter`, `mount` or `ip` is missing.
    pub fn start(program: &Path, images: BTreeMap<String, Image>) -> io::Result<Self> {
        Self::of(program, images, variants())
    }

    /// The same, all with the best kernels that the host can run.
    ///
    /// # Errors
    /// As for [`Machines::start`].
    pub fn alike(program: &Path, images: BTreeMap<String, Image>) -> io::Result<Self> {
        let mut variants = variants();
        variants.truncate(1);
        Self::of(program, images, variants)
    }

    fn of(
        program: &Path,
        images: BTreeMap<String, Image>,
        variants: Vec<&'static str>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let heard = shared.clone();
        let world = World::start(program, move |event| hear(&heard, event))?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("machines")
            .enable_all()
            .build()?;
        let program = program.to_owned();
        Ok(Self(Arc::new(Inner {
            program,
            images,
            variants,
            shared,
            world,
            runtime: Some(runtime),
        })))
    }

    /// Where providers listen, for host and machines alike.
    pub fn provider(&self) -> Ipv4Addr {
        self.0.world.address(1)
    }

    /// Where everything of the user's listens, and from where machines are reached.
    pub fn operator(&self) -> Ipv4Addr {
        self.0.world.address(2)
    }

    /// A file server at one of these two: whoever asks it anything gets these bytes. It ends with the
    /// machines.
    ///
    /// # Errors
    /// It cannot listen there.
    pub fn serve(&self, at: Ipv4Addr, bytes: Vec<u8>) -> io::Result<SocketAddr> {
        let listener = std::net::TcpListener::bind((at, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let bytes = Bytes::from(bytes);
        let router = Router::new().fallback(move || async move { bytes.clone() });
        if let Some(runtime) = &self.0.runtime {
            let _inside = runtime.enter();
            let listener = TcpListener::from_std(listener)?;
            tokio::spawn(async move { axum::serve(listener, router).await });
        }
        Ok(address)
    }

    /// What a machine wrote to its console, or a container to its output.
    pub fn log(&self, machine: &str) -> String {
        let number = self.0.number(machine).unwrap_or_default();
        self.0.world.log(number)
    }

    /// How a machine's process 1 ended, once nothing runs there any more.
    pub fn exit(&self, machine: &str) -> Option<i32> {
        self.0.shared().rented.get(machine).and_then(|rented| rented.ended)
    }

    /// Every machine after the first so many has this file of the host's too, to be written to: what
    /// passes there for a device. It is the box's own, and computes nothing.
    pub fn equip(&self, after: u32, from: &Path, to: &str) {
        let bind = Bind { from: from.to_owned(), to: PathBuf::from(to), read_only: false };
        self.0.shared().equipment.push((after, bind));
    }

    /// Its host dies: everything at once, without a word.
    pub fn kill(&self, machine: &str) {
        self.0.tell(machine, Order::Kill);
    }

    /// What goes between a machine and one side is lost, both ways.
    pub fn cut(&self, machine: &str, side: Side) {
        self.0.tell(machine, |number| Order::Cut(number, side));
    }

    /// A machine reaches everybody again.
    pub fn mend(&self, machine: &str) {
        self.0.tell(machine, Order::Mend);
    }
}

impl Host for Machines {
    fn wakes(&mut self, wake: Wake) {
        self.0.shared().wakes.push(wake);
    }

    fn listens(&self) -> IpAddr {
        self.provider().into()
    }

    fn pulls(&self, image: &str) -> bool {
        self.0.images.contains_key(image)
    }

    fn start(&mut self, machine: &str, boot: &Boot) {
        if let Err(why) = self.0.start(machine, boot) {
            world::complain(&format!("machine {machine} does not start: {why}"));
        }
    }

    fn notice(&mut self, machine: &str, left: Duration) {
        if let Some(service) = self.0.service(machine) {
            service.notice(left);
        }
    }

    fn recommend(&mut self, machine: &str) {
        if let Some(service) = self.0.service(machine) {
            service.recommend();
        }
    }

    fn end(&mut self, machine: &str, grace: Duration) {
        let millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.0.tell(machine, |number| Order::End(number, millis));
    }

    fn alive(&mut self, machine: &str) -> bool {
        self.0.shared().rented.get(machine).is_some_and(|rented| rented.ended.is_none())
    }

    fn address(&self, machine: &str, port: u16) -> Option<SocketAddr> {
        let shared = self.0.shared();
        let rented = shared.rented.get(machine).filter(|rented| rented.ended.is_none());
        rented.and_then(|rented| rented.ports.get(&port)).copied()
    }

    fn gives_addresses(&self) -> bool {
        true
    }

    fn own_address(&self, machine: &str) -> Option<Ipv4Addr> {
        let shared = self.0.shared();
        let rented = shared.rented.get(machine).filter(|rented| rented.ended.is_none());
        rented.map(|rented| rented.address)
    }
}

impl Inner {
    fn start(&self, machine: &str, boot: &Boot) -> io::Result<()> {
        let Boot { image, entrypoint, command, environment, ports, cpu_millis, memory, metadata } =
            boot;
        let mut image = self.images.get(image).cloned().ok_or(io::ErrorKind::NotFound)?;
        let number = {
            let mut shared = self.shared();
            shared.started += 1;
            let started = shared.started;
            let has = shared.equipment.iter().filter(|(after, _)| started > *after);
            image.binds.extend(has.map(|(_, bind)| bind.clone()));
            started
        };
        let address = self.world.address((FIRST + number % ADDRESSES) as u8);
        let Some(runtime) = &self.runtime else { return Ok(()) };
        let _inside = runtime.enter();

        let mut tasks = Vec::new();
        let mut mapped = BTreeMap::new();
        for port in ports {
            let (at, task) = relay::open(self.world.address(2), (address, *port).into())?;
            mapped.insert(*port, at);
            tasks.push(task);
        }
        let variant = &self.variants[number as usize % self.variants.len()];
        let variant = BTreeMap::from([(ISA.to_owned(), (*variant).to_owned())]);
        let mut service = None;
        let (what, socket) = match metadata {
            None => {
                let mut all = variant;
                all.extend(environment.clone());
                let program = image.program(entrypoint.as_deref(), command.as_deref(), &all);
                (What::Container(program), None)
            }
            Some(facts) => {
                let socket = self.world.folder().join(format!("{number}.metadata"));
                let own = Arc::new(Service::new(machine, &boot.image, address, facts.clone()));
                tasks.push(own.clone().serve(&socket)?);
                service = Some(own);
                let (images, binds) = carried(&self.images, &self.program);
                image.binds.extend(binds);
                let user_data = facts.user_data.clone();
                let whole = Whole { user_data, images, environment: variant };
                (What::Whole(whole), Some((socket, facts.hop_limit)))
            }
        };
        let inside = Inside {
            hostname: machine.to_owned(),
            address: Some(address),
            image,
            disk: DISK,
            what,
        };
        let (cpu_millis, memory) = (*cpu_millis, *memory);
        let start =
            Start { machine: number, address, cpu_millis, memory, metadata: socket, inside };
        let rented = Rented { number, address, ports: mapped, service, tasks, ended: None };
        // One that was stopped and starts again is another machine in the same place.
        self.shared().rented.insert(machine.to_owned(), rented);
        self.world.tell(&Order::Start(Box::new(start)));
        Ok(())
    }

    fn tell(&self, machine: &str, order: impl FnOnce(u32) -> Order) {
        if let Some(number) = self.number(machine) {
            self.world.tell(&order(number));
        }
    }

    fn number(&self, machine: &str) -> Option<u32> {
        self.shared().rented.get(machine).map(|rented| rented.number)
    }

    fn service(&self, machine: &str) -> Option<Arc<Service>> {
        self.shared().rented.get(machine).and_then(|rented| rented.service.clone())
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Also from inside another runtime, where waiting would be refused.
            runtime.shutdown_background();
        }
    }
}

fn hear(shared: &Mutex<Shared>, event: Event) {
    match event {
        Event::Ready(_) => {}
        Event::Note(text) => world::complain(&text),
        Event::Ended(number, code) => {
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            for rented in shared.rented.values_mut().filter(|rented| rented.number == number) {
                rented.ended = Some(code);
                for task in rented.tasks.drain(..) {
                    task.abort();
                }
            }
            let wakes = shared.wakes.clone();
            drop(shared);
            for wake in wakes {
                wake();
            }
        }
    }
}

/// Kernel variants of petaflop's runtime that this host can run. The portable one gives the same bits
/// a hundred times slower: a machine has it only where there is no other.
fn variants() -> Vec<&'static str> {
    let mut variants = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            variants.push("avx512");
        }
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            variants.push("avx2");
        }
    }
    #[cfg(target_arch = "aarch64")]
    variants.push("neon");
    if variants.is_empty() {
        variants.push("portable");
    }
    variants
}
