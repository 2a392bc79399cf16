//! What a checkpoint holds: the weights and moments, the record so far, and the
//! tokenizer, which need not be trained again.

use bytemuck::cast_slice;
use petaflop_model::{place::Training, tokenizer::TOKENIZER_FILE};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{
    checkpoint::{Checkpoint, Files},
    error::Error,
    history::History,
};

const STATE: &str = "state.safetensors";
const HISTORY: &str = "history.json";

/// Copies the state; training may go on while it is written.
pub(crate) fn save(
    model: &dyn Training,
    history: &History,
    tokenizer: &[u8],
) -> Result<Files, Error> {
    let state = model.state().map_err(Error::model)?;
    let views = state
        .iter()
        .map(|(name, values)| {
            Ok((name, TensorView::new(Dtype::F32, vec![values.len()], cast_slice(values))?))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>();
    let bytes = views.and_then(|views| safetensors::serialize(views, None));
    let bytes = bytes.map_err(|error| Error::Internal(format!("checkpoint: {error}")))?;
    Ok(Files::from([
        (STATE.to_owned(), bytes.into()),
        (HISTORY.to_owned(), history.to_bytes()?.into()),
        (TOKENIZER_FILE.to_owned(), tokenizer.to_vec().into()),
    ]))
}

/// Brings the model to a checkpoint's state and returns the record up to there.
/// Its hashes were right, so whatever does not fit was written by another program.
pub(crate) fn restore(model: &mut dyn Training, checkpoint: &Checkpoint) -> Result<History, Error> {
    restore_from(model, &checkpoint.files).map_err(|problem| {
        Error::Internal(format!(
            "checkpoint of step {}: {problem}; it was written by another version: remove it to start over",
            checkpoint.step
        ))
    })
}

fn restore_from(model: &mut dyn Training, files: &Files) -> Result<History, String> {
    let file = |name: &str| files.get(name).ok_or_else(|| format!("{name} is missing"));
    let history = History::from_bytes(file(HISTORY)?)?;
    let tensors =
        SafeTensors::deserialize(file(STATE)?).map_err(|error| format!("{STATE}: {error}"))?;
    let mut restored = 0;
    model.restore(&mut |name, values| {
        let tensor = tensors.tensor(name).map_err(|error| format!("{STATE}: {name}: {error}"))?;
        if tensor.dtype() != Dtype::F32 || tensor.data().len() != size_of_val(values) {
            return Err(format!("{STATE}: {name} has another size than the model's"));
        }
        // The file's bytes may lie at any address.
        bytemuck::cast_slice_mut::<f32, u8>(values).copy_from_slice(tensor.data());
        restored += 1;
        Ok(())
    })?;
    if tensors.len() != restored {
        return Err(format!("{STATE} holds {} tensors, the model has {restored}", tensors.len()));
    }
    Ok(history)
}
