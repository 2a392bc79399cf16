//! Folders of weights: what is written is read, and what is damaged is named.

use std::fs;
use std::path::Path;

use crate::common::{model, shapes};
use half::{bf16, f16};
use petaflop_model::weights::{WEIGHTS_FILE, Weights as _, WeightsFolder, save};
use petaflop_plan::shape::ModelShape;
use petaflop_plan::training::TrainingOptions;
use safetensors::tensor::{Dtype, TensorView, serialize};

fn shape() -> ModelShape {
    shapes().remove(1).1
}

fn write(folder: &Path) -> Vec<(String, Vec<f32>)> {
    let model = model(&shape(), &TrainingOptions::new(1, 4));
    save(folder, &shape(), model.tensors().map(|(t, v)| (t.name.as_str(), &t.shape[..], v)))
        .expect("it can be written");
    model.tensors().map(|(t, v)| (t.name.clone(), v.to_vec())).collect()
}

fn read(folder: &Path, name: &str, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    WeightsFolder::open(folder)
        .expect("it is whole")
        .read_f32(name, &mut values)
        .expect("it is there");
    values
}

fn refusal(folder: &Path) -> String {
    WeightsFolder::open(folder).err().expect("it is damaged").to_string()
}

#[test]
fn what_is_written_is_read_and_equal_weights_give_equal_bytes() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tensors = write(a.path());
    write(b.path());
    for file in ["config.json", WEIGHTS_FILE] {
        assert_eq!(fs::read(a.path().join(file)).unwrap(), fs::read(b.path().join(file)).unwrap());
    }
    assert_eq!(*WeightsFolder::open(a.path()).unwrap().shape(), shape());
    for (name, values) in tensors {
        assert_eq!(read(a.path(), &name, values.len()), values);
    }
}

#[test]
fn several_shards_of_half_precision_are_read_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = write(folder.path());
    fs::remove_file(folder.path().join(WEIGHTS_FILE)).unwrap();
    let mut map = serde_json::Map::new();
    for (shard, dtype) in [Dtype::BF16, Dtype::F16].into_iter().enumerate() {
        let file = format!("model-{shard}.safetensors");
        let mine: Vec<_> =
            tensors.iter().enumerate().filter(|(i, _)| i % 2 == shard).map(|(_, t)| t).collect();
        let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = mine
            .iter()
            .map(|(name, values)| {
                let encode = |v: &f32| match dtype {
                    Dtype::BF16 => bf16::from_f32(*v).to_le_bytes(),
                    _ => f16::from_f32(*v).to_le_bytes(),
                };
                let info = shape().tensors().into_iter().find(|t| t.name == *name).unwrap();
                let dims = info.shape.iter().map(|&n| n as usize).collect();
                map.insert(name.clone(), file.clone().into());
                (name.clone(), dims, values.iter().flat_map(encode).collect())
            })
            .collect();
        let views = bytes
            .iter()
            .map(|(name, dims, data)| (name, TensorView::new(dtype, dims.clone(), data).unwrap()));
        fs::write(folder.path().join(&file), serialize(views, None).unwrap()).unwrap();
    }
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
    for (i, (name, values)) in tensors.iter().enumerate() {
        let rounded: Vec<f32> =
            values
                .iter()
                .map(|&v| {
                    if i % 2 == 0 { bf16::from_f32(v).to_f32() } else { f16::from_f32(v).to_f32() }
                })
                .collect();
        assert_eq!(read(folder.path(), name, values.len()), rounded, "{name}");
    }
    for way_out in ["../model-0.safetensors", "/etc/passwd", ".."] {
        fs::write(&index, serde_json::json!({ "weight_map": { "x": way_out } }).to_string())
            .unwrap();
        assert!(refusal(folder.path()).contains("weight_map.x: expected a file name"));
    }
}

#[test]
fn a_file_that_is_cut_short_or_garbage_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let path = folder.path().join(WEIGHTS_FILE);
    let whole = fs::read(&path).unwrap();
    for len in [0, 1, 7, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(refusal(folder.path()).contains("model.safetensors: "), "{len}");
    }
    let mut bytes = whole.clone();
    for i in 0..200 {
        bytes[i] ^= 0x55;
        fs::write(&path, &bytes).unwrap();
        // Some damage only renames a tensor; none may panic.
        let _ = WeightsFolder::open(folder.path());
    }
    fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
    assert!(refusal(folder.path()).contains("not a whole safetensors file"));
    fs::remove_file(&path).unwrap();
    assert!(refusal(folder.path()).contains("model.safetensors: No such file"));
    fs::write(folder.path().join("config.json"), "{").unwrap();
    assert!(refusal(folder.path()).contains("config.json: not JSON"));
}

#[test]
fn a_tensor_that_is_missing_extra_or_of_another_shape_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(&shape(), &TrainingOptions::new(1, 4));
    let tensors: Vec<_> =
        model.tensors().map(|(t, v)| (t.name.clone(), t.shape.clone(), v)).collect();
    let save_all = |tensors: &[(String, Vec<u64>, &[f32])]| {
        save(folder.path(), &shape(), tensors.iter().map(|(n, s, v)| (n.as_str(), &s[..], *v)))
            .unwrap();
    };
    save_all(&tensors[1..]);
    assert!(
        refusal(folder.path()).contains(
            "tensor model.embed_tokens.weight: expected a tensor of this name, found none"
        )
    );
    let mut more = tensors.clone();
    more.push(("model.layers.0.mlp.experts.weight".to_owned(), vec![1], &[0.0]));
    save_all(&more);
    assert!(
        refusal(folder.path())
            .contains("tensor model.layers.0.mlp.experts.weight: expected no tensor of this name")
    );
    let mut turned = tensors.clone();
    turned[0].1.reverse();
    save_all(&turned);
    assert!(
        refusal(folder.path())
            .contains("tensor model.embed_tokens.weight: expected [37, 24], found [24, 37]")
    );
    // Tied embeddings may be repeated, if they are the same.
    let mut repeated = tensors.clone();
    repeated.push(("lm_head.weight".to_owned(), tensors[0].1.clone(), tensors[0].2));
    save_all(&repeated);
    assert!(WeightsFolder::open(folder.path()).is_ok());
    let other = vec![0.5; tensors[0].2.len()];
    repeated.last_mut().unwrap().2 = &other;
    save_all(&repeated);
    assert!(refusal(folder.path()).contains("tensor lm_head.weight: expected no tensor"));
}
