//! What an instance is told to do: the runtime's command line, and the files it reads.

use std::path::Path;

use petaflop_arbiter::checkpoint;
use petaflop_arbiter::claim::ClaimSpec;
use petaflop_crds::training_job::Cache;
use petaflop_plan::recipe::JobSpec;
use petaflop_providers::Command;

use crate::claims::StoredClaim;
use crate::embedded::elsewhere::Elsewhere;
use crate::embedded::home::{Home, HomeError, write_json};
use crate::embedded::job::{Admission, Folder, ServedModel, Task, Training};

/// What an instance is to do. The same claim gives the same command.
pub fn of(
    home: &Home,
    folder: &Folder,
    admission: &Admission,
    runtime: &Path,
    elsewhere: Option<&Elsewhere>,
    stored: &StoredClaim,
) -> Result<Command, HomeError> {
    let run = folder.run(&stored.claim.spec.name);
    std::fs::create_dir_all(&run).map_err(HomeError::unusable(&run))?;
    let text = |path: &Path| path.display().to_string();
    let mut argv = vec![text(runtime)];
    let progress = text(&run.join("progress.jsonl"));
    let (memory, grace_seconds) = match &admission.task {
        Task::Training(task) => {
            let job = run.join("job.json");
            write_json(
                &job,
                &job_spec(home, folder, elsewhere, admission, task, &stored.claim.spec),
            )?;
            argv.extend(["train".to_owned(), "--job".to_owned(), text(&job)]);
            argv.extend(["--progress".to_owned(), progress]);
            if task.spec.cache == Cache::Never {
                argv.push("--fresh".to_owned());
            }
            let grace = u64::from(task.spec.checkpoint.grace_seconds);
            (task.work.arena_bytes + task.work.host_bytes, grace)
        }
        Task::Serving(task) => {
            argv.push("serve".to_owned());
            match &task.model {
                ServedModel::Artifact(hash) => argv.extend([
                    "--artifact".to_owned(),
                    hash.clone(),
                    "--store".to_owned(),
                    text(&home.store()),
                ]),
                ServedModel::Folder(path) => argv.extend(["--folder".to_owned(), path.clone()]),
                ServedModel::Gguf(path) => argv.extend(["--gguf".to_owned(), path.clone()]),
            }
            argv.extend(["--name".to_owned(), admission.name.clone()]);
            argv.extend(["--port".to_owned(), task.port.to_string()]);
            argv.extend(["--progress".to_owned(), progress]);
            (task.work.arena_bytes + task.work.host_bytes, 30)
        }
    };
    let compute = &admission.compute;
    if let Some(threads) = compute.threads {
        argv.extend(["--threads".to_owned(), threads.to_string()]);
    }
    if let Some(isa) = &compute.isa {
        argv.extend(["--isa".to_owned(), isa.clone()]);
    }
    let log = text(&run.join("log"));
    Ok(Command { argv, env: Default::default(), dir: text(&run), log, memory, grace_seconds })
}

/// Where machines are rented too, all share one store: a job may move from here to there and back.
fn job_spec(
    home: &Home,
    folder: &Folder,
    elsewhere: Option<&Elsewhere>,
    admission: &Admission,
    task: &Training,
    claim: &ClaimSpec,
) -> JobSpec {
    let (store, checkpoints) = match elsewhere.map(Elsewhere::fleet) {
        Some(fleet) => (fleet.store.uri.clone(), fleet.checkpoints(&admission.uid)),
        None => {
            let checkpoints = folder.checkpoints(&task.key).display().to_string();
            (home.store().display().to_string(), checkpoints)
        }
    };
    JobSpec {
        recipe: task.recipe.clone(),
        inputs: task.inputs.clone(),
        store,
        result: None,
        checkpoints,
        checkpoint_interval_seconds: checkpoint::on(claim, task.spec.checkpoint.interval_seconds),
        keep_checkpoints: task.spec.output.keep_checkpoints,
    }
}
