//! Cables that break, and hosts that die.

use petaflop_cloud_box::machines::Side;

use crate::fixture::{ALPINE, ended, machines, says, serve, shell, start, until};

/// Asks both sides for ever, and says who answers.
fn asking(provider: impl std::fmt::Display, operator: impl std::fmt::Display) -> String {
    format!(
        "n=0; while :; do n=$((n + 1)); a=; \
           for at in {provider} {operator}; do a=\"$a $(timeout 1 wget -q -O - http://$at/ || echo lost)\"; done; \
           echo round $n:$a; sleep 0.1; done"
    )
}

#[test]
fn a_machine_may_lose_one_side_and_keep_the_other_and_find_it_again() {
    let Some(machines) = machines() else { return };
    let provider = serve(&machines, machines.provider(), b"provider".to_vec());
    let operator = serve(&machines, machines.operator(), b"operator".to_vec());
    start(&machines, "asks", &shell(ALPINE, &asking(provider, operator)));
    let sees = |what: &str| {
        // Only rounds from now on.
        let before = machines.log("asks").len();
        until(what, || machines.log("asks").get(before..)?.contains(what).then_some(()));
    };
    says(&machines, "asks", ": provider operator\n");
    machines.cut("asks", Side::Operator);
    sees(": provider lost\n");
    machines.mend("asks");
    sees(": provider operator\n");
    machines.cut("asks", Side::Provider);
    sees(": lost operator\n");
    machines.mend("asks");
    machines.cut("asks", Side::All);
    sees(": lost lost\n");
    machines.mend("asks");
    sees(": provider operator\n");
}

#[test]
fn a_host_that_dies_takes_everything_with_it_at_once() {
    let Some(machines) = machines() else { return };
    let stubborn = "trap '' TERM; (trap '' TERM; while :; do sleep 0.05; done) & echo up; wait";
    start(&machines, "dies", &shell(ALPINE, stubborn));
    start(&machines, "lives", &shell(ALPINE, "echo up; sleep 1000"));
    says(&machines, "dies", "up");
    says(&machines, "lives", "up");
    machines.kill("dies");
    assert_eq!(ended(&machines, "dies").0, 137);
    assert_eq!(machines.exit("lives"), None);
}
