//! A file as a model's weights.

use std::collections::BTreeSet;
use std::path::Path;

use petaflop_plan::dtype::Dtype;
use petaflop_plan::formats::served_as;
use petaflop_plan::shape::{ModelShape, TensorRole};

use super::names::{ROPE_FREQS, divisors, name_in_file, row_in_file, turned};
use super::read::Gguf;
use super::{TensorType, block, metadata};
use crate::error::WeightsError;
use crate::weights::{Weights, encode};

/// A model's weights in a file, whose form and every tensor were checked.
#[derive(Debug)]
pub struct GgufModel {
    file: Gguf,
    shape: ModelShape,
}

impl GgufModel {
    /// Opens a file and checks that it holds every tensor of its shape, and no other.
    ///
    /// # Errors
    /// A file that is damaged; an entry, by key, or a tensor, by name, that is missing or of
    /// another kind than the runtime knows.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let file = Gguf::open(path)?;
        let divisors = divisors_in(&file);
        let shape = metadata::shape_of(file.contents(), divisors.as_deref())
            .map_err(|source| WeightsError::Config { path: path.to_owned(), source })?;
        let model = Self { file, shape };
        model.check()?;
        Ok(model)
    }

    /// The file.
    pub fn file(&self) -> &Gguf {
        &self.file
    }

    fn check(&self) -> Result<(), WeightsError> {
        let tensors = &self.file.contents().tensors;
        let mut expected = BTreeSet::from([ROPE_FREQS.to_owned()]);
        for info in self.shape.tensors() {
            let name = name_in_file(&info.name);
            let Some(found) = tensors.get(&name) else {
                return Err(self.wrong(&name, "a tensor of this name", "none".to_owned()));
            };
            if found.shape != info.shape {
                let wanted = format!("{:?}", info.shape);
                return Err(self.wrong(&name, &wanted, format!("{:?}", found.shape)));
            }
            expected.insert(name);
        }
        match tensors.keys().find(|name| !expected.contains(*name)) {
            Some(extra) => {
                Err(self.wrong(extra, "no tensor of this name in this shape", "one".to_owned()))
            }
            None => self.check_rope(),
        }
    }

    /// That the divisors are those of the shape.
    fn check_rope(&self) -> Result<(), WeightsError> {
        let expected = divisors(&self.shape).unwrap_or_default();
        let found = divisors_in(&self.file).unwrap_or_default();
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs();
        if expected.len() == found.len() && found.iter().zip(&expected).all(close) {
            return Ok(());
        }
        let expected = format!("the divisors of {:?}", self.shape.rope);
        Err(self.wrong(ROPE_FREQS, &expected, "others".to_owned()))
    }

    fn wrong(&self, tensor: &str, expected: &str, found: String) -> WeightsError {
        WeightsError::Tensor {
            path: self.file.path().to_owned(),
            tensor: tensor.to_owned(),
            expected: expected.to_owned(),
            found,
        }
    }
}

impl Weights for GgufModel {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn path(&self) -> &Path {
        self.file.path()
    }

    fn serving_format(&self) -> Dtype {
        let tensors = self.shape.tensors();
        let matrices = tensors.iter().filter(|tensor| tensor.role == TensorRole::Matrix);
        served_as(matrices.filter_map(|matrix| {
            let found = self.file.contents().tensors.get(&name_in_file(&matrix.name))?;
            Some((&matrix.name[..], found.dtype.dtype()))
        }))
    }

    fn read(&self, name: &str, dtype: Dtype, out: &mut [u8]) -> Result<(), WeightsError> {
        let in_file = name_in_file(name);
        let Some(tensor) = self.file.contents().tensors.get(&in_file) else {
            return Err(self.wrong(&in_file, "a tensor of this name", "none".to_owned()));
        };
        let width = tensor.shape.last().copied().unwrap_or(0);
        let rows = tensor.shape.iter().product::<u64>() / width;
        let bytes = dtype.bytes(width);
        if rows * bytes != out.len() as u64 {
            let expected = format!("{} bytes of {dtype}", out.len());
            return Err(self.wrong(&in_file, &expected, format!("{:?}", tensor.shape)));
        }
        let source = self.file.bytes(tensor);
        let step = tensor.dtype.dtype().bytes(width) as usize;
        let turned = turned(&self.shape, name);
        let mut numbers = vec![0.0; width as usize];
        for (row, out) in out.chunks_exact_mut(bytes as usize).enumerate() {
            let row = turned.map_or(row, |head| row_in_file(row, head));
            let source = &source[row * step..][..step];
            match (tensor.dtype, dtype) {
                (from, to) if from.dtype() == to => out.copy_from_slice(source),
                (TensorType::Q4_0, Dtype::Q8_0) => block::q8_0_of_q4_0(source, out),
                (from, to) => {
                    block::decode(source, from, &mut numbers);
                    encode(to, &numbers, out);
                }
            }
        }
        Ok(())
    }

    fn as_it_lies(&self, name: &str, dtype: Dtype) -> Option<&[u8]> {
        let tensor = self.file.contents().tensors.get(&name_in_file(name))?;
        let is = tensor.dtype.dtype() == dtype && turned(&self.shape, name).is_none();
        is.then(|| self.file.bytes(tensor))
    }
}

fn divisors_in(file: &Gguf) -> Option<Vec<f32>> {
    let tensor = file.contents().tensors.get(ROPE_FREQS)?;
    let mut numbers = vec![0.0; tensor.shape.iter().product::<u64>() as usize];
    block::decode(file.bytes(tensor), tensor.dtype, &mut numbers);
    Some(numbers)
}
