//! How much work the quickstart is, from its manifest to the memory plan's figures.

use petaflop_arbiter::work::{serving, training};
use petaflop_crds::Object;
use petaflop_crds::manifest::{self, Document};
use petaflop_plan::dtype::Dtype;
use petaflop_plan::inference::ServingOptions;
use petaflop_plan::recipe::{ResolvedRecipe, TrainingLength};
use petaflop_plan::shape::ModelShape;

fn quickstart() -> (ResolvedRecipe, ModelShape) {
    let text = include_bytes!("../../examples/quickstart.yaml");
    let documents =
        manifest::parse(text, "quickstart.yaml", std::path::Path::new("/")).expect("it parses");
    let Some(Document { object: Object::TrainingJob(job), .. }) = documents.first() else {
        panic!("a job comes first")
    };
    let recipe = job.spec.recipe.as_ref().expect("it has a recipe");
    let (recipe, _) =
        recipe.resolve(&job.spec.inputs, &job.spec.output, None).expect("it resolves");
    let petaflop_plan::recipe::ModelSource::Scratch(shape) = recipe.model.clone() else {
        panic!("from scratch")
    };
    (recipe, shape)
}

#[test]
fn the_quickstart_is_the_size_it_says() {
    let (recipe, shape) = quickstart();
    assert_eq!(shape.parameters(), 869_504);
    let work = training(&recipe, &shape, 1 << 20, 0, Some(30)).expect("it can be planned");
    assert_eq!(work.tokens_per_step, 128 * 16);
    assert_eq!(work.checkpoint_bytes, 869_504 * 12);
    // 6 operations for each weight and token, and attention's on top.
    let floor = 6 * (869_504) * 128 * 16;
    assert!((floor..floor * 2).contains(&work.flops_per_step), "{}", work.flops_per_step);
}

#[test]
fn epochs_count_the_training_split_only() {
    let (mut recipe, shape) = quickstart();
    recipe.val_set_size = 0.5;
    recipe.length = TrainingLength::Epochs(2);
    let half = training(&recipe, &shape, 10 << 20, 0, Some(30)).expect("it can be planned");
    recipe.val_set_size = 0.0;
    let whole = training(&recipe, &shape, 10 << 20, 0, Some(30)).expect("it can be planned");
    assert!(half.steps * 2 - whole.steps <= 2, "{} {}", half.steps, whole.steps);
    assert_eq!(whole.steps % 2, 0);
}

#[test]
fn a_replica_reads_all_its_weights_for_a_token() {
    let (_, shape) = quickstart();
    let work =
        serving(&shape, &ServingOptions::new(Dtype::F32, 8, 64, 128)).expect("it can be planned");
    assert!(work.weight_bytes_per_step >= shape.parameters() * 4);
    assert!(work.arena_bytes > work.weight_bytes_per_step);
    assert!(work.flops_per_token >= 2 * shape.parameters());
}
