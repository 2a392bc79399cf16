//! What the engine needs of a model.

use petaflop_model::{inference::Chunk, place::Serving};

/// A model with its key/value cache.
pub(crate) trait Forward: Send {
    /// Takes all chunks through the model in one pass. Returns the wanted logits,
    /// row after row in the chunks' order; what a sequence gets depends neither on
    /// the others nor on how its tokens were cut into chunks.
    ///
    /// # Errors
    /// Why the model cannot go on. The engine then stops.
    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<&[f32], String>;
}

impl Forward for Box<dyn Serving> {
    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<&[f32], String> {
        (**self).forward(chunks).map_err(|e| e.to_string())
    }
}
