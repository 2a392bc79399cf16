//! Weights, wherever they lie: in a folder of Hugging Face form (`config.json`, and one or several
//! `*.safetensors`), or in a GGUF file. Files are mapped, and numbers converted as they are read.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use petaflop_device::MappedFile;
use petaflop_plan::dtype::Dtype;
use petaflop_plan::shape::ModelShape;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as FileDtype, View};

use crate::error::WeightsError;
use crate::gguf::model::GgufModel;

/// The one file of weights that we write, and read where there is no index.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The model's form.
pub const CONFIG_FILE: &str = "config.json";
/// The file of a folder whose weights are in a GGUF file.
pub const GGUF_FILE: &str = "model.gguf";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// A model's weights, whose form and every tensor were checked; numbers are read when asked for.
pub trait Weights {
    /// The model's form.
    fn shape(&self) -> &ModelShape;

    /// The folder or file.
    fn path(&self) -> &Path;

    /// The format in which its matrices are served: it holds them all as they are.
    fn serving_format(&self) -> Dtype;

    /// Reads a tensor in this format: exact where what is there fits into it,
    /// otherwise rounded (bf16: to nearest, ties to even; q8_0 and q4_0: as the kernels do).
    ///
    /// # Errors
    /// There is no such tensor, or it has not `out`'s length.
    fn read(&self, name: &str, dtype: Dtype, out: &mut [u8]) -> Result<(), WeightsError>;

    /// A tensor where it lies, if it lies there in this format and in the order of [`Self::read`].
    fn as_it_lies(&self, _name: &str, _dtype: Dtype) -> Option<&[u8]> {
        None
    }

    /// Reads a tensor as f32.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<(), WeightsError> {
        self.read(name, Dtype::F32, bytemuck::cast_slice_mut(out))
    }

    /// # Errors
    /// Its shape differs from this one.
    fn expect_shape(&self, shape: &ModelShape) -> Result<(), WeightsError> {
        if shape == self.shape() {
            return Ok(());
        }
        let what = format!("expected the shape {shape:?}, found {:?}", self.shape());
        Err(malformed(self.path(), what))
    }
}

/// Opens a GGUF file, a folder with a [`GGUF_FILE`], or a folder of Hugging Face form.
///
/// # Errors
/// As [`GgufModel::open`] and [`WeightsFolder::open`].
pub fn open(path: &Path) -> Result<Box<dyn Weights>, WeightsError> {
    Ok(match gguf_in(path) {
        Some(file) => Box::new(GgufModel::open(&file)?),
        None => Box::new(WeightsFolder::open(path)?),
    })
}

/// The GGUF file at a path: itself, or the one in the folder that it is.
pub fn gguf_in(path: &Path) -> Option<PathBuf> {
    [path.to_owned(), path.join(GGUF_FILE)].into_iter().find(|file| file.is_file())
}

/// A folder whose form and every tensor were checked; numbers are read when asked for.
pub struct WeightsFolder {
    path: PathBuf,
    shape: ModelShape,
    files: Vec<(PathBuf, MappedFile)>,
    tensors: BTreeMap<String, Located>,
}

struct Located {
    file: usize,
    dtype: FileDtype,
    bytes: Range<usize>,
}

impl WeightsFolder {
    /// Opens a folder and checks that it holds every tensor of its shape, and no other.
    ///
    /// # Errors
    /// A file that is missing, cut short or malformed; a tensor that is missing, of
    /// another shape, or of a type other than F32, BF16 and F16: by file and name.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let shape = read_config(&path.join(CONFIG_FILE))?;
        let mut folder =
            Self { path: path.to_owned(), shape, files: Vec::new(), tensors: BTreeMap::new() };
        for name in file_names(path)? {
            folder.add_file(path.join(name))?;
        }
        folder.check()?;
        Ok(folder)
    }

    fn add_file(&mut self, path: PathBuf) -> Result<(), WeightsError> {
        let file = MappedFile::open(&path)
            .map_err(|source| WeightsError::Io { path: path.clone(), source })?;
        let broken = |e: &dyn std::fmt::Display| {
            malformed(&path, format!("not a whole safetensors file ({e}); fetch it again"))
        };
        let (header, metadata) = SafeTensors::read_metadata(&file).map_err(|e| broken(&e))?;
        for (name, info) in metadata.tensors() {
            let start = 8 + header;
            let (from, to) = info.data_offsets;
            let located = Located {
                file: self.files.len(),
                dtype: info.dtype,
                bytes: start + from..start + to,
            };
            if self.tensors.insert(name.clone(), located).is_some() {
                return Err(self.wrong_tensor(
                    &path,
                    &name,
                    "it once",
                    "it in another file too".to_owned(),
                ));
            }
        }
        // Shapes are compared here, while the header is at hand.
        for expected in self.shape.tensors() {
            let Some(info) = metadata.info(&expected.name) else {
                continue;
            };
            let found: Vec<u64> = info.shape.iter().map(|&n| n as u64).collect();
            if found != expected.shape {
                return Err(self.wrong_tensor(
                    &path,
                    &expected.name,
                    &format!("{:?}", expected.shape),
                    format!("{found:?}"),
                ));
            }
            if !matches!(info.dtype, FileDtype::F32 | FileDtype::BF16 | FileDtype::F16) {
                return Err(self.wrong_tensor(
                    &path,
                    &expected.name,
                    "F32, BF16 or F16",
                    format!("{:?}", info.dtype),
                ));
            }
        }
        self.files.push((path, file));
        Ok(())
    }

    fn check(&mut self) -> Result<(), WeightsError> {
        let expected: Vec<String> = self.shape.tensors().into_iter().map(|t| t.name).collect();
        if let Some(missing) = expected.iter().find(|name| !self.tensors.contains_key(*name)) {
            return Err(self.wrong_tensor(
                &self.path,
                missing,
                "a tensor of this name",
                "none".to_owned(),
            ));
        }
        // Older files carry the rotary frequencies, which follow from the shape.
        self.tensors.retain(|name, _| !name.ends_with(".rotary_emb.inv_freq"));
        let extra = self.tensors.iter().find(|(name, _)| !expected.contains(name));
        let Some((name, located)) = extra else {
            return Ok(());
        };
        let path = &self.files[located.file].0;
        // Some files repeat tied embeddings under the output projection's name.
        let embedding = &self.tensors["model.embed_tokens.weight"];
        let bytes = |l: &Located| &self.files[l.file].1[l.bytes.clone()];
        if name == "lm_head.weight"
            && located.dtype == embedding.dtype
            && bytes(located) == bytes(embedding)
        {
            let name = name.clone();
            self.tensors.remove(&name);
            return self.check();
        }
        Err(self.wrong_tensor(path, name, "no tensor of this name in this shape", "one".to_owned()))
    }

    fn wrong_tensor(
        &self,
        path: &Path,
        tensor: &str,
        expected: &str,
        found: String,
    ) -> WeightsError {
        WeightsError::Tensor {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            expected: expected.to_owned(),
            found,
        }
    }
}

impl Weights for WeightsFolder {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn serving_format(&self) -> Dtype {
        Dtype::F32
    }

    fn read(&self, name: &str, dtype: Dtype, out: &mut [u8]) -> Result<(), WeightsError> {
        let Some(located) = self.tensors.get(name) else {
            return Err(self.wrong_tensor(
                &self.path,
                name,
                "a tensor of this name",
                "none".to_owned(),
            ));
        };
        let (path, file) = &self.files[located.file];
        let source = &file[located.bytes.clone()];
        let count = source.len() / width(located.dtype);
        if dtype.bytes(count as u64) != out.len() as u64 {
            let expected = format!("{} bytes of {dtype}", out.len());
            return Err(self.wrong_tensor(path, name, &expected, format!("{count} numbers")));
        }
        // A run of whole blocks of every format at a time.
        const RUN: usize = 4096;
        let mut numbers = [0f32; RUN];
        let runs = source
            .chunks(RUN * width(located.dtype))
            .zip(out.chunks_mut(dtype.bytes(RUN as u64) as usize));
        for (source, out) in runs {
            let numbers = &mut numbers[..source.len() / width(located.dtype)];
            decode(located.dtype, source, numbers);
            encode(dtype, numbers, out);
        }
        Ok(())
    }

    fn as_it_lies(&self, name: &str, dtype: Dtype) -> Option<&[u8]> {
        let located = self.tensors.get(name)?;
        let is = matches!(
            (located.dtype, dtype),
            (FileDtype::F32, Dtype::F32) | (FileDtype::BF16, Dtype::Bf16)
        );
        is.then(|| &self.files[located.file].1[located.bytes.clone()])
    }
}

/// Writes `config.json` and `model.safetensors` in f32. Equal tensors give equal bytes.
///
/// # Errors
/// What the system says of a file.
pub fn save<'a>(
    folder: &Path,
    shape: &ModelShape,
    tensors: impl IntoIterator<Item = (&'a str, &'a [u64], &'a [f32])>,
) -> Result<(), WeightsError> {
    save_config(folder, shape)?;
    let path = folder.join(WEIGHTS_FILE);
    // safetensors sorts by type, then name; one entry of metadata has one order.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let tensors = tensors
        .into_iter()
        .map(|(name, shape, values)| (name, F32Tensor { shape: usizes(shape), values }));
    safetensors::serialize_to_file(tensors, Some(metadata), &path).map_err(|e| WeightsError::Io {
        path: path.clone(),
        source: match e {
            safetensors::SafeTensorError::IoError(e) => e,
            other => io::Error::other(other),
        },
    })
}

/// Writes `config.json`.
///
/// # Errors
/// What the system says of the file.
pub fn save_config(folder: &Path, shape: &ModelShape) -> Result<(), WeightsError> {
    let path = folder.join(CONFIG_FILE);
    std::fs::write(&path, format!("{:#}\n", shape.to_hf_config()))
        .map_err(|source| WeightsError::Io { path, source })
}

fn usizes(shape: &[u64]) -> Vec<usize> {
    shape.iter().map(|&n| usize::try_from(n).expect("the tensor is in memory")).collect()
}

struct F32Tensor<'a> {
    shape: Vec<usize>,
    values: &'a [f32],
}

impl View for F32Tensor<'_> {
    fn dtype(&self) -> FileDtype {
        FileDtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        bytemuck::cast_slice(self.values).into()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

fn read_json(path: &Path) -> Result<serde_json::Value, WeightsError> {
    let bytes =
        std::fs::read(path).map_err(|source| WeightsError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|e| malformed(path, format!("not JSON: {e}")))
}

/// Reads a model's form.
///
/// # Errors
/// What the system says; text that is not JSON; a field by name.
pub fn read_config(path: &Path) -> Result<ModelShape, WeightsError> {
    let config = read_json(path)?;
    ModelShape::from_hf_config(&config)
        .map_err(|source| WeightsError::Config { path: path.to_owned(), source })
}

/// The files of weights: those of the index, or the single one.
fn file_names(folder: &Path) -> Result<Vec<String>, WeightsError> {
    let index = folder.join(INDEX_FILE);
    if !index.exists() {
        return Ok(vec![WEIGHTS_FILE.to_owned()]);
    }
    let value = read_json(&index)?;
    let map = value.get("weight_map").and_then(|m| m.as_object());
    let Some(map) = map.filter(|m| !m.is_empty()) else {
        return Err(malformed(
            &index,
            "weight_map: expected an object of tensor names and files".to_owned(),
        ));
    };
    let mut names = Vec::new();
    for (tensor, file) in map {
        // A file of this folder, never a path that leads out of it.
        match file.as_str().filter(|name| Path::new(name).file_name().is_some_and(|n| n == *name)) {
            Some(name) => names.push(name.to_owned()),
            None => {
                return Err(malformed(
                    &index,
                    format!("weight_map.{tensor}: expected a file name, found {file}"),
                ));
            }
        }
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

fn malformed(path: &Path, what: String) -> WeightsError {
    WeightsError::Malformed { path: path.to_owned(), what }
}

/// Bytes of one number of a type that [`WeightsFolder::open`] accepts.
fn width(dtype: FileDtype) -> usize {
    if dtype == FileDtype::F32 { 4 } else { 2 }
}

fn decode(dtype: FileDtype, source: &[u8], numbers: &mut [f32]) {
    match dtype {
        FileDtype::F32 => {
            for (number, b) in numbers.iter_mut().zip(source.chunks_exact(4)) {
                *number = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        FileDtype::BF16 => {
            for (number, b) in numbers.iter_mut().zip(source.chunks_exact(2)) {
                *number = bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        _ => {
            for (number, b) in numbers.iter_mut().zip(source.chunks_exact(2)) {
                *number = f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
    }
}

/// Writes numbers in a format, rounded as [`Weights::read`] says.
pub(crate) fn encode(dtype: Dtype, numbers: &[f32], out: &mut [u8]) {
    match dtype {
        Dtype::F32 => {
            for (number, b) in numbers.iter().zip(out.chunks_exact_mut(4)) {
                b.copy_from_slice(&number.to_le_bytes());
            }
        }
        Dtype::Bf16 => {
            for (number, b) in numbers.iter().zip(out.chunks_exact_mut(2)) {
                b.copy_from_slice(&bf16::from_f32(*number).to_le_bytes());
            }
        }
        Dtype::Q8_0 => petaflop_kernel::quantize_q8_0(numbers, out),
        Dtype::Q4_0 => petaflop_kernel::quantize_q4_0(numbers, out),
        Dtype::U32 | Dtype::F16 => unreachable!("the planner keeps no weights in these"),
    }
}
