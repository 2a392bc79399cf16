//! GGUF: what is written is read, by the bit where the type holds it, and what is damaged is named.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{bits, cpu, model, rounded, shapes, tokens};
use petaflop_model::chat::DEFAULT_TEMPLATE;
use petaflop_model::gguf::export::export;
use petaflop_model::gguf::model::GgufModel;
use petaflop_model::gguf::read::{Contents, Gguf, parse};
use petaflop_model::gguf::value::{Array, Value};
use petaflop_model::gguf::write::{Header, write};
use petaflop_model::gguf::{TensorType, block, vocabulary};
use petaflop_model::inference::{Chunk, InferenceModel, Logits};
use petaflop_model::tokenizer::Tokenizer;
use petaflop_model::training::TrainingModel;
use petaflop_model::weights::{self, GGUF_FILE, Weights};
use petaflop_plan::dtype::Dtype;
use petaflop_plan::inference::ServingOptions;
use petaflop_plan::recipe::Quantization;
use petaflop_plan::shape::ModelShape;
use petaflop_plan::training::TrainingOptions;
use proptest::prelude::*;

const LENGTH: usize = 37;

fn exported(folder: &Path, model: &TrainingModel, matrices: Quantization) -> GgufModel {
    let values: BTreeMap<&str, &[f32]> =
        model.tensors().map(|(t, values)| (t.name.as_str(), values)).collect();
    let file = folder.join(GGUF_FILE);
    export(&file, model.shape(), matrices, Vec::new(), |name| values[name]).expect("it is written");
    GgufModel::open(&file).expect("it was just written")
}

/// Rows of whole blocks, so that everything can be quantised.
fn blocks_shape() -> ModelShape {
    ModelShape { hidden: 64, intermediate: 96, kv_heads: 2, heads: 8, ..shapes().remove(0).1 }
}

fn logits(weights: &dyn Weights, dtype: Dtype, tokens: &[u32]) -> Vec<f32> {
    let options = ServingOptions { logit_rows: 64, ..ServingOptions::new(dtype, 4, 64, 48) };
    let mut model = InferenceModel::new(cpu(2), weights, &options).expect("it has a plan");
    let chunk = Chunk { tokens, start: 0, blocks: &[7, 2, 5], logits: Logits::All };
    model.forward(&[chunk]).expect("it fits").to_vec()
}

#[test]
fn a_model_of_every_form_comes_back_with_every_bit_and_gives_the_same_logits() {
    for (name, shape) in shapes() {
        let mut model = model(&shape, &TrainingOptions::new(1, LENGTH as u32));
        let folder = tempfile::tempdir().expect("a folder can be made");
        let file = exported(folder.path(), &model, Quantization::None);
        assert_eq!(*file.shape(), shape, "{name}");
        for (info, values) in model.tensors() {
            let mut found = vec![0.0; values.len()];
            file.read_f32(&info.name, &mut found).expect("it is there");
            assert_eq!(bits(&found), bits(values), "{name}: {}", info.name);
        }
        // The folder is a model's folder.
        let opened = weights::open(folder.path()).expect("it holds a model");
        let tokens = tokens(LENGTH, shape.vocab, 21);
        let expected = model.logits(&tokens).expect("it fits");
        assert_eq!(bits(&logits(&*opened, Dtype::F32, &tokens)), bits(expected), "{name}");
    }
}

#[test]
fn rows_that_are_turned_pairwise_lie_where_llama_cpp_looks_for_them() {
    let shape = blocks_shape();
    let model = model(&shape, &TrainingOptions::new(1, 4));
    let folder = tempfile::tempdir().expect("a folder can be made");
    let model_file = exported(folder.path(), &model, Quantization::None);
    let file = model_file.file();
    let tensor = &file.contents().tensors["blk.1.attn_k.weight"];
    let (_, ours) = model
        .tensors()
        .find(|(t, _)| t.name == "model.layers.1.self_attn.k_proj.weight")
        .expect("every block has one");
    let width = shape.hidden as usize;
    // Heads of 8: the pairs (0, 4), (1, 5), (2, 6), (3, 7) are neighbours.
    for (row, from) in [0, 4, 1, 5, 2, 6, 3, 7, 8, 12].into_iter().enumerate() {
        let mut found = vec![0.0; width];
        block::decode(
            &file.bytes(tensor)[row * width * 4..][..width * 4],
            tensor.dtype,
            &mut found,
        );
        assert_eq!(found, ours[from * width..][..width], "row {row}");
    }
}

#[test]
fn quantised_matrices_are_served_as_the_file_has_them() {
    let shape = blocks_shape();
    let mut model = model(&shape, &TrainingOptions::new(1, LENGTH as u32));
    let tokens = tokens(LENGTH, shape.vocab, 21);
    let expected = model.logits(&tokens).expect("it fits").to_vec();
    for matrices in [Quantization::Q8_0, Quantization::Q4_0] {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let file = exported(folder.path(), &model, matrices);
        let format = match matrices {
            Quantization::Q4_0 => Dtype::Q4_0,
            _ => Dtype::Q8_0,
        };
        assert_eq!(file.serving_format(), format);
        for (info, values) in model.tensors().filter(|(t, _)| t.shape.len() == 2) {
            let mut found = vec![0.0; values.len()];
            file.read_f32(&info.name, &mut found).expect("it is there");
            let mut blocks = vec![0; values.len() / 32 * 34];
            file.read(&info.name, Dtype::Q8_0, &mut blocks).expect("it is there");
            let mut widened = vec![0.0; values.len()];
            block::decode(&blocks, TensorType::Q8_0, &mut widened);
            assert_eq!(found, widened, "{matrices:?}: {}", info.name);
            if matrices == Quantization::Q8_0 {
                assert_eq!(found, rounded(values, Dtype::Q8_0), "{}", info.name);
            }
        }
        // The same numbers in another format: what they give differs by roundings of sums alone.
        let (eight, whole) =
            (logits(&file, Dtype::Q8_0, &tokens), logits(&file, Dtype::F32, &tokens));
        let largest = whole.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (eight, whole) in eight.iter().zip(&whole) {
            assert!((eight - whole).abs() < 1e-5 * largest, "{matrices:?}: {eight} {whole}");
        }
        assert_ne!(bits(&eight), bits(&expected), "{matrices:?}");
        // From the file's own blocks: of q4_0, what q8_0 of the same numbers gives.
        assert_eq!(bits(&logits(&file, format, &tokens)), bits(&eight), "{matrices:?}");
    }
}

#[test]
fn a_row_of_no_whole_blocks_stays_as_it_is() {
    let shape = shapes().remove(1).1;
    let model = model(&shape, &TrainingOptions::new(1, 4));
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = exported(folder.path(), &model, Quantization::Q4_0);
    let types = |name: &str| file.file().contents().tensors[name].dtype;
    assert_eq!(types("token_embd.weight"), TensorType::F32); // 24 wide
    assert_eq!(types("blk.0.attn_output.weight"), TensorType::Q4_0); // 4 heads of 8
    assert_eq!(file.serving_format(), Dtype::F32);
}

#[test]
fn q4_0_keeps_the_largest_and_rounds_the_others_to_its_sixteenth() {
    let numbers: Vec<f32> = (0..32).map(|i| (i as f32 - 16.0) / 2.0).collect();
    let mut bytes = [0; 18];
    block::encode(&numbers, TensorType::Q4_0, &mut bytes);
    // The largest magnitude is −8, so the scale is 1.
    assert_eq!(bytes[..2], half::f16::from_f32(1.0).to_le_bytes());
    let mut found = vec![0.0; 32];
    block::decode(&bytes, TensorType::Q4_0, &mut found);
    for (number, found) in numbers.iter().zip(&found) {
        // Halves upwards, 7 at most.
        assert_eq!(*found, (number + 0.5).floor().min(7.0), "{number}");
    }
    block::encode(&[0.0; 32], TensorType::Q4_0, &mut bytes);
    block::decode(&bytes, TensorType::Q4_0, &mut found);
    assert_eq!(found, [0.0; 32]);
}

fn trained() -> Tokenizer {
    let texts: Vec<String> = (0..60)
        .map(|i| format!("The {i}th line says: fn main() {{ {} }} — naïve café №{i}\n", i * i))
        .collect();
    Tokenizer::train_bpe(texts.iter().map(String::as_str), 320).expect("there are merges enough")
}

#[test]
fn a_tokenizer_comes_back_whole_and_from_its_tokens_and_merges_alone() {
    let tokenizer = trained();
    let entries = vocabulary::entries(&tokenizer, DEFAULT_TEMPLATE, 330).expect("it has a name");
    let mut contents = Contents { metadata: entries.into_iter().collect(), ..Contents::default() };
    assert_eq!(vocabulary::template(&contents), Some(DEFAULT_TEMPLATE));
    let whole = vocabulary::tokenizer(&contents).expect("it was just written");
    assert_eq!(whole.to_bytes().unwrap(), tokenizer.to_bytes().unwrap());
    let tokens = contents.metadata["tokenizer.ggml.tokens"].as_strings().expect("they are texts");
    assert_eq!(
        (tokens.len(), tokens[0].as_str(), tokens[329].as_str()),
        (330, "<|endoftext|>", "[PAD329]")
    );

    // As llama.cpp's own converter leaves it out.
    contents.metadata.remove("tokenizer.huggingface.json");
    let rebuilt = vocabulary::tokenizer(&contents).expect("it can be rebuilt");
    assert_eq!(rebuilt.vocab(), tokenizer.vocab());
    for text in
        ["", "The 7th line", "日本語 \u{0}\r\n\t  x", "a<|im_end|>b", "fn main() { 49 } — café"]
    {
        assert_eq!(rebuilt.encode(text).unwrap(), tokenizer.encode(text).unwrap(), "{text:?}");
    }
    assert_eq!(rebuilt.special("<|im_start|>"), tokenizer.special("<|im_start|>"));

    for (key, value, problem) in [
        ("tokenizer.ggml.pre", Value::from("tekken"), "expected gpt-2, llama-bpe, qwen2, smollm"),
        ("tokenizer.ggml.model", Value::from("llama"), "expected gpt2"),
        ("tokenizer.ggml.merges", Value::U32(1), "expected an array of texts"),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1])), "expected 330 numbers"),
    ] {
        let mut other = contents.clone();
        other.metadata.insert(key.to_owned(), value);
        let refused = vocabulary::tokenizer(&other).err().expect("it is another kind").to_string();
        assert!(refused.contains(key) && refused.contains(problem), "{refused}");
    }
}

#[test]
fn every_cut_that_is_written_by_name_is_read_by_name() {
    for cut in ["gpt-2", "llama-bpe", "qwen2", "smollm"] {
        let mut metadata: BTreeMap<String, Value> =
            vocabulary::entries(&trained(), "", 320).expect("it has a name").into_iter().collect();
        metadata.remove("tokenizer.huggingface.json");
        metadata.insert("tokenizer.ggml.pre".to_owned(), cut.into());
        let contents = Contents { metadata, ..Contents::default() };
        let tokenizer = vocabulary::tokenizer(&contents).expect("it can be rebuilt");
        let again = vocabulary::entries(&tokenizer, "", 320).expect("it has a name");
        assert!(again.contains(&("tokenizer.ggml.pre".to_owned(), cut.into())), "{cut}");
        assert_eq!(
            tokenizer.decode(&tokenizer.encode("The 12345th café\n\n x").unwrap()),
            "The 12345th café\n\n x"
        );
    }
}

/// A small whole file: two tensors of 32 numbers.
fn small() -> Vec<u8> {
    let metadata = [
        ("general.architecture".to_owned(), Value::from("llama")),
        ("list".to_owned(), Value::Array(Array::String(vec!["a".to_owned(), "é".to_owned()]))),
    ];
    let header = |name: &str, dtype| Header { name: name.to_owned(), shape: vec![1, 32], dtype };
    let tensors = [header("one", TensorType::Q8_0), header("two", TensorType::F32)];
    let mut file = Vec::new();
    write(&mut file, &metadata, &tensors, |i, out| {
        out.fill(i as u8 + 1);
        Ok::<_, std::io::Error>(())
    })
    .expect("memory takes it");
    file
}

fn refusal(file: &[u8]) -> String {
    parse(file).expect_err("it is damaged").to_string()
}

/// Where these bytes are in a file, once.
fn find(file: &[u8], bytes: &[u8]) -> usize {
    let mut places = file.windows(bytes.len()).enumerate().filter(|(_, w)| *w == bytes);
    let (at, _) = places.next().expect("it is there");
    assert!(places.next().is_none(), "it is there once");
    at
}

#[test]
fn damage_is_named_with_its_place() {
    let whole = small();
    assert_eq!(parse(&whole).expect("it is whole").tensors.len(), 2);
    let (one, two) = (find(&whole, b"one"), find(&whole, b"two"));
    // After a name: dimensions, two of them, type, offset.
    let (dimensions, inner, outer, kind, offset) = (3, 7, 15, 23, 27);
    let huge = u64::MAX.to_le_bytes();
    let cases: [(usize, &[u8], &str); 16] = [
        (0, b"GGML", "byte 0: expected \"GGUF\""),
        (4, &[1], "expected version 2 or 3, found 1"),
        (8, &huge, "expected at most"),
        (16, &huge, "expected a count of at most"),
        (24, &huge, "expected a count of at most"),
        (24 + 8, &[0xff], "expected UTF-8"),
        (
            24 + 8 + 20,
            &[13],
            "\"general.architecture\": expected a kind of value from 0 to 12, found 13",
        ),
        (find(&whole, b"list") + 4 + 4, &[9], "expected an array of numbers"),
        (find(&whole, b"list") + 4 + 4 + 4, &huge, "for which the file has room"),
        (one + dimensions, &[5], "expected 1 to 4 dimensions of tensor \"one\", found 5"),
        (one + inner, &[33], "tensor \"one\": [1, 33] is no shape of q8_0"),
        (one + inner, &huge, "is no shape of q8_0"),
        (one + outer, &[0], "is no shape of q8_0"),
        (
            one + kind,
            &[14],
            "expected one of f32 (0), f16 (1), bf16 (30), q8_0 (8), q4_0 (2) for the type of tensor \"one\", found 14",
        ),
        (two + offset, &[32], "tensor \"two\": its bytes lie over those of tensor \"one\""),
        (two + offset, &[64, 0, 0, 0, 0, 0, 0, 0x40], "tensor \"two\": 128 bytes at offset"),
    ];
    for (at, bytes, problem) in cases {
        let mut file = whole.clone();
        file[at..][..bytes.len()].copy_from_slice(bytes);
        let refused = refusal(&file);
        assert!(refused.starts_with("byte ") && refused.contains(problem), "{problem}: {refused}");
    }
    let mut file = whole.clone();
    file[two + offset] = 65;
    assert!(refusal(&file).contains("expected an offset of whole 32 bytes, found 65"));
    let mut file = whole.clone();
    file[two..][..3].copy_from_slice(b"one");
    assert!(refusal(&file).contains("tensor \"one\": it is there twice"));
    let mut file = whole.clone();
    file.extend([0; 33]);
    assert!(refusal(&file).contains("expected the file's end, found 33 more bytes"));
    for length in 0..whole.len() {
        refusal(&whole[..length]);
    }
    // The mend, and the file's name.
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("cut.gguf");
    std::fs::write(&path, &whole[..100]).expect("the folder is writable");
    let refused = Gguf::open(&path).expect_err("it is cut short").to_string();
    assert!(refused.contains("cut.gguf: not a whole GGUF file (byte "), "{refused}");
    assert!(refused.ends_with("fetch or export it again"), "{refused}");
}

#[test]
fn a_model_that_is_another_than_the_runtime_knows_is_refused_by_key_or_tensor() {
    let model = model(&blocks_shape(), &TrainingOptions::new(1, 4));
    let folder = tempfile::tempdir().expect("a folder can be made");
    let whole = exported(folder.path(), &model, Quantization::None);
    let contents = whole.file().contents();
    type Change = fn(&mut BTreeMap<String, Value>, &mut Vec<Header>);
    let cases: [(Change, &str); 9] = [
        (|m, _| drop(m.remove("general.architecture")), "general.architecture: missing"),
        (
            |m, _| drop(m.insert("general.architecture".into(), "mamba".into())),
            "\"mamba\" is not supported",
        ),
        (|m, _| drop(m.remove("llama.block_count")), "llama.block_count: missing"),
        (
            |m, _| drop(m.insert("llama.block_count".into(), "two".into())),
            "llama.block_count: expected a whole number",
        ),
        (
            |m, _| drop(m.insert("llama.expert_count".into(), Value::U32(8))),
            "llama.expert_count: 8 is not supported",
        ),
        (
            |m, _| drop(m.insert("llama.rope.scaling.type".into(), "yarn".into())),
            "yarn is not supported",
        ),
        (
            |m, _| drop(m.insert("llama.rope.dimension_count".into(), Value::U32(4))),
            "expected the heads' 8",
        ),
        (|_, t| drop(t.pop()), "tensor"),
        (|_, t| t[0].shape.reverse(), "tensor"),
    ];
    for (change, problem) in cases {
        let mut metadata = contents.metadata.clone();
        let mut tensors: Vec<Header> = contents
            .tensors
            .iter()
            .map(|(name, t)| Header { name: name.clone(), shape: t.shape.clone(), dtype: t.dtype })
            .collect();
        change(&mut metadata, &mut tensors);
        let path = folder.path().join("other.gguf");
        let mut file = std::fs::File::create(&path).expect("the folder is writable");
        let metadata: Vec<_> = metadata.into_iter().collect();
        write(&mut file, &metadata, &tensors, |_, _| Ok::<_, std::io::Error>(()))
            .expect("it is written");
        let Err(refused) = GgufModel::open(&path) else { panic!("{problem}") };
        let refused = refused.to_string();
        assert!(
            refused.contains("other.gguf: ") && refused.contains(problem),
            "{problem}: {refused}"
        );
    }
}

fn value() -> impl Strategy<Value = Value> {
    let texts = prop::collection::vec(".{0,6}", 0..4);
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i64>().prop_map(Value::I64),
        any::<u16>().prop_map(Value::U16),
        any::<bool>().prop_map(Value::Bool),
        (-1e9f32..1e9).prop_map(Value::F32),
        (-1e9f64..1e9).prop_map(Value::F64),
        ".{0,12}".prop_map(Value::String),
        texts.prop_map(|texts| Value::Array(Array::String(texts))),
        prop::collection::vec(any::<i32>(), 0..9).prop_map(|n| Value::Array(Array::I32(n))),
        prop::collection::vec(any::<bool>(), 0..9).prop_map(|n| Value::Array(Array::Bool(n))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_written_is_read(
        metadata in prop::collection::btree_map("[a-z.]{1,12}", value(), 0..8),
        tensors in prop::collection::btree_map("[a-z.]{1,20}", (1_u64..5, 1_u64..4, 0_usize..5, any::<u8>()), 0..6),
    ) {
        let (names, fills): (Vec<_>, Vec<_>) = tensors.into_iter().unzip();
        let headers: Vec<Header> = names.iter().zip(&fills).map(|(name, &(rows, blocks, dtype, _))| {
            Header { name: name.clone(), shape: vec![rows, 32 * blocks], dtype: TensorType::ALL[dtype] }
        }).collect();
        let entries: Vec<_> = metadata.clone().into_iter().collect();
        let mut file = Vec::new();
        write(&mut file, &entries, &headers, |i, out| { out.fill(fills[i].3); Ok::<_, std::io::Error>(()) })
            .expect("memory takes it");
        let contents = parse(&file).expect("it is whole");
        prop_assert_eq!(contents.metadata, metadata);
        prop_assert_eq!(contents.tensors.len(), headers.len());
        for (header, fill) in headers.iter().zip(&fills) {
            let tensor = &contents.tensors[&header.name];
            prop_assert_eq!((&tensor.shape, tensor.dtype), (&header.shape, header.dtype));
            let bytes = &file[tensor.bytes.clone()];
            prop_assert!(bytes.len() as u64 == header.bytes() && bytes.iter().all(|b| *b == fill.3));
            prop_assert!(tensor.bytes.start.is_multiple_of(32));
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>()) {
        let mut file = small();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        for file in [&file[..], &file[..cut.index(file.len())]] {
            if let Ok(contents) = parse(file) {
                // Whatever it says, its tensors are within it.
                prop_assert!(contents.tensors.values().all(|t| t.bytes.end <= file.len()));
            }
        }
    }
}
