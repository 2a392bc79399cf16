//! All runs of a contestant, on all processors; the same figures on any number of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use petaflop_arbiter::spot::law::Shape;
use petaflop_arbiter::spot::optimum::optimum;
use petaflop_arbiter::spot::policies::Name;
use petaflop_arbiter::spot::replay::{Manner, Run, run};
use petaflop_arbiter::spot::table::{Spec, Tables};

use super::inputs::Scene;
use super::spot::Contestant;

/// By scene, by start.
pub(super) fn all(
    scenes: &[Scene],
    contestant: Contestant,
    manner: Manner,
    shape: Shape,
) -> Vec<Vec<Run>> {
    let tables = match contestant {
        Contestant::Policy(Name::P1) => tables(scenes, shape),
        _ => HashMap::new(),
    };
    let tasks: Vec<(&Scene, usize)> = scenes
        .iter()
        .flat_map(|scene| scene.starts.iter().map(move |start| (scene, *start)))
        .collect();
    let one = |(scene, start): (&Scene, usize)| match contestant {
        Contestant::Optimum => optimum(&scene.terms, &scene.market, start, manner.observe),
        Contestant::Policy(name) => {
            let tables = tables.get(&Spec::of(&scene.terms, &scene.market, start));
            let mut policy = name.policy(&scene.terms, tables);
            run(&scene.terms, &scene.market, start, manner, policy.as_mut())
        }
    };
    let mut runs = parallel(&tasks, one).into_iter();
    scenes.iter().map(|scene| runs.by_ref().take(scene.starts.len()).collect()).collect()
}

/// One set of tables for each set of terms. What of them is needed is made when it is.
fn tables(scenes: &[Scene], shape: Shape) -> HashMap<Spec, Arc<Tables>> {
    let mut tables = HashMap::new();
    for scene in scenes {
        for start in &scene.starts {
            let spec = Spec::of(&scene.terms, &scene.market, *start);
            tables
                .entry(spec)
                .or_insert_with_key(|spec| Arc::new(Tables::made_when_needed(*spec, shape)));
        }
    }
    tables
}

/// Does all tasks, in order of their places, on as many threads as there are processors.
fn parallel<T: Copy + Sync, R: Send>(tasks: &[T], one: impl Fn(T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(task) = tasks.get(index) else { return done };
            done.push((index, one(*task)));
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get());
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        threads
            .into_iter()
            .flat_map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}
