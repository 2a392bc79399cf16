"""A peer's prefill and decode of a GGUF file, on the same threads: the prompt in one pass, then the token after it over
and over. Prints one line of JSON: tokens a second of the best of each, and whether its weights were repacked.

usage: llama_cpp_model.py FILE.gguf PROMPT THREADS SECONDS
"""

import ctypes
import json
import os
import sys
import time

import llama_cpp


def best(seconds: float, repeated) -> float:
    """Least seconds of one call, after one that is not counted."""
    repeated()
    end, least = time.monotonic() + seconds, float("inf")
    while True:
        before = time.perf_counter()
        repeated()
        least = min(least, time.perf_counter() - before)
        if time.monotonic() >= end:
            return least


def main() -> None:
    file, prompt, threads, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    of_model = llama_cpp.llama_model_default_params()
    # Repacked weights end the process on some processors (with AMX, seen with 0.3.36): whoever calls then asks anew.
    of_model.use_extra_bufts = "AS_THEY_LIE" not in os.environ
    model = llama_cpp.llama_model_load_from_file(file.encode(), of_model)
    of_context = llama_cpp.llama_context_default_params()
    of_context.n_ctx = prompt + 64
    of_context.n_batch = of_context.n_ubatch = max(prompt, 512)
    of_context.n_threads = of_context.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, of_context)
    if not model or not context:
        sys.exit(f"llama.cpp does not open {file}")
    memory = llama_cpp.llama_get_memory(context)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    tokens = (llama_cpp.llama_token * prompt)(*((i * 7919 + 13) % vocabulary for i in range(prompt)))

    def passed(tokens, count: int, start: int) -> None:
        llama_cpp.llama_memory_seq_rm(memory, 0, start, -1)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, count)):
            sys.exit("llama_decode failed")
        llama_cpp.llama_synchronize(context)

    prefill = best(seconds, lambda: passed(tokens, prompt, 0))
    one = (llama_cpp.llama_token * 1)(17)
    decode = best(seconds, lambda: passed(one, 1, prompt))
    print(json.dumps({"prefill": prompt / prefill, "decode": 1 / decode, "repacked": bool(of_model.use_extra_bufts)}))


main()
