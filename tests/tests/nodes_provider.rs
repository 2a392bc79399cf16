//! The nodes provider against a real API server, scheduler and garbage collector,
//! with nodes that KWOK pretends: what is offered is there, a claim becomes one
//! Pod however often it is asked for, answers that are lost are found again, and
//! nothing that is not ours is touched.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod, ResourceQuota};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Config, ResourceExt as _};
use petaflop_arbiter::claim::{FrozenRequest, Identity, Refusal};
use petaflop_arbiter::offer::Offer;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::ComputeClaim;
use petaflop_harness::kwok::{EXIT_CODE, FakeNode, Kwok};
use petaflop_harness::{ControlPlane, Link, Namespace, eventually};
use petaflop_providers::host::price::PowerPrice;
use petaflop_providers::machine::{AgentSource, Bootstrap};
use petaflop_providers::nodes::{Nodes, NodesConfig, Sight, SingleShot, prune};
use petaflop_providers::{
    EnrolmentToken, Instance, InstanceId, InstanceState, LaunchError, Machine, Order, Provider,
    Work,
};
use serde_json::json;
use tokio::sync::OnceCell;

const SOON: Duration = Duration::from_secs(60);

/// The cluster that the tests share: our kinds, and a node for each test, labelled with its name.
async fn cluster() -> &'static ControlPlane {
    static KWOK: OnceCell<Kwok> = OnceCell::const_new();
    let plane = ControlPlane::shared().await;
    KWOK.get_or_init(|| async {
        let client = plane.client().await.expect("a client");
        let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
        for crd in petaflop_crds::crds::all() {
            crds.create(&PostParams::default(), &crd).await.expect("a kind of ours");
        }
        let claims: Api<ComputeClaim> = Api::all(client);
        eventually("ComputeClaims are served", SOON, || async {
            let list = claims.list(&ListParams::default()).await;
            list.map(drop).map_err(|error| error.to_string())
        })
        .await
        .expect("our kinds");
        let kwok = Kwok::start(plane).await.expect("KWOK");
        for name in ["once", "lost", "ends", "refused", "strangers", "paged"] {
            let node = FakeNode::new(name, 16, "64Gi").labels([("test", name)]);
            kwok.node(&node).await.expect("a node");
        }
        let h100 = FakeNode::with_8_h100("offered-h100").labels([("test", "offered")]);
        let mi300x = FakeNode::with_8_mi300x("offered-mi300x").labels([("test", "offered")]);
        kwok.node(&h100).await.expect("a node");
        kwok.node(&mi300x).await.expect("a node");
        kwok
    })
    .await;
    plane
}

/// A namespace, and a provider of the nodes of one test.
struct World {
    plane: &'static ControlPlane,
    client: kube::Client,
    namespace: Namespace,
    test: &'static str,
    provider: Nodes,
}

impl World {
    async fn new(test: &'static str) -> Self {
        let plane = cluster().await;
        let client = plane.client().await.expect("a client");
        let namespace = plane.namespace(test).await.expect("a namespace");
        let config = plane.admin().config().await.expect("a configuration");
        let provider = provider(test, config, Sight::Server);
        Self { plane, client, namespace, test, provider }
    }

    async fn offer(&self, part: &str) -> Offer {
        let offers = self.provider.quote().await.expect("offers");
        let names: Vec<_> = offers.iter().map(|o| o.instance_type.clone()).collect();
        let found = offers.into_iter().find(|offer| offer.instance_type.ends_with(part));
        found.unwrap_or_else(|| panic!("no {part} in {names:?}"))
    }

    /// A claim in the API: Pods whose owner does not exist are collected as garbage.
    async fn claim(&self, name: &str) -> Identity {
        let bases: serde_json::Value =
            serde_saphyr::from_str(include_str!("../../crds/tests/bases.yaml")).expect("bases");
        let claim: ComputeClaim = serde_json::from_value(json!({
            "apiVersion": "petaflop.dev/v1alpha1", "kind": "ComputeClaim",
            "metadata": {"name": name}, "spec": bases["ComputeClaim"],
        }))
        .expect("a claim");
        let claims: Api<ComputeClaim> = self.api();
        let made = claims.create(&PostParams::default(), &claim).await.expect("a claim");
        Identity {
            installation: installation(self.test),
            namespace: self.namespace.name().to_owned(),
            claim: name.to_owned(),
            claim_uid: made.uid().expect("a uid"),
            attempt: 1,
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), self.namespace.name())
    }

    async fn prepared(&self, identity: &Identity, offer: &Offer) -> FrozenRequest {
        let machine = machine(offer);
        let order = Order { identity, offer, work: Work::Machine(&machine) };
        self.provider.prepare(order).await.expect("prepared")
    }

    async fn launch(&self, identity: &Identity, offer: &Offer) -> Result<InstanceId, LaunchError> {
        self.provider.launch(&self.prepared(identity, offer).await, &token()).await
    }

    async fn until(&self, id: &InstanceId, state: InstanceState) -> Instance {
        eventually(&format!("{id} is {state:?}"), SOON, || async {
            match self.provider.get(id).await {
                Ok(Some(instance)) if instance.state == state => Ok(instance),
                other => Err(format!("{other:?}")),
            }
        })
        .await
        .expect("in time")
    }

    async fn pods(&self) -> Vec<Pod> {
        let pods: Api<Pod> = self.api();
        pods.list(&ListParams::default()).await.expect("Pods").items
    }
}

fn installation(test: &str) -> String {
    format!("0c0ffee0-{test}")
}

fn provider(test: &str, config: Config, sight: Sight) -> Nodes {
    let client = kube::Client::try_from(config.clone()).expect("a client");
    let once = SingleShot::new(config).expect("a client");
    let config = NodesConfig {
        name: "nodes".into(),
        installation: installation(test),
        namespaces: Vec::new(),
        selector: [("test".to_owned(), test.to_owned())].into(),
        tolerations: Vec::new(),
        groups: Vec::new(),
        power: PowerPrice::default(),
    };
    Nodes::new(config, client, once, sight)
}

fn token() -> EnrolmentToken {
    EnrolmentToken::new("canary")
}

fn machine(offer: &Offer) -> Machine {
    Machine {
        image: "localhost/job:1".into(),
        agent: AgentSource::Image("localhost/agent:1".into()),
        bootstrap: Bootstrap { operator_key: "a2V5".into(), endpoint: None, port: 7443 },
        cpu_millis: offer.vcpu_milli.expect("nodes say"),
        memory: offer.memory.expect("nodes say"),
        ephemeral: Some(1 << 30),
        ports: vec![8080],
        service_account: None,
        image_pull_secrets: Vec::new(),
        volumes: Vec::new(),
        grace_seconds: 1,
        labels: BTreeMap::new(),
    }
}

fn refusal(answer: Result<InstanceId, LaunchError>) -> Refusal {
    match answer {
        Err(LaunchError::Refused { kind, .. }) => kind,
        other => panic!("not a refusal: {other:?}"),
    }
}

#[tokio::test]
async fn what_is_offered_is_there_and_is_no_longer_offered_once_it_is_taken() {
    let world = World::new("offered").await;
    let whole = world.offer("offered-h100:nvidia.com/gpu=8").await;
    assert_eq!(whole.accelerators.as_ref().map(|a| a.model.as_str()), Some("H100-SXM"));
    let amd = world.offer("offered-mi300x:amd.com/gpu=4").await;
    assert_eq!(amd.accelerators.as_ref().map(|a| (a.model.as_str(), a.count)), Some(("MI300X", 4)));
    let half = world.offer("offered-h100:nvidia.com/gpu=4").await;
    assert_eq!(half.slots, Some(2));

    let first = world.launch(&world.claim("first").await, &half).await.expect("launched");
    world.until(&first, InstanceState::Running).await;
    let one_left = world.offer("offered-h100:nvidia.com/gpu=4").await;
    assert_eq!(one_left.slots, Some(2), "one is free, one is its claim's");
    let offers = world.provider.quote().await.expect("offers");
    assert!(offers.iter().all(|offer| offer.id != whole.id), "eight are not free any more");
    // The rest of the node, as it is offered, fits.
    let second = world.launch(&world.claim("second").await, &one_left).await.expect("launched");
    world.until(&second, InstanceState::Running).await;
    let offers = world.provider.quote().await.expect("offers");
    assert!(offers.iter().all(|offer| !offer.instance_type.starts_with("offered-h100:nvidia")));
    // A third that was decided on an older view waits, and says for what.
    let third = world.launch(&world.claim("third").await, &half).await.expect("launched");
    let waits = eventually("the scheduler says no", SOON, || async {
        let seen = world.provider.get(&third).await.expect("an answer").expect("there");
        seen.trouble.ok_or(format!("{:?}", seen.state))
    })
    .await
    .expect("in time");
    assert_eq!(waits.reason, Reason::InsufficientCapacity, "{}", waits.message);
}

#[tokio::test]
async fn shared_caches_show_what_the_server_shows() {
    let world = World::new("offered").await;
    let config = world.plane.admin().config().await.expect("a configuration");
    let (nodes, writer) = reflector::store();
    let watch = watcher(Api::<Node>::all(world.client.clone()), watcher::Config::default())
        .modify(prune::node)
        .reflect(writer);
    let nodes_task = tokio::spawn(watch.for_each(|_| std::future::ready(())));
    let (pods, writer) = reflector::store();
    let watch = watcher(Api::<Pod>::all(world.client.clone()), watcher::Config::default())
        .modify(prune::pod)
        .reflect(writer);
    let pods_task = tokio::spawn(watch.for_each(|_| std::future::ready(())));
    nodes.wait_until_ready().await.expect("nodes");
    pods.wait_until_ready().await.expect("Pods");
    let complete = [(); 2].map(|()| tokio::sync::watch::channel(true).1);
    let cached = provider("offered", config, Sight::Stores { nodes, pods, complete });
    // Other tests place Pods on these nodes meanwhile: they are seen a moment later.
    eventually("both show the same", SOON, || async {
        let strip = |offers: Vec<Offer>| -> Vec<(String, Option<u32>, Option<u32>)> {
            offers.into_iter().map(|o| (o.instance_type, o.vcpu_milli, o.slots)).collect()
        };
        let asked = strip(world.provider.quote().await.map_err(|e| e.to_string())?);
        let seen = strip(cached.quote().await.map_err(|e| e.to_string())?);
        if asked == seen && !seen.is_empty() { Ok(()) } else { Err(format!("{asked:?} {seen:?}")) }
    })
    .await
    .expect("in time");
    nodes_task.abort();
    pods_task.abort();
}

#[tokio::test]
async fn a_claim_is_one_restricted_pod_however_often_it_is_asked_for() {
    let world = World::new("once").await;
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(world.client.clone());
    let strict = Patch::Merge(json!({"metadata": {"labels": {
        "pod-security.kubernetes.io/enforce": "restricted",
    }}}));
    let name = world.namespace.name();
    namespaces.patch(name, &PatchParams::default(), &strict).await.expect("restricted");

    let offer = world.offer("once:cpu=2").await;
    let identity = world.claim("trj-once").await;
    let request = world.prepared(&identity, &offer).await;
    assert!(!request.body.contains("canary"), "the frozen request holds no secret");
    assert_eq!(world.provider.find(&identity).await.expect("a listing").instances, []);
    let id = world.provider.launch(&request, &token()).await.expect("launched");
    assert_eq!(world.provider.launch(&request, &token()).await, Ok(id.clone()));
    let pods = world.pods().await;
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].name_any(), identity.unique_name());

    let running = world.until(&id, InstanceState::Running).await;
    assert_eq!(running.identity.as_ref(), Some(&identity));
    assert_eq!(running.offer.as_ref(), Some(&offer));
    assert!(running.endpoint.is_some_and(|endpoint| endpoint.ends_with(":7443")));
    assert!(running.started.is_some() && running.ended.is_none());
    let bound = world.pods().await.remove(0).spec.and_then(|spec| spec.node_name);
    assert_eq!(bound.as_deref(), Some("once"));

    let found = world.provider.find(&identity).await.expect("a listing");
    assert_eq!((found.instances.len(), found.complete), (1, true));
    let listed = world.provider.list(&installation("once")).await.expect("a listing");
    assert_eq!(listed.instances.len(), 1);
    let others = world.provider.list("another-installation").await.expect("a listing");
    assert_eq!((others.instances.len(), others.complete), (0, true));
}

#[tokio::test]
async fn an_instance_ends_when_told_when_its_work_does_and_with_its_claim() {
    let world = World::new("ends").await;
    let offer = world.offer("ends:cpu=2").await;
    let pods: Api<Pod> = world.api();

    let told = world.launch(&world.claim("told").await, &offer).await.expect("launched");
    world.until(&told, InstanceState::Running).await;
    world.provider.terminate(&told).await.expect("told to end");
    let gone = |id: InstanceId| {
        let world = &world;
        async move {
            eventually(&format!("{id} is gone"), SOON, || async {
                match world.provider.get(&id).await {
                    Ok(None) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await
            .expect("in time");
        }
    };
    gone(told.clone()).await;
    world.provider.terminate(&told).await.expect("ending what is gone succeeds");

    let identity = world.claim("works").await;
    let works = world.launch(&identity, &offer).await.expect("launched");
    world.until(&works, InstanceState::Running).await;
    let exit = Patch::Merge(json!({"metadata": {"annotations": {EXIT_CODE: "3"}}}));
    pods.patch(&identity.unique_name(), &PatchParams::default(), &exit).await.expect("ended");
    let ended = world.until(&works, InstanceState::Terminated).await;
    assert_eq!(ended.exit.map(|exit| exit.code), Some(3));
    assert!(ended.ended.is_some());

    // Nobody but the garbage collector is needed to end the Pod of a claim that is gone.
    let identity = world.claim("owned").await;
    let owned = world.launch(&identity, &offer).await.expect("launched");
    world.until(&owned, InstanceState::Running).await;
    let claims: Api<ComputeClaim> = world.api();
    claims.delete("owned", &DeleteParams::default()).await.expect("deleted");
    gone(owned).await;
}

#[tokio::test]
async fn a_lost_answer_is_a_doubt_and_the_pod_is_found() {
    let world = World::new("lost").await;
    let proxy = world.plane.proxy().expect("a proxy");
    let access = world.plane.admin().through(&proxy).expect("access");
    let config = access.config().await.expect("a configuration");
    let through = provider("lost", config, Sight::Server);
    let offer = world.offer("lost:cpu=1").await;

    // The connection is there before the network fails.
    let warm = world.prepared(&world.claim("warm").await, &offer).await;
    through.launch(&warm, &token()).await.expect("launched");
    let identity = world.claim("lost").await;
    let request = world.prepared(&identity, &offer).await;
    proxy.set(Link::Deaf);
    let token = token();
    let launch = through.launch(&request, &token);
    let cut = async {
        eventually("the Pod is stored", SOON, || async {
            let pods = world.pods().await;
            let there = pods.iter().any(|pod| pod.name_any() == identity.unique_name());
            if there { Ok(()) } else { Err(format!("{} Pods", pods.len())) }
        })
        .await
        .expect("in time");
        proxy.cut();
    };
    let (answer, ()) = futures::future::join(launch, cut).await;
    assert!(matches!(answer, Err(LaunchError::Ambiguous { .. })), "{answer:?}");
    proxy.set(Link::Open);
    let found = through.find(&identity).await.expect("a listing").instances;
    assert_eq!(found.len(), 1);
    // A repeat of the same bytes meets the Pod, and no second one is made.
    assert_eq!(through.launch(&request, &token).await.as_ref(), Ok(&found[0].id));
    assert_eq!(world.pods().await.len(), 2);

    proxy.set(Link::Refused);
    let down = world.prepared(&world.claim("down").await, &offer).await;
    let answer = through.launch(&down, &token).await;
    assert!(matches!(answer, Err(LaunchError::Ambiguous { .. })), "{answer:?}");
    assert_eq!(world.pods().await.len(), 2);
}

#[tokio::test]
async fn each_no_of_the_server_is_understood() {
    let world = World::new("refused").await;
    let offer = world.offer("refused:cpu=1").await;
    let identity = world.claim("refused").await;

    let nobody = world.plane.user("nobody", &[]).expect("a user");
    let without_rights =
        provider("refused", nobody.config().await.expect("a configuration"), Sight::Server);
    let request = world.prepared(&identity, &offer).await;
    let answer = without_rights.launch(&request, &token()).await;
    assert_eq!(refusal(answer), Refusal::Unauthorized);

    let elsewhere = Identity { namespace: "nowhere".into(), ..identity.clone() };
    assert_eq!(refusal(world.launch(&elsewhere, &offer).await), Refusal::Invalid);

    let broken = Machine { image: String::new(), ..machine(&offer) };
    let order = Order { identity: &identity, offer: &offer, work: Work::Machine(&broken) };
    let request = world.provider.prepare(order).await.expect("prepared");
    let answer = world.provider.launch(&request, &token()).await;
    assert_eq!(refusal(answer), Refusal::Invalid, "a Pod without an image");

    // In a namespace that has had a quota from the first: the server remembers for a while that
    // another had none.
    let full = world.plane.namespace("full").await.expect("a namespace");
    let quotas: Api<ResourceQuota> = Api::namespaced(world.client.clone(), full.name());
    let none: ResourceQuota = serde_json::from_value(json!({
        "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}
    }))
    .expect("a quota");
    quotas.create(&PostParams::default(), &none).await.expect("a quota");
    let there = Identity { namespace: full.name().to_owned(), ..identity.clone() };
    eventually("the quota is counted", SOON, || async {
        match refusal(world.launch(&there, &offer).await) {
            Refusal::Quota => Ok(()),
            Refusal::Transient => Err("nobody has counted yet".to_owned()),
            other => panic!("{other:?}"),
        }
    })
    .await
    .expect("in time");
    assert_eq!(world.pods().await, []);
}

#[tokio::test]
async fn a_strangers_pod_is_neither_taken_for_ours_nor_ended() {
    let world = World::new("strangers").await;
    let offer = world.offer("strangers:cpu=1").await;
    let identity = world.claim("stranger").await;
    let pods: Api<Pod> = world.api();
    let stranger: Pod = serde_json::from_value(json!({
        "metadata": {"name": identity.unique_name()},
        "spec": {"containers": [{"name": "c", "image": "localhost/nothing:1"}], "schedulerName": "none"}
    }))
    .expect("a Pod");
    let theirs = pods.create(&PostParams::default(), &stranger).await.expect("a Pod");
    assert_eq!(refusal(world.launch(&identity, &offer).await), Refusal::Invalid);
    assert_eq!(world.provider.find(&identity).await.expect("a listing").instances, []);

    // An id names one Pod, not whoever has its name later.
    let name = identity.unique_name();
    let earlier = InstanceId(format!("{}/{name}/an-earlier-uid", world.namespace.name()));
    assert_eq!(world.provider.get(&earlier).await, Ok(None));
    world.provider.terminate(&earlier).await.expect("what is gone is ended");
    let still = pods.get(&name).await.expect("it is still there");
    assert_eq!((still.uid(), still.metadata.deletion_timestamp), (theirs.uid(), None));
}

#[tokio::test]
async fn a_long_list_is_read_to_its_end() {
    let world = World::new("paged").await;
    let pods: Api<Pod> = world.api();
    // More than a page; nobody schedules them.
    let count = 520;
    let create = |number: usize| {
        let pods = pods.clone();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": format!("p-{number}"), "labels": {
                "petaflop.dev/installation": installation("paged"), "petaflop.dev/provider": "nodes"
            }},
            "spec": {"containers": [{"name": "c", "image": "localhost/nothing:1"}], "schedulerName": "none"}
        }))
        .expect("a Pod");
        async move { pods.create(&PostParams::default(), &pod).await.map(drop) }
    };
    let made: Vec<_> =
        futures::stream::iter(0..count).map(create).buffer_unordered(16).collect().await;
    assert!(made.iter().all(Result::is_ok), "{:?}", made.iter().find(|one| one.is_err()));
    let listing = world.provider.list(&installation("paged")).await.expect("a listing");
    assert_eq!((listing.instances.len(), listing.complete), (count, true));
}
