//! Services of an image of the user's.

use super::*;

#[test]
fn a_container_is_asked_while_it_serves_and_rolls_when_it_is_another() {
    let container = |image: &str| {
        let spec = json!({
            "container": { "image": image, "command": ["serve"] },
            "probes": { "readiness": { "path": "/ready" } },
        });
        let mut made = service(json!({}));
        made.spec = serde_json::from_value(spec).expect("a spec");
        made
    };
    let (first, model) = (container("server:1"), Model::Known(Arc::new(Served::Container)));
    let mut one = [answers(1, "")];
    one[0].stored.claim.spec.revision = Some(Revision::of(&first.spec, IMAGE).text().to_owned());
    let seen = next(&look(&first, &one, &model, &linked()));
    assert_eq!(condition(&seen, "Ready"), ("True", "Ok"));
    assert_eq!((seen.status.updated_replicas, &seen.status.artifact), (1, &None));
    let told = seen.told.as_ref().expect("something is told");
    let health = Some("/ready".to_owned());
    assert_eq!(told.replicas[0].server, gateway::Server::Any { health });

    // Its probe is not answered now: it stays, and nobody asks it.
    let run = one[0].run.as_mut().expect("it runs");
    let serving = run.serving.take();
    let unready = next(&look(&first, &one, &model, &linked()));
    assert!(draining(&unready).is_empty() && unready.unwanted.is_empty());
    assert_eq!(condition(&unready, "Available").0, "False");
    one[0].run.as_mut().expect("it runs").serving = serving;

    let second = container("server:2");
    let rolls = next(&look(&second, &one, &model, &linked()));
    assert_eq!((rolls.status.updated_replicas, bought(&rolls)), (0, Some(2)));
    assert_eq!(draining(&rolls), [("10.0.0.1:8080", false)], "until the new one answers");
    // Its machine has nothing of the operator's own image.
    let route = linked();
    let upgraded = Seen { image: "runtime:2", ..look(&first, &one, &model, &route) };
    assert_eq!(next(&upgraded).status.updated_replicas, 1);
}
