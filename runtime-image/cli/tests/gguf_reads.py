"""Reads a GGUF file by ggml's own package, and holds every tensor and key against the Hugging Face folder
of the same model. What tensors are called, how rows are turned and how numbers become blocks is the package's
or written here from llama.cpp's converter; nothing is ours.

usage: gguf_reads.py FILE.gguf FOLDER    prints one line of JSON
"""

import json
import pathlib
import sys

import gguf
import numpy


def safetensors(path):
    """Tensors of a file in f32, by name."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        assert entry["dtype"] == "F32", name
        yield name, numpy.frombuffer(data[8 + length :][start:end], "<f4").reshape(entry["shape"])


def permute(rows, heads):
    """As LlamaModel.permute does."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def main():
    file, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    config = json.loads((folder / "config.json").read_text())
    tokenizer_text = (folder / "tokenizer.json").read_text()
    tokenizer = json.loads(tokenizer_text)
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}

    keys, heads = gguf.Keys, config["num_attention_heads"]
    file_type = fields.pop(keys.General.FILE_TYPE)
    quantised = file_type != gguf.LlamaFileType.ALL_F32
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda entry: entry[1])
    expected = {
        keys.General.ARCHITECTURE: "llama",
        keys.General.TYPE: gguf.GGUFType.MODEL,
        "llama.vocab_size": config["vocab_size"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.key_length": config["head_dim"],
        "llama.attention.value_length": config["head_dim"],
        "llama.rope.dimension_count": config["head_dim"],
        "llama.attention.layer_norm_rms_epsilon": float(numpy.float32(config["rms_norm_eps"])),
        "llama.rope.freq_base": config["rope_theta"],
        keys.Tokenizer.MODEL: "gpt2",
        keys.Tokenizer.PRE: "gpt-2",
        keys.Tokenizer.LIST: [text for text, _ in vocabulary],
        keys.Tokenizer.TOKEN_TYPE: [
            int(gguf.TokenType.CONTROL if text in special else gguf.TokenType.NORMAL) for text, _ in vocabulary
        ],
        keys.Tokenizer.MERGES: [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]],
        keys.Tokenizer.ADD_BOS: False,
        keys.Tokenizer.BOS_ID: special["<|endoftext|>"],
        keys.Tokenizer.EOS_ID: special["<|endoftext|>"],
        keys.Tokenizer.EOT_ID: special["<|im_end|>"],
        keys.Tokenizer.CHAT_TEMPLATE: (folder / "chat_template.jinja").read_text(),
        keys.Tokenizer.HF_JSON: tokenizer_text,
    }
    if quantised:
        expected[keys.General.QUANTIZATION_VERSION] = gguf.GGML_QUANT_VERSION
    for name in sorted(expected.keys() | fields.keys()):
        assert fields.get(name) == expected.get(name), f"{name}: {fields.get(name)!r}, not {expected.get(name)!r}"

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    found = {tensor.name: tensor for tensor in reader.tensors}
    types = {}
    for ours, numbers in safetensors(folder / "model.safetensors"):
        name = names.get_name(ours, try_suffixes=(".weight", ".bias"))
        tensor = found.pop(name)
        if ours.endswith("q_proj.weight"):
            numbers = permute(numbers, heads)
        elif ours.endswith("k_proj.weight"):
            numbers = permute(numbers, config["num_key_value_heads"])
        assert list(tensor.shape) == list(reversed(numbers.shape)), name
        blocks = gguf.quants.quantize(numbers, tensor.tensor_type)
        assert tensor.data.tobytes() == blocks.tobytes(), f"{name}: other bytes than the package gives"
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
    assert not found, f"nothing is known of {sorted(found)}"
    print(json.dumps({"keys": len(fields), "file_type": gguf.LlamaFileType(file_type).name, "types": types}))


main()
