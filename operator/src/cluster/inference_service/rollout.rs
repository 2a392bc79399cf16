//! Which replicas go and how many come, in the way of a Deployment: never more than `maxSurge` above
//! what is wanted, never more than `maxUnavailable` missing that could answer.

use std::collections::BTreeSet;

use petaflop_arbiter::money::UsdPerHour;
use petaflop_crds::inference_service::Rollout;

/// A replica that is, or will be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Live<'a> {
    /// Its claim's name.
    pub(super) name: &'a str,
    /// Of the model that is wanted, or nothing else is known of it.
    pub(super) new: bool,
    /// It answers.
    pub(super) ready: bool,
    /// What it costs.
    pub(super) price: UsdPerHour,
}

/// What is to become of the replicas.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan<'a> {
    /// Who goes.
    pub(super) go: BTreeSet<&'a str>,
    /// How many come.
    pub(super) add: u32,
}

/// Plans it. Replicas that do not answer yet go first, then the dearest.
pub(super) fn rollout<'a>(want: u32, rollout: &Rollout, live: &[Live<'a>]) -> Plan<'a> {
    let (want, surge, missing) =
        (want as usize, rollout.max_surge as usize, rollout.max_unavailable as usize);
    let mut order: Vec<&Live<'a>> = live.iter().collect();
    order.sort_by(|a, b| (a.ready, b.price, a.name).cmp(&(b.ready, a.price, b.name)));
    let (new, old): (Vec<&Live>, Vec<&Live>) = order.into_iter().partition(|one| one.new);
    let surplus = new.len().saturating_sub(want);
    let (leaving, staying) = new.split_at(surplus);
    // Of the old ones as many may go as others can answer for.
    let answer = staying.iter().chain(&old).filter(|one| one.ready).count();
    let silent = old.iter().filter(|one| !one.ready).count();
    let may_go = answer.saturating_sub(want.saturating_sub(missing)) + silent;
    let (replaced, left) = old.split_at(may_go.min(old.len()));
    let add = want
        .saturating_sub(staying.len())
        .min((want + surge).saturating_sub(staying.len() + left.len()));
    Plan {
        go: leaving.iter().chain(replaced).map(|one| one.name).collect(),
        add: u32::try_from(add).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(text: &'static str) -> Vec<Live<'static>> {
        // `n` new, `o` old; upper case: it answers. The name is the place in the text.
        const NAMES: [&str; 8] = ["0", "1", "2", "3", "4", "5", "6", "7"];
        let one = |(at, letter): (usize, char)| Live {
            name: NAMES[at],
            new: letter.eq_ignore_ascii_case(&'n'),
            ready: letter.is_ascii_uppercase(),
            price: "1".parse().expect("a price"),
        };
        text.chars().enumerate().map(one).collect()
    }

    #[test]
    fn replicas_come_and_go_as_a_deployment_s_do() {
        // Wanted, surge, may be missing, live; who goes, who comes.
        let table = [
            (3, 1, 0, "", "", 3),
            (3, 1, 0, "NNN", "", 0),
            (1, 1, 0, "NNn", "02", 0),
            (0, 1, 0, "NN", "01", 0),
            // Another model: one more first, and only then an old one less.
            (1, 1, 0, "O", "", 1),
            (1, 1, 0, "On", "", 0),
            (1, 1, 0, "ON", "0", 0),
            (3, 1, 0, "OOO", "", 1),
            (3, 1, 0, "OOOn", "", 0),
            (3, 1, 0, "OOON", "0", 1),
            (3, 2, 0, "OOONN", "01", 1),
            // No room for one more: one less first.
            (1, 0, 1, "O", "0", 1),
            (3, 0, 1, "OOO", "0", 1),
            (3, 0, 1, "OOn", "", 0),
            (3, 0, 1, "OON", "0", 1),
            // Fewer are wanted meanwhile.
            (1, 1, 0, "OOO", "01", 1),
        ];
        for (want, max_surge, max_unavailable, text, go, add) in table {
            let replicas = live(text);
            let settings = Rollout { max_surge, max_unavailable };
            let plan = rollout(want, &settings, &replicas);
            let gone: String = plan.go.iter().copied().collect();
            assert_eq!((gone.as_str(), plan.add), (go, add), "{want} {settings:?} {text}");
        }
    }
}
