//! A container that is rented: what it sees, how it ends, who reaches it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use petaflop_cloud_box::host::{Boot, Host};

use crate::fixture::{
    ALPINE, DEBIAN, DISTROLESS, ended, machines, says, serve, shell, start, until,
};

#[test]
fn a_container_is_process_1_of_a_root_and_a_network_of_its_own_with_exactly_its_environment() {
    let Some(machines) = machines() else { return };
    let script = "echo process $$ on $(hostname); ps | grep -c sleep; ls /; cat /proc/net/dev; \
                  echo written >/etc/new && cat /etc/new; echo own >/dev/shm/x; env; echo done";
    let mut boot = shell(ALPINE, script);
    boot.environment = [("PETAFLOP_ISA", "portable"), ("ONE", "two words")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    start(&machines, "alone", &boot);
    let (code, log) = ended(&machines, "alone");
    assert_eq!(code, 0, "{log}");
    assert!(log.starts_with("process 1 on alone\n"), "{log}");
    assert!(log.contains("eth0:") && !log.contains("pfbox"), "{log}");
    assert!(log.contains("\nwritten\n"), "{log}");
    let environment: Vec<&str> = log.lines().filter(|line| line.contains('=')).collect();
    for line in ["ONE=two words", "PETAFLOP_ISA=portable", "HOSTNAME=alone", "HOME=/root"] {
        assert!(environment.contains(&line), "{line} in {log}");
    }
    // The shell adds its own: PWD, SHLVL, and with some shells OLDPWD.
    let given = ["ONE", "PETAFLOP_ISA", "HOSTNAME", "HOME", "PATH", "PWD", "SHLVL", "OLDPWD"];
    let strange = |line: &&&str| !given.contains(&line.split('=').next().unwrap());
    assert_eq!(environment.iter().find(strange), None, "{log}");
}

#[test]
fn each_image_is_what_it_says() {
    let Some(mut machines) = machines() else { return };
    start(
        &machines,
        "alpine",
        &shell(ALPINE, "command -v bash || echo no bash; busybox | head -1"),
    );
    start(&machines, "debian", &shell(DEBIAN, "bash -c 'echo $BASH_VERSION'; curl -V | head -1"));
    let log = ended(&machines, "alpine").1;
    assert!(log.starts_with("no bash\nBusyBox"), "{log}");
    let log = ended(&machines, "debian").1;
    assert!(log.starts_with("5.") && log.contains("curl "), "{log}");
    // No shell, and so no start command that needs one.
    start(&machines, "shell", &shell(DISTROLESS, "true"));
    let (code, log) = ended(&machines, "shell");
    assert!(code != 0 && log.contains("/bin/sh"), "{code} {log}");
    let command = Some(vec!["--version".to_owned()]);
    let boot = Boot { image: DISTROLESS.to_owned(), command, ..Boot::default() };
    start(&machines, "static", &boot);
    let (code, log) = ended(&machines, "static");
    assert!(code == 0 && log.starts_with("petaflop-agent "), "{code} {log}");
    assert!(!machines.pulls("example.org/unknown:1") && !machines.alive("unknown"));
}

#[test]
fn a_container_may_end_by_itself_after_sigterm_or_is_killed_after_its_grace() {
    let Some(machines) = machines() else { return };
    let polite = "trap 'echo saved; exit 7' TERM; echo up; while :; do sleep 0.05; done";
    start(&machines, "polite", &shell(ALPINE, polite));
    // As process 1 it has no default: what it does not handle it does not see.
    start(&machines, "deaf", &shell(ALPINE, "echo up; sleep 1000 & wait"));
    for machine in ["polite", "deaf"] {
        says(&machines, machine, "up");
        machines.clone().end(machine, Duration::from_millis(1500));
    }
    let (code, log) = ended(&machines, "polite");
    assert_eq!((code, log.as_str()), (7, "up\nsaved\n"));
    assert_eq!(ended(&machines, "deaf").0, 137);
    assert!(!machines.clone().alive("polite") && !machines.clone().alive("deaf"));
}

#[test]
fn machines_reach_each_other_and_both_sides_of_the_host_and_nothing_else() {
    let Some(machines) = machines() else { return };
    let provider = serve(&machines, machines.provider(), b"provider".to_vec());
    let operator = serve(&machines, machines.operator(), b"operator".to_vec());
    let web = "mkdir /www; echo neighbour >/www/index.html; echo up; httpd -f -p 8080 -h /www";
    start(&machines, "web", &shell(ALPINE, web));
    says(&machines, "web", "up");
    let neighbour = machines.own_address("web").unwrap();
    let script = format!(
        "for at in {provider} {operator} {neighbour}:8080; do \
           until wget -q -O - http://$at/; do sleep 0.1; done; echo; done; \
         wget -q -O - http://192.0.2.1/ || echo no further"
    );
    start(&machines, "asks", &shell(ALPINE, &script));
    let (code, log) = ended(&machines, "asks");
    assert_eq!(code, 0, "{log}");
    let words: Vec<&str> = log.split_whitespace().collect();
    for word in ["provider", "operator", "neighbour"] {
        assert!(words.contains(&word), "{word} in {log}");
    }
    assert!(log.contains("unreachable") && log.ends_with("no further\n"), "{log}");
}

#[test]
fn a_port_is_reached_where_the_mapping_says_and_only_while_the_machine_is() {
    let Some(machines) = machines() else { return };
    let mut boot = shell(ALPINE, "while :; do echo mapped | nc -l -p 7443; done");
    boot.ports = vec![7443];
    start(&machines, "mapped", &boot);
    let at = machines.address("mapped", 7443).unwrap();
    assert!(at.port() != 7443 && at.ip() == machines.operator(), "{at}");
    assert_eq!(machines.address("mapped", 22), None);
    let answer = until("an answer", || {
        let mut stream = TcpStream::connect(at).ok()?;
        let mut answer = String::new();
        // Until it listens, the connection ends without a word.
        let _ = stream.write_all(b"x");
        let _ = stream.read_to_string(&mut answer);
        Some(answer).filter(|answer| !answer.is_empty())
    });
    assert_eq!(answer, "mapped\n");
    machines.kill("mapped");
    ended(&machines, "mapped");
    assert_eq!(machines.address("mapped", 7443), None);
    until("the port is closed", || TcpStream::connect(at).err());
}

#[test]
fn a_machine_has_no_more_memory_and_processors_than_it_was_bought_with() {
    let Some(machines) = machines() else { return };
    let script = "dd if=/dev/zero of=/dev/null bs=256M count=1 2>/dev/null; echo small $?; \
                  dd if=/dev/zero of=/dev/null bs=8M count=1 2>/dev/null; echo fits $?";
    let mut boot = shell(ALPINE, script);
    (boot.memory, boot.cpu_millis) = (64 << 20, 500);
    start(&machines, "small", &boot);
    let (_, log) = ended(&machines, "small");
    assert_eq!(log, "small 137\nfits 0\n");
}

#[test]
fn each_machine_uses_the_next_of_the_kernels_that_the_host_can_run() {
    let Some(machines) = machines() else { return };
    let variant = |number: usize| {
        let name = format!("kernel-{number}");
        start(&machines, &name, &shell(ALPINE, "echo $PETAFLOP_ISA"));
        ended(&machines, &name).1.trim().to_owned()
    };
    let seen: Vec<String> = (0..4).map(variant).collect();
    let mut distinct = seen.clone();
    distinct.sort();
    distinct.dedup();
    assert!(distinct.iter().all(|name| !name.is_empty()), "{seen:?}");
    assert_eq!(seen[0], seen[distinct.len() % 4], "round and round: {seen:?}");
}
