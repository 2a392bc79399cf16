//! Whole machines, as EC2 rents them: user-data, containers, the power switch, and what the metadata
//! service tells.

use std::io::Read;
use std::net::TcpListener;
use std::time::Duration;

use petaflop_agent_api::message::{Ask, State};
use petaflop_agent_api::task::Task;
use petaflop_cloud_box::host::{Boot, Credentials, Host, Metadata};
use petaflop_cloud_box::machines::Machines;

use crate::fixture::{ALPINE, AMI, DEBIAN, DISTROLESS, agent, ended, machines, says, serve, start};
use crate::operator::{Operator, script};

/// What production starts instances with, but for the places that are filled in.
const PRODUCTION: &str = include_str!("../../../../../arbiter/providers/src/aws/user_data.sh");

const AGENT: &str = "/petaflop/petaflop-agent";
const IDENTITY: &str = "installation/default/trj-a-12345678-1-0/uid-1/1";

fn whole(user_data: &str) -> Boot {
    let credentials =
        Credentials { id: "AKIDBOX".into(), secret: "canary".into(), token: "session".into() };
    let metadata = Metadata {
        user_data: user_data.into(),
        account: "123456789012".into(),
        region: "us-east-1".into(),
        zone: "us-east-1a".into(),
        zone_id: "use1-az1".into(),
        instance_type: "g4dn.xlarge".into(),
        spot: true,
        role: Some(("petaflop".into(), credentials)),
        hop_limit: 2,
    };
    Boot { image: AMI.into(), metadata: Some(metadata), ..Boot::default() }
}

/// Runs a script as user-data, which turns the machine off at its end; what it wrote.
fn run(machines: &Machines, name: &str, lines: &str) -> String {
    let script = format!("#!/bin/bash\n{lines}\necho done\nshutdown -h now\nsleep 60\n");
    start(machines, name, &whole(&script));
    let (code, log) = ended(machines, name);
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("\ndone\n") || log.starts_with("done\n"), "{log}");
    log
}

#[test]
fn production_user_data_runs_the_agent_in_a_container_of_any_image_and_turns_the_machine_off() {
    let Some(machines) = machines() else { return };
    let shells = "command -v bash || echo no bash on $(hostname); ls /petaflop; exit 5";
    // Without a shell there is what the image brings, or the agent itself.
    let version = [AGENT, "--version"].map(str::to_owned).into();
    let cases = [
        ("i-0", ALPINE, script(shells), 5, "no bash on i-0\nlease\n"),
        ("i-1", DEBIAN, script(shells), 5, "bash\nlease\n"),
        ("i-2", DISTROLESS, Task { argv: version, ..script("") }, 0, "petaflop-agent "),
    ];
    for (name, image, task, code, says) in cases {
        let mut operator = Operator::new(IDENTITY, "uid-1");
        let mut boot = whole(&user_data(&machines, &operator, image));
        boot.ports = vec![7443];
        start(&machines, name, &boot);
        let at = machines.address(name, 7443).unwrap();
        // In the container: its image's root, the machine's network and name.
        operator.enrol(at, task, 1800);
        let report = operator.until(at, |state| matches!(state, State::Exited(_)));
        let State::Exited(exit) = report.state else { unreachable!() };
        let output = operator.output(at);
        assert_eq!(exit.code, Some(code), "{image}: {output}");
        assert!(output.contains(says), "{image}: {output}");
        operator.ask(at, Ask::Terminate);
        let (code, log) = ended(&machines, name);
        assert_eq!(code, 0, "{image}: {log}");
        assert!(log.contains("petaflop: its work is done; this machine ends"), "{log}");
        assert!(!machines.clone().alive(name));
        assert!(!log.contains(&operator.token()), "no secret is on the console");
    }
}

/// What production starts an instance with for this image.
fn user_data(machines: &Machines, operator: &Operator, image: &str) -> String {
    let bytes = std::fs::read(agent()).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    let sha256: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let environment = [
        format!("PETAFLOP_IDENTITY={IDENTITY}"),
        format!("PETAFLOP_OPERATOR_KEY={}", operator.root.noise().public()),
        format!("PETAFLOP_TOKEN={}", operator.token()),
        "PETAFLOP_PORT=7443".to_owned(),
        "PETAFLOP_WORK=/work".to_owned(),
    ];
    let fill = [
        ("@ALLOWANCE@", "1800".to_owned()),
        ("@GRACE@", "150".to_owned()),
        ("@LONGEST@", "86400".to_owned()),
        ("@URL@", format!("http://{}/agent", serve(machines, machines.operator(), bytes))),
        ("@SHA256@", sha256),
        ("@GPUS@", String::new()),
        ("@AGENT@", AGENT.to_owned()),
        ("@LEASE@", "/petaflop/lease".to_owned()),
        ("@WORK@", "/work".to_owned()),
        ("@IMAGE@", image.to_owned()),
        ("@ENVIRONMENT@", environment.join("\n")),
    ];
    fill.iter().fold(PRODUCTION.to_owned(), |text, (place, value)| text.replace(place, value))
}

#[test]
fn the_metadata_service_tells_nothing_without_a_token_and_of_its_end_once_it_is_noticed() {
    let Some(mut machines) = machines() else { return };
    let script = "#!/bin/bash
base=http://169.254.169.254/latest
status() { curl -s -o /dev/null -w '%{http_code}' \"$@\"; }
echo without $(status $base/meta-data/instance-id)
echo forever $(status -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 99999' $base/api/token)
token=$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 21600' $base/api/token)
get() { curl -sf -H \"X-aws-ec2-metadata-token: $token\" $base/$1; }
for path in meta-data/instance-id meta-data/instance-life-cycle meta-data/placement/availability-zone \\
  meta-data/iam/security-credentials/ meta-data/iam/security-credentials/petaflop \\
  dynamic/instance-identity/document; do echo \"$path: $(get $path)\"; done
echo script $(get user-data | head -1)
for path in spot/instance-action spot/termination-time events/recommendations/rebalance; do
  echo before $(status -H \"X-aws-ec2-metadata-token: $token\" $base/meta-data/$path)
done
until get meta-data/events/recommendations/rebalance; do sleep 0.1; done
echo likely
until get meta-data/spot/instance-action; do sleep 0.1; done
echo noticed
docker run --network host example.org/alpine:1 -c 'wget -q -O - http://169.254.169.254/ 2>&1'
shutdown -h now
";
    start(&machines, "i-1", &whole(script));
    let log = says(&machines, "i-1", "before 404\nbefore 404\nbefore 404\n");
    for line in [
        "without 401\n",
        "forever 400\n",
        "instance-id: i-1\n",
        "life-cycle: spot\n",
        "availability-zone: us-east-1a\n",
        "security-credentials/: petaflop\n",
        "\"SecretAccessKey\":\"canary\"",
        "\"accountId\":\"123456789012\"",
        "script #!/bin/bash\n",
    ] {
        assert!(log.contains(line), "{line} in {log}");
    }
    machines.recommend("i-1");
    says(&machines, "i-1", "likely\n");
    machines.notice("i-1", Duration::from_secs(120));
    let log = ended(&machines, "i-1").1;
    assert!(log.contains("\"action\":\"terminate\",\"time\":\"2"), "{log}");
    assert!(log.contains("noticed\n") && log.contains("401"), "a container asks too: {log}");
}

#[test]
fn docker_does_what_it_knows_and_refuses_the_rest_loudly() {
    let Some(machines) = machines() else { return };
    let lines = format!(
        r#"
try() {{ "$@" >/tmp/out 2>&1; echo "$? <$(tr '\n' ' ' </tmp/out)>"; }}
systemctl is-active docker; docker info >/dev/null && echo a daemon
echo unknown $(try docker pull example.org/none:1)
echo pulled $(try docker pull -q {ALPINE})
echo password | docker login -u me --password-stdin example.org
mkdir /data; echo given >/data/file; printf '# comment\nFROM=file\n' >/tmp/env
docker run --rm --name one --network host -v /data:/data:ro -e SAID=this --env-file /tmp/env \
  --entrypoint /bin/sh {ALPINE} -c 'cat /data/file; echo $SAID $FROM $$; touch /data/no; exit 3'
echo ended $?
docker run -d --name two --network host {DEBIAN} -c 'trap "echo saved; exit 4" TERM; echo up; while :; do sleep 0.1; done'
until docker logs two | grep up; do sleep 0.1; done
docker ps; docker stop -t 20 two; docker wait two; docker logs two; docker rm two
docker run -d --name three --network host {ALPINE} -c 'sleep 1000'; docker kill three; docker wait three
docker rm -f three; docker ps -a
echo gpu $(try docker run --gpus all --network host {ALPINE})
echo bridge $(try docker run {ALPINE})
echo flag $(try docker run --privileged --network host {ALPINE})
echo command $(try docker swarm init)
echo service $(try systemctl mask docker)
echo reboot $(try shutdown -r now)"#
    );
    let log = run(&machines, "docker", &lines);
    for line in [
        "active\na daemon\n",
        "unknown 1 <Error response from daemon: manifest for example.org/none:1 not found",
        "pulled 0 <",
        "Login Succeeded\n",
        "given\nthis file 1\n",
        "Read-only file system\nended 3\n",
        "\ntwo\ntwo\n4\nup\nsaved\ntwo\n",
        "three\nthree\n137\nthree\n",
        "gpu 125 <docker: Error response from daemon: could not select device driver",
        "bridge 125 <",
        "flag 125 <docker: the box does not know run --privileged",
        "command 125 <docker: the box does not know \"swarm\"",
        "service 125 <systemctl: the box does not know",
        "reboot 125 <shutdown: the box does not know \"-r\"",
    ] {
        assert!(log.contains(line), "{line:?} in {log}");
    }
}

#[test]
fn a_planned_shutdown_can_be_called_off_and_the_power_button_lets_containers_save() {
    let Some(machines) = machines() else { return };
    let listener = TcpListener::bind((machines.operator(), 0)).unwrap();
    let to = format!("/dev/tcp/{}/{}", machines.operator(), listener.local_addr().unwrap().port());
    let script = format!(
        "#!/bin/sh\nshutdown -h +1; shutdown -c\n\
         docker run --name saves --network host {DEBIAN} \
         -c 'trap \"echo saved >{to}; exit 0\" TERM; echo up; while :; do sleep 0.1; done'\n"
    );
    start(&machines, "i-2", &whole(&script));
    says(&machines, "i-2", "up\n");
    machines.clone().end("i-2", Duration::from_secs(60));
    let (code, log) = ended(&machines, "i-2");
    assert_eq!(code, 0, "{log}");
    let mut said = String::new();
    listener.set_nonblocking(true).unwrap();
    listener.accept().unwrap().0.read_to_string(&mut said).unwrap();
    assert_eq!(said, "saved\n", "it was there before the machine was gone");
}

#[test]
fn a_machine_whose_user_data_is_no_script_runs_until_it_is_told_to_end() {
    let Some(machines) = machines() else { return };
    start(&machines, "i-3", &whole("just words"));
    start(&machines, "i-4", &whole("#!/no/such/interpreter\n"));
    says(&machines, "i-4", "cloud-init: ");
    machines.clone().end("i-4", Duration::from_secs(60));
    assert_eq!(ended(&machines, "i-4").0, 0);
    assert!(machines.clone().alive("i-3"), "{}", machines.log("i-3"));
}
