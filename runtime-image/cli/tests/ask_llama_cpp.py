"""What llama.cpp makes of a GGUF file, in one line of JSON: the logits after each token of a text, and the tokens
that it chooses after them. Keys and values are kept in f32, as ours are.

usage: ask_llama_cpp.py FILE.gguf TOKENS CHOSEN    TOKENS: JSON list; CHOSEN: how many are to be chosen
"""

import json
import sys

import llama_cpp

defaults = llama_cpp.llama_model_default_params


def as_they_lie():
    """Weights that are not repacked: on processors with AMX the repacked ones end the process (seen with 0.3.36)."""
    parameters = defaults()
    parameters.use_extra_bufts = False
    return parameters


llama_cpp.llama_cpp.llama_model_default_params = as_they_lie


def main():
    file, tokens, chosen = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    model = llama_cpp.Llama(
        file,
        n_ctx=len(tokens) + chosen,
        n_batch=len(tokens),
        n_threads=1,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    model.eval(tokens)
    logits = model.scores[: len(tokens)].tolist()
    choices = []
    for _ in range(chosen):
        choices.append(int(model.scores[model.n_tokens - 1].argmax()))
        model.eval(choices[-1:])
    # How it cuts the text, too.
    text = model.tokenize("7 plus 12 is 19, and\n  naïve?".encode(), add_bos=False, special=False)
    print(json.dumps({"logits": logits, "choices": choices, "text": text}))


main()
