//! The gateway's promises, on real sockets: replicas are servers on loopback, some of which
//! misbehave byte by byte.

mod by_agent;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use petaflop_operator::gateway::{Config, State};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use support::{
    Backend, CHUNKED, SOON, Service, ask, error_code, post, read_until, ready, resident, streaming,
    until,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_replica_with_the_least_work_gets_the_request() {
    let busy = Backend::good("busy", Duration::from_secs(5)).await;
    let (a, b) =
        (Backend::good("a", Duration::ZERO).await, Backend::good("b", Duration::ZERO).await);
    let service = Service::start(Config::default(), &[&busy, &a, &b]).await;
    let at = service.at.clone();
    let slow = tokio::spawn(async move { ask(&at, &post("slow")).await });
    until("the first one is under way", || busy.asked() == 1).await;
    for _ in 0..20 {
        assert_eq!(service.post("quick").await.code, 200);
    }
    assert_eq!((busy.asked(), a.asked(), b.asked()), (1, 10, 10));
    assert_eq!(
        service.metric("petaflop_gateway_replica_in_flight_requests{replica=\"busy\"}").await,
        1
    );
    slow.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_dies_before_it_answers_costs_no_request() {
    // Takes the request, then closes: as if killed in between.
    let dying = Backend::new("dying", |_, _, _| async { None }).await;
    let refusing = Backend::new("refusing", |_, _, mut stream| async move {
        let head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(head).await.ok()?;
        Some(stream)
    })
    .await;
    let gone = Backend::good("gone", Duration::ZERO).await;
    let good = Backend::good("good", Duration::ZERO).await;
    let replicas = [&dying, &refusing, &gone, &good];
    let service = Service::start(Config::default(), &replicas).await;
    gone.task.abort();
    until("its port is closed", || gone.task.is_finished()).await;
    let answer = service.post("a prompt").await;
    assert!(answer.code == 200 && answer.body.starts_with("good|8|"), "{answer:?}");
    for _ in 0..20 {
        assert_eq!(service.post("a prompt").await.code, 200);
    }
    assert_eq!((dying.asked(), refusing.asked(), gone.asked()), (1, 1, 0), "left alone since");
    for reason in ["closed", "status", "connect"] {
        let metric = format!("petaflop_gateway_retries_total{{reason=\"{reason}\"}}");
        assert_eq!(service.metric(&metric).await, 1, "{reason}");
    }
}

/// Answers to this key alone, as our server does.
async fn locked(name: &'static str, key: &'static str) -> Backend {
    Backend::new(name, move |head, _, mut stream| async move {
        let shown: Vec<&str> =
            head.lines().filter_map(|line| line.strip_prefix("petaflop-replica-key: ")).collect();
        let answer = match shown == [key] {
            true => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()),
            false => "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: petaflop-replica-key\r\n\
                  Content-Length: 4\r\n\r\nnone"
                .to_owned(),
        };
        stream.write_all(answer.as_bytes()).await.ok()?;
        Some(stream)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_gets_its_own_key_and_one_that_does_not_take_it_costs_no_request() {
    // At the address of one that is gone there is somebody else's by now.
    let (ours, theirs) = (locked("ours", "one").await, locked("theirs", "another").await);
    let config = Config { hold_timeout: Duration::from_millis(300), ..Config::default() };
    let service = Service::start(config, &[]).await;
    let key = |backend: &Backend, key: &str| petaflop_operator::gateway::Replica {
        key: Some(petaflop_agent_api::task::Secret::new(key)),
        ..backend.replica(State::Ready)
    };
    service.replicas.send_replace(vec![key(&theirs, "two"), key(&ours, "one")]);
    for _ in 0..4 {
        let answer = service.post("a prompt").await;
        assert!(answer.code == 200 && answer.body == "ours", "{answer:?}");
    }
    assert_eq!((ours.asked(), theirs.asked()), (4, 1), "left alone since");
    // A client's own is none.
    service.replicas.send_replace(vec![theirs.replica(State::Ready)]);
    let forged = post("x").replacen("Host: s", "Host: s\r\nPetaflop-Replica-Key: another", 1);
    let answer = ask(&service.at, &forged).await;
    assert_eq!((answer.code, error_code(&answer).as_str()), (503, "no_replica"));
    assert_eq!(theirs.asked(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_replica_comes_back_once_it_is_healthy() {
    let fails = Arc::new(AtomicUsize::new(1));
    let once = fails.clone();
    let backend = Backend::new("once", move |_, _, mut stream| {
        let fail = once.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        async move {
            if fail {
                return None;
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.ok()?;
            Some(stream)
        }
    })
    .await;
    let service = Service::start(Config::default(), &[&backend]).await;
    // The only one: the request waits for it, and is tried once more.
    assert_eq!(service.post("x").await.body, "ok");
    assert_eq!(backend.asked(), 2);
    fails.store(usize::MAX, SeqCst);
    let config = Config { hold_timeout: Duration::from_millis(300), ..Config::default() };
    let service = Service::start(config, &[&backend]).await;
    let answer = service.post("x").await;
    assert_eq!((answer.code, error_code(&answer).as_str()), (503, "no_replica"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_repeated_once_the_first_byte_went_out() {
    let cutting = Backend::new("cutting", |_, _, mut stream| async move {
        stream.write_all(CHUNKED).await.ok()?;
        stream.write_all(b"5\r\nhello\r\n").await.ok()?;
        None
    })
    .await;
    let good = Backend::good("good", Duration::ZERO).await;
    let service = Service::start(Config::default(), &[&cutting, &good]).await;
    let answer = service.post("x").await;
    assert_eq!(answer.code, 200);
    assert!(answer.body.contains("hello") && !answer.body.contains("0\r\n\r\n"), "{answer:?}");
    assert_eq!(good.asked(), 0);
    assert_eq!(service.metric("petaflop_gateway_cut_answers_total").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_pass_one_by_one_and_a_drained_replica_finishes_its_stream() {
    let (old, say, _left) = streaming("old").await;
    let new = Backend::good("new", Duration::from_millis(50)).await;
    let service = Service::start(Config::default(), &[&old]).await;
    let mut client = TcpStream::connect(&service.at).await.unwrap();
    client.write_all(post("stream").as_bytes()).await.unwrap();
    for event in 0..10 {
        if event == 5 {
            let replicas = vec![old.replica(State::Draining), new.replica(State::Ready)];
            service.replicas.send_replace(replicas);
            // Together, so that the new one has more to do than the old.
            for answer in futures::future::join_all((0..4).map(|_| service.post("x"))).await {
                assert!(answer.body.contains("new|"), "{answer:?}");
            }
        }
        // The next one is said only when this one has arrived.
        say.send(format!("data: {event}\n\n")).unwrap();
        read_until(&mut client, &format!("data: {event}\n\n")).await;
    }
    say.send(String::new()).unwrap();
    read_until(&mut client, "0\r\n\r\n").await;
    assert_eq!((old.asked(), new.asked()), (1, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_a_service_to_wake_from_zero() {
    let service = Service::start(Config::default(), &[]).await;
    let mut wish = service.gateway.wish();
    assert!(!wish.borrow().wake());
    let at = service.at.clone();
    let asked = tokio::spawn(async move { ask(&at, &post("first")).await });
    timeout(SOON, wish.wait_for(|wish| wish.wake())).await.unwrap().unwrap();
    assert_eq!(service.gateway.idle_for(), Duration::ZERO);
    let good = Backend::good("good", Duration::ZERO).await;
    service.replicas.send_replace(vec![good.replica(State::Starting)]);
    sleep(Duration::from_millis(50)).await;
    assert!(wish.borrow().wake() && !asked.is_finished(), "starting is not ready");
    service.replicas.send_replace(ready(&[&good]));
    let answer = asked.await.unwrap();
    assert!(answer.code == 200 && answer.body.starts_with("good|5|"), "{answer:?}");
    assert_eq!(wish.borrow().waiting, 0);
    sleep(Duration::from_millis(50)).await;
    assert!(service.gateway.idle_for() >= Duration::from_millis(40));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_is_told_when_to_come_back() {
    let config =
        Config { hold_timeout: Duration::from_millis(500), hold_requests: 1, ..Config::default() };
    let service = Service::start(config, &[]).await;
    let at = service.at.clone();
    let first = tokio::spawn(async move { ask(&at, &post("x")).await });
    let mut wish = service.gateway.wish();
    timeout(SOON, wish.wait_for(|wish| wish.waiting == 1)).await.unwrap().unwrap();
    let second = service.post("y").await;
    assert_eq!((second.code, error_code(&second).as_str()), (503, "queue_full"));
    let first = first.await.unwrap();
    assert_eq!((first.code, error_code(&first).as_str()), (503, "no_replica"));
    assert!(first.head.contains("retry-after: 10\r\n"), "{}", first.head);
    assert!(first.head.contains("content-type: application/json\r\n"), "{}", first.head);
    assert_eq!(service.metric("petaflop_gateway_requests_total{code=\"503\"}").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_bound_is_refused_and_no_replica_blamed() {
    let good = Backend::good("good", Duration::ZERO).await;
    let chunked = |bytes: usize| {
        let data = "x".repeat(bytes);
        format!(
            "POST / HTTP/1.1\r\nHost: s\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{bytes:x}\r\n{data}\r\n0\r\n\r\n"
        )
    };
    for replay_bytes in [10, 4000] {
        let config = Config { body_bytes: 3000, replay_bytes, ..Config::default() };
        let service = Service::start(config, &[&good]).await;
        for (request, code) in [
            (post(&"x".repeat(3000)), 200),
            (chunked(3000), 200),
            (post(&"x".repeat(3001)), 413),
            (post(&"x".repeat(1 << 20)), 413),
            (chunked(3001), 413),
            (chunked(1 << 20), 413),
            (post("x"), 200),
        ] {
            let answer = ask(&service.at, &request).await;
            assert_eq!(answer.code, code, "keeps {replay_bytes}: {answer:?}");
            if code == 413 {
                assert_eq!(error_code(&answer), "body_too_large");
            }
        }
        let failures = "petaflop_gateway_replica_failures_total{replica=\"good\"}";
        assert_eq!(service.metric(failures).await, 0);
        assert_eq!(service.gateway.kept_bytes(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_its_request_on_the_replica() {
    let (backend, say, left) = streaming("a").await;
    let service = Service::start(Config::default(), &[&backend]).await;
    let mut client = TcpStream::connect(&service.at).await.unwrap();
    client.write_all(post("x").as_bytes()).await.unwrap();
    say.send("first".to_owned()).unwrap();
    read_until(&mut client, "first").await;
    drop(client);
    // In the middle of a stream in which nothing is said.
    timeout(Duration::from_secs(2), left).await.expect("at once").unwrap();

    // And before any answer.
    let (leaves, left) = oneshot::channel();
    let leaves = Arc::new(std::sync::Mutex::new(Some(leaves)));
    let silent = Backend::new("silent", move |_, _, mut stream| {
        let leaves = leaves.lock().unwrap().take();
        async move {
            let _ = stream.read(&mut [0]).await;
            leaves?.send(()).unwrap();
            None
        }
    })
    .await;
    service.replicas.send_replace(ready(&[&silent]));
    sleep(Duration::from_millis(50)).await;
    let mut client = TcpStream::connect(&service.at).await.unwrap();
    client.write_all(post("x").as_bytes()).await.unwrap();
    until("it was asked", || silent.asked() == 1).await;
    drop(client);
    timeout(Duration::from_secs(2), left).await.expect("at once").unwrap();
    let metric = "petaflop_gateway_abandoned_requests_total";
    assert_eq!(service.metric(metric).await, 2);
    assert_eq!(service.metric("petaflop_gateway_in_flight_requests").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_loses_no_request() {
    let good = Backend::good("good", Duration::from_millis(400)).await;
    let config = Config { drain_delay: Duration::from_millis(600), ..Config::default() };
    let mut service = Service::start(config, &[&good]).await;
    let mut asked = JoinSet::new();
    let mut ask_some = |count| {
        for _ in 0..count {
            let at = service.at.clone();
            asked.spawn(async move { ask(&at, &post("x")).await });
        }
    };
    ask_some(20);
    until("all are under way", || good.asked() == 20).await;
    service.stop.take().unwrap().send(()).unwrap();
    sleep(Duration::from_millis(400)).await;
    assert_eq!(ask(&service.own, "GET /readyz HTTP/1.0\r\n\r\n").await.code, 503);
    assert_eq!(ask(&service.own, "GET /healthz HTTP/1.0\r\n\r\n").await.code, 200);
    // Not everybody has seen it yet.
    ask_some(20);
    until("these too", || good.asked() == 40).await;
    let mut answered = 0;
    while let Some(answer) = asked.join_next().await {
        assert_eq!(answer.unwrap().code, 200);
        answered += 1;
    }
    assert_eq!(answered, 40);
    timeout(SOON, service.over).await.expect("it ends").unwrap();
    assert!(TcpStream::connect(&service.at).await.is_err(), "nobody listens");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_at_once_lose_nothing_while_replicas_are_killed_and_replaced() {
    let delay = Duration::from_millis(30);
    let killed = Backend::good("killed", delay).await;
    let replaced = Backend::good("replaced", delay).await;
    let stays = Backend::good("stays", delay).await;
    let new = Backend::good("new", delay).await;
    let service = Service::start(Config::default(), &[&killed, &replaced, &stays]).await;
    let mut clients = JoinSet::new();
    for _ in 0..200 {
        let at = service.at.clone();
        clients.spawn(async move {
            let mut codes = Vec::new();
            for _ in 0..6 {
                codes.push(ask(&at, &post("a prompt")).await.code);
            }
            codes
        });
    }
    until("all replicas work", || {
        [&killed, &replaced, &stays].iter().all(|backend| backend.asked() > 40)
    })
    .await;
    killed.task.abort();
    let (draining, kept) = (replaced.replica(State::Draining), ready(&[&killed, &stays, &new]));
    service.replicas.send_replace([vec![draining], kept.clone()].concat());
    until("the new one works", || new.asked() > 40).await;
    service.replicas.send_replace(kept);
    let mut codes = Vec::new();
    while let Some(client) = clients.join_next().await {
        codes.extend(client.unwrap());
    }
    assert_eq!(codes.len(), 1200);
    assert_eq!(codes.iter().filter(|code| **code != 200).count(), 0, "{codes:?}");
    assert!(
        service.metric("petaflop_gateway_replica_failures_total{replica=\"killed\"}").await >= 1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_one_connection_is_not_passed_on() {
    let good = Backend::good("good", Duration::ZERO).await;
    let service = Service::start(Config::default(), &[&good]).await;
    let request = "GET /v1/models HTTP/1.1\r\nHost: s\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\n\
                   Keep-Alive: timeout=9\r\nProxy-Authorization: x\r\nTE: trailers\r\nUpgrade: h2c\r\n\
                   X-Request-Id: abc-1\r\nAuthorization: Bearer key\r\n\r\n";
    let answer = ask(&service.at, request).await;
    let seen = answer.body.split_once("GET /v1/models").unwrap().1;
    for gone in ["x-mine", "keep-alive", "proxy-authorization", "te:", "upgrade", "close"] {
        assert!(!seen.contains(gone), "{gone} reached the replica: {seen}");
    }
    for kept in [
        "authorization: bearer key\r\n",
        "x-request-id: abc-1\r\n",
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-forwarded-host: s\r\n",
        &format!("host: {}\r\n", good.address),
    ] {
        assert!(seen.contains(kept), "{kept} is missing: {seen}");
    }
    assert!(!answer.head.contains("x-hop"), "{}", answer.head);
    assert!(answer.head.contains("x-request-id: abc-1"), "{}", answer.head);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_request_is_refused_and_never_passed_on() {
    let good = Backend::good("good", Duration::ZERO).await;
    let config = Config { head_timeout: Duration::from_millis(300), ..Config::default() };
    let service = Service::start(config, &[&good]).await;
    let long = format!("GET / HTTP/1.1\r\nHost: s\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    let many = format!("GET / HTTP/1.1\r\nHost: s\r\n{}\r\n", "X: 1\r\n".repeat(101));
    for (request, code) in [
        ("not http at all\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nBad Name: 1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (&long, 431),
        (&many, 431),
        // Never finished: closed without a word.
        ("GET / HTTP/1.1\r\nHost: a\r\nX-Slow", 0),
    ] {
        let answer = ask(&service.at, request).await;
        assert_eq!(answer.code, code, "{}: {answer:?}", &request[..request.len().min(90)]);
    }
    assert_eq!(good.asked(), 0);
    assert_eq!(service.get("/v1/models").await.code, 200);
    // Two framings: one of them counts, the replica sees only that one, and what follows on the
    // connection is never read as a request (RFC 9112 §6.1).
    let two = "POST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
               GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = ask(&service.at, two).await;
    assert!(answer.body.contains("good|0|") && !answer.body.contains("smuggled"), "{answer:?}");
    assert!(!answer.body.contains("transfer-encoding"), "{answer:?}");
    assert_eq!(good.asked(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_replica_is_given_up() {
    let silent = Backend::new("silent", |head, _, mut stream| async move {
        if head.starts_with("GET /begun ") {
            stream.write_all(CHUNKED).await.ok()?;
        }
        sleep(SOON).await;
        None
    })
    .await;
    let config = Config { idle_timeout: Duration::from_millis(200), ..Config::default() };
    let service = Service::start(config, &[&silent]).await;
    let answer = service.get("/never").await;
    assert_eq!((answer.code, error_code(&answer).as_str()), (504, "replica_silent"));
    let other = Backend::new("other", |_, _, mut stream| async move {
        stream.write_all(CHUNKED).await.ok()?;
        sleep(SOON).await;
        None
    })
    .await;
    service.replicas.send_replace(ready(&[&other]));
    let answer = service.get("/begun").await;
    assert!(answer.code == 200 && !answer.body.contains("0\r\n"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_waiting_requests_take_bounded_memory_and_are_all_answered() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let good = Backend::good("good", Duration::from_millis(10)).await;
    let kept = 4 << 20;
    let config = Config { replay_bytes_in_all: kept, per_replica: 16, ..Config::default() };
    let service = Service::start(config, &[]).await;
    let request: Arc<str> = post(&"x".repeat(64 << 10)).into();
    let before = resident();
    let mut asked = JoinSet::new();
    for _ in 0..1000 {
        let (at, request) = (service.at.clone(), request.clone());
        asked.spawn(async move { ask(&at, &request).await.code });
    }
    let mut wish = service.gateway.wish();
    timeout(SOON, wish.wait_for(|wish| wish.waiting == 1000)).await.unwrap().unwrap();
    assert!(service.gateway.kept_bytes() <= kept, "{}", service.gateway.kept_bytes());
    // 64 MB were sent; for each connection there is what hyper has read ahead.
    let grown = resident().saturating_sub(before);
    assert!(grown < 48 << 20, "{grown} bytes for 1000 requests");
    service.replicas.send_replace(ready(&[&good]));
    while let Some(code) = asked.join_next().await {
        assert_eq!(code.unwrap(), 200);
    }
    assert_eq!(good.most.load(SeqCst), 16, "the rest waited where another replica could take it");
    assert_eq!(service.gateway.kept_bytes(), 0);
}
