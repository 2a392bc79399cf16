//! What would make it fit: changes one after the other, each on top of those before, the least
//! harmful first. First what costs time and leaves the result as it is; then what rounds; then what
//! does less.

use serde::Serialize;

use super::{Anatomy, Format, Loss, Method, Needs, Optimizer, Recompute, Serving, Training};

/// Contexts are not made shorter than this by themselves, in tokens.
const SHORTEST: u32 = 4096;

/// Tokens of which the loss is taken at a time.
const CHUNK: u32 = 1024;

/// Width of the pairs that are trained instead of all.
const RANK: u32 = 16;

/// What is done with a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Use {
    /// It answers.
    Serve(Serving),
    /// It learns.
    Train(Training),
}

impl Use {
    /// Bytes, part by part.
    pub fn needs(&self, model: &Anatomy) -> Needs {
        match self {
            Self::Serve(serving) => serving.needs(model),
            Self::Train(training) => training.needs(model),
        }
    }
}

/// One change, on top of those before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rung {
    /// In words.
    pub change: String,
    /// What is then done.
    pub with: Use,
    /// What it then takes.
    pub needs: Needs,
}

/// All changes that there are for this use, each of which takes less than the one before.
pub fn ladder(model: &Anatomy, of: Use) -> Vec<Rung> {
    let mut rungs: Vec<Rung> = Vec::new();
    let mut least = of.needs(model).total();
    let steps = match of {
        Use::Serve(serving) => serve(serving),
        Use::Train(training) => train(training),
    };
    for (change, with) in steps {
        let needs = with.needs(model);
        if needs.total() < least {
            least = needs.total();
            rungs.push(Rung { change, with, needs });
        }
    }
    rungs
}

fn serve(mut with: Serving) -> Vec<(String, Use)> {
    let mut steps = Vec::new();
    let mut push = |change: String, with: Serving| steps.push((change, Use::Serve(with)));
    if with.step_tokens > 256 {
        with.step_tokens = 256;
        push("256 tokens in a pass: longer until the first one".to_owned(), with);
    }
    while with.sequences > 1 {
        with.sequences /= 2;
        push(format!("{} sequences at once: others wait", with.sequences), with);
    }
    if with.weights == Format::F32 {
        with.weights = Format::Bf16;
        push("weights in bf16: rounded".to_owned(), with);
    }
    if matches!(with.cache, Format::F32 | Format::Bf16) {
        with.cache = Format::Q8_0;
        push("keys and values in q8_0: rounded".to_owned(), with);
    }
    if with.weights == Format::Bf16 {
        with.weights = Format::Q8_0;
        push("weights in q8_0: rounded".to_owned(), with);
    }
    while with.context / 2 >= SHORTEST {
        with.context /= 2;
        push(format!("{} tokens of context: longer ones are refused", with.context), with);
    }
    if !matches!(with.weights, Format::Q4_0) {
        with.weights = Format::Q4_0;
        push("weights in q4_0: other answers".to_owned(), with);
    }
    steps
}

fn train(mut with: Training) -> Vec<(String, Use)> {
    let mut steps = Vec::new();
    let mut push = |change: String, with: Training| steps.push((change, Use::Train(with)));
    if !matches!(with.loss, Loss::Chunks { .. }) {
        with.loss = Loss::Chunks { tokens: CHUNK };
        push(format!("the loss of {CHUNK} tokens at a time"), with);
    }
    while with.sequences > 1 {
        let before = with.sequences.saturating_mul(with.passes);
        with.sequences /= 2;
        with.passes = before.div_ceil(with.sequences);
        push(
            format!("{} sequences a pass, {} passes a step: slower", with.sequences, with.passes),
            with,
        );
    }
    if with.recompute == Recompute::Nothing {
        with.recompute = Recompute::Selective;
        push("norms and gates made again on the way back: slower".to_owned(), with);
    }
    if with.recompute == Recompute::Selective {
        with.recompute = Recompute::Blocks;
        push("whole blocks made again on the way back: a third slower".to_owned(), with);
    }
    if with.optimizer == Optimizer::Adam && with.method == Method::Full {
        with.optimizer = Optimizer::Adam8bit;
        push("moments of one byte, no master copy: rounded".to_owned(), with);
    }
    if with.method == Method::Full {
        (with.method, with.optimizer) = (Method::Lora { rank: RANK }, Optimizer::Adam);
        push(format!("pairs of rank {RANK} instead of all: another result"), with);
    }
    if let Method::Lora { rank } = with.method {
        with.method = Method::Qlora { rank };
        push("the model in 4 bits beside them: another result".to_owned(), with);
    }
    while with.context / 2 >= SHORTEST {
        with.context /= 2;
        push(format!("{} tokens of context: longer ones are cut", with.context), with);
    }
    steps
}
