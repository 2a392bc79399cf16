//! Bytes as each kind of answer, for those who feed it what RunPod never said: `tests/hostile`.

use jiff::Timestamp;

use super::answer::{Answer, SameWords, of_call, of_launch};
use super::offers::{Seen, Terms, offers, unknown};
use super::quota::{Pace, Purpose, Told};
use super::thing::Cloud;
use super::{Duration, catalogue, pod, spot, stopped};

/// Reads bytes as each kind of answer, and makes of it what is made of answers.
pub fn read_any(body: &[u8]) {
    let now = Timestamp::UNIX_EPOCH;
    let gpus =
        |cloud, count| (cloud, count, catalogue::gpus(body, cloud, count).unwrap_or_default());
    let seen = Seen {
        gpus: vec![gpus(Cloud::Secure, 1), gpus(Cloud::Community, u32::MAX)],
        cpus: vec![(4, catalogue::cpus(body).unwrap_or_default())],
        spot: spot::prices(body, &[1, u32::MAX]).unwrap_or_default(),
    };
    let terms = Terms { provider: "runpod", disk_gb: 20, data_centers: &[] };
    let quoted = offers(&terms, &seen, now);
    assert!(quoted.iter().all(|offer| offer.price.micros() > 0), "nothing is for nothing");
    let _ = unknown(&seen).count();
    let pods = pod::page(body).map(|page| page.pods).unwrap_or_default();
    for pod in pods.into_iter().chain(pod::one(body)) {
        let _ = (pod.of_installation("installation"), pod.instance(20));
    }
    let _ = spot::rented(body);
    let _ = stopped::at(body);
    for status in [200, 400, 401, 404, 409, 410, 429, 500] {
        let answer = Answer { status, wait: Duration::ZERO, body: body.to_owned() };
        let _ = (of_call("runpod", "read", &answer), answer.is_unknown());
        let _ = of_launch("a thing", &answer, &mut SameWords::default());
        let words = String::from_utf8_lossy(body).into_owned();
        let header = Some(words.lines().next().unwrap_or_default().to_owned());
        let told = Told { limit: header.clone(), policy: header.clone(), retry_after: header };
        let mut pace = Pace::default();
        pace.heard(&told, status, now);
        let _ = pace.call(Purpose::Machine, now);
    }
}
