//! One happy path of the real SDK against moto, which nobody here has written: what we send is
//! understood, and what it answers too. Where moto is not as AWS is, docs/providers/aws.md says so.

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use petaflop_arbiter::claim::Identity;
use petaflop_arbiter::offer::Capacity;
use petaflop_providers::aws::{Aws, AwsConfig, HostImages};
use petaflop_providers::{EnrolmentToken, InstanceState, Order, Provider, Work};

use super::{SECRET, SESSION, TOKEN, config, identity, machine, offer};

const IMAGE: &str = "/aws/service/ecs/optimized-ami/amazon-linux-2023/gpu/recommended/image_id";
/// Of the first server; each has its own.
static PORT: AtomicU16 = AtomicU16::new(5555);

/// moto's server on a loopback address of this process's own.
struct Moto {
    child: Child,
    address: SocketAddr,
    /// What it wrote.
    log: tempfile::NamedTempFile,
}

impl Moto {
    fn start() -> Self {
        let [_, a, b, c] = std::process::id().to_be_bytes();
        let port = PORT.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from(([127, a | 64, b, c.clamp(1, 254)], port));
        let log = tempfile::NamedTempFile::new().expect("a file");
        let python = petaflop_harness::tools::moto().expect("moto");
        let file = || Stdio::from(log.reopen().expect("the file"));
        let child = Command::new(python)
            .args(["-m", "moto.server", "-H", &address.ip().to_string(), "-p", &port.to_string()])
            .env("MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION", "true")
            .stdout(file())
            .stderr(file())
            .spawn()
            .expect("moto starts");
        let moto = Self { child, address, log };
        let asked = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(asked.elapsed() < Duration::from_secs(120), "{}", moto.said());
            std::thread::sleep(Duration::from_millis(100));
        }
        moto
    }

    fn client(&self) -> Aws {
        let settings = AwsConfig {
            // Its offerings know no wildcards.
            types: vec!["g6.xlarge".into(), "c7i.xlarge".into()],
            // It has this one of the public parameters for accelerators.
            images: HostImages { gpu_x86: IMAGE.to_owned(), ..HostImages::default() },
            ..config(&format!("http://{}", self.address))
        };
        Aws::new(settings).expect("settings")
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.log.path()).expect("its log")
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn an_instance_is_quoted_bought_found_listed_and_ended_at_moto() {
    let moto = Moto::start();
    let aws = moto.client();
    let offers = aws.quote().await.unwrap_or_else(|error| panic!("{error}: {}", moto.said()));
    let of = |kind: &str, capacity: Capacity| {
        let wanted = offers.iter().filter(|it| it.instance_type == kind && it.capacity == capacity);
        let mut zones: Vec<&str> = wanted.map(|offer| offer.zone.as_str()).collect();
        zones.sort_unstable();
        zones
    };
    // By their ids, in which accounts agree; each zone has a subnet of its own.
    let zones = of("c7i.xlarge", Capacity::Spot);
    assert!(zones.len() > 2 && zones.iter().all(|zone| zone.starts_with("use1-az")), "{zones:?}");
    assert!(!of("g6.xlarge", Capacity::OnDemand).is_empty());
    let accelerators =
        offers.iter().find_map(|it| it.accelerators.clone()).expect("one has an accelerator");
    assert_eq!((accelerators.model.as_str(), accelerators.count), ("L4", 1));

    let (identity, machine) = (identity(), machine());
    let mut bought = Vec::new();
    for (attempt, capacity) in [(1, Capacity::Spot), (2, Capacity::OnDemand)] {
        let identity = Identity { attempt, ..identity.clone() };
        let offers = offers.iter().filter(|it| it.instance_type == "g6.xlarge");
        let offer = offers.clone().find(|it| it.capacity == capacity).expect("the offer");
        let order = Order { identity: &identity, offer, work: Work::Machine(&machine) };
        let request = aws.prepare(order).await.expect("a request");
        let id = aws.launch(&request, &EnrolmentToken::new(TOKEN)).await.expect("bought");
        let seen = aws.get(&id).await.expect("an answer").expect("the instance");
        assert_eq!(seen.identity, Some(identity), "{capacity}");
        assert!(seen.state.may_bill() && seen.trouble.is_none(), "{seen:?}");
        let was = seen.offer.expect("what was bought");
        assert_eq!((was.instance_type.as_str(), was.capacity), ("g6.xlarge", capacity));
        assert_eq!((was.region.as_str(), was.price), ("us-east-1", offer.price));
        bought.push(id);
    }
    bought.sort();
    let ids = |listing: petaflop_providers::provider::Listing| {
        assert!(listing.complete, "{}", moto.said());
        let billed = listing.instances.into_iter().filter(|one| one.state.may_bill());
        let mut ids: Vec<_> = billed.map(|one| one.id).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(aws.find(&identity).await.expect("an answer")), bought);
    assert_eq!(ids(aws.list(&identity.installation).await.expect("a list")), bought);
    let other = Identity { claim_uid: "another".into(), ..identity.clone() };
    assert_eq!(ids(aws.find(&other).await.expect("an answer")), []);
    assert_eq!(ids(aws.list("another").await.expect("a list")), []);

    // Another program ends them: it knows what it is told alone.
    let sweep = moto.client();
    for id in &bought {
        sweep.terminate(id).await.expect("ended");
        sweep.terminate(id).await.expect("ended before");
        let seen = sweep.get(id).await.expect("an answer");
        assert!(seen.is_none_or(|one| one.state == InstanceState::Terminated));
    }
    assert_eq!(ids(sweep.list(&identity.installation).await.expect("a list")), []);
    let said = moto.said();
    for secret in [SECRET, SESSION, TOKEN] {
        assert!(!said.contains(secret), "{said}");
    }
}

#[tokio::test]
async fn moto_buys_twice_what_aws_buys_once_so_that_nothing_of_that_is_tested_there() {
    let moto = Moto::start();
    let aws = moto.client();
    let offer = offer(&aws, Capacity::Spot).await;
    let (identity, machine) = (identity(), machine());
    let order = Order { identity: &identity, offer: &offer, work: Work::Machine(&machine) };
    let request = aws.prepare(order).await.expect("a request");
    let token = EnrolmentToken::new(TOKEN);
    let first = aws.launch(&request, &token).await.expect("bought");
    let second = aws.launch(&request, &token).await.expect("bought");
    assert_ne!(first, second, "moto honours ClientToken: test idempotency there, too");
    // Both are found: a machine too many is seen, whatever the reason.
    let found = aws.find(&identity).await.expect("an answer").instances;
    assert_eq!(found.len(), 2, "{found:?}");
    for id in [first, second] {
        aws.terminate(&id).await.expect("ended");
    }
}
