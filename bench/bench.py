#!/usr/bin/env python3
"""The runtime's figures beside their peers, in one run: ours and the peer in turn, several rounds, so that a machine
whose speed drifts slows both. Prints machine, versions, median and spread, and the ratio round by round; appends rows
to results.csv.

usage: bench.py --runtime PATH [--peers FOLDER] [--llama-cpp PYTHON] [--rounds 3] [--seconds 4] [--only PARTS] [--json]

FOLDER holds jax_llama_cpu.py (LAYERS DIM HEADS VOCAB SEQ BATCH as arguments, one line with "N tok/s" as output).
PYTHON has llama-cpp-python. A peer that is missing leaves its column empty, and a last line says so.
"""

import argparse
import csv
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import peers

# Layers, width, heads, vocabulary, sequence, batch: 0.87, 3.74 and 12.4 million parameters.
TRAINING = [(4, 128, 4, 512, 128, 16), (4, 256, 8, 2048, 256, 8), (6, 384, 6, 4096, 256, 8)]
GEMM = [1024, 1536, 2048]
PROMPT = 512
JAX = ["jax==0.10.2", "optax==0.2.8"]
NUMPY = ["numpy==2.3.4"]
PARTS = ["training", "gemm", "serving", "roofline"]
HERE = pathlib.Path(__file__).resolve().parent


def output(*command: str, **options) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options).stdout


def shown(values: list[float]) -> str:
    digits = 0 if statistics.median(values) >= 100 else 1
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def machine() -> dict[str, str]:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        facts = [[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]
    first = {name: value for name, value in reversed(facts)}
    model, clock = first.get("model name", "unknown"), first.get("cpu MHz")
    commit = output("git", "-C", str(HERE), "describe", "--always", "--dirty").strip()
    return {"cpu": f"{model} at {float(clock):.0f} MHz" if clock else model,
            "cores": str(len(os.sched_getaffinity(0))), "commit": commit}


class Figures:
    """Rows of this run; each is said as soon as it is there."""

    def __init__(self, runtime: str, rounds: int, seconds: float, to):
        self.runtime, self.rounds, self.seconds, self.to = runtime, rounds, seconds, to
        self.rows: list[dict] = []

    def say(self, line: str) -> None:
        print(line, file=self.to, flush=True)

    def bench(self, *arguments: str, seconds: float | None = None) -> dict:
        seconds = self.seconds if seconds is None else seconds
        return json.loads(output(self.runtime, "bench", *arguments, "--seconds", str(seconds), "--json",
                                 stderr=subprocess.DEVNULL))

    def add(self, what: str, unit: str, ours: list[float], peer: str = "", theirs: list[float] = ()) -> None:
        """A row: ours, and the peer's figures of the same rounds where it is there."""
        row = {"what": what, "unit": unit, "ours": ours, "peer": "", "peer_median": "", "ratio": "", "rounds": len(ours)}
        line = f"  {what:42} {shown(ours)} {unit}"
        if theirs:
            ratios = [a / b for a, b in zip(ours, theirs)]
            row |= {"peer": peer, "peer_median": round(statistics.median(theirs), 2),
                    "ratio": f"{statistics.median(ratios):.3f}"}
            line += f"   {peer} {shown(theirs)}   ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        for name, of in [("ours", statistics.median), ("ours_min", min), ("ours_max", max)]:
            row[name] = round(of(ours), 2)
        self.rows.append(row)
        self.say(line)

    def training(self, python: str | None, script: pathlib.Path | None) -> None:
        self.say("training, f32, forward + backward + clipping + AdamW")
        for shape in TRAINING:
            numbers = list(map(str, shape))
            named = ("--layers", "--dim", "--heads", "--vocab", "--seq", "--batch")
            runs, theirs = [], []
            for _ in range(self.rounds):
                runs.append(self.bench("training", *(part for pair in zip(named, numbers) for part in pair)))
                if python:
                    line = output(python, str(script), *numbers, stderr=subprocess.DEVNULL)
                    found = re.search(r"([\d.]+) tok/s", line)
                    if not found:
                        sys.exit(f"{script} printed no tokens/s: {line!r}")
                    theirs.append(float(found.group(1)))
            name = "training L{0} D{1} V{3} T{4} B{5}".format(*shape)
            ours, generic, rate, products = ([run[fact] for run in runs] for fact in (
                "tokens_per_second", "generic_tokens_per_second", "gflops", "products_gflops"))
            self.add(name, "tokens/s", ours, JAX[0], theirs)
            self.add(name, "tokens/s", ours, "generic", generic)
            self.add(f"generic {name}", "tokens/s", generic, JAX[0], theirs)
            self.add(name, "GFLOP/s", rate, "its products alone", products)
            arena, planned = runs[0]["arena_bytes"], runs[0]["planned_bytes"]
            self.say(f"  {'':42} arena {arena:,} bytes, planned {planned:,}{'' if arena == planned else ' DIFFER'}")

    def gemm(self, python: str) -> None:
        self.say("matrix product, f32")
        for size in GEMM:
            runs, theirs = [], []
            for _ in range(self.rounds):
                runs.append(self.bench("gemm", "--size", str(size), seconds=self.seconds / 4))
                theirs.append(float(output(python, str(HERE / "numpy_gemm.py"), str(size), str(runs[-1]["threads"]),
                                           str(self.seconds / 4))))
            ours = [run["gflops"] for run in runs]
            self.add(f"gemm f32 {size}³", "GFLOP/s", ours, "numpy", theirs)
            self.add(f"gemm f32 {size}³", "GFLOP/s", ours, "FMA peak", [run["fma_peak_gflops"] for run in runs])

    def serving(self, llama_cpp: pathlib.Path | None) -> None:
        self.say(f"SmolLM2-135M's shape, q8_0, random weights, one sequence, a prompt of {PROMPT}")
        with tempfile.TemporaryDirectory() as folder:
            file = str(pathlib.Path(folder) / "random.gguf")
            self.bench("decode", "--prompt", "1", "--write-gguf", file, seconds=0)
            prefill, decode, first, theirs = [], [], [], []
            for _ in range(self.rounds):
                of = ("--gguf", file, "--prompt", str(PROMPT))
                prefill.append(self.bench("prefill", *of, seconds=self.seconds / 2))
                decode.append(self.bench("decode", *of, seconds=self.seconds / 2))
                first.append(self.bench("first-token", *of, seconds=0)["first_token_ms"])
                if llama_cpp:
                    theirs.append(peers.llama_cpp(llama_cpp, file, PROMPT, decode[-1]["threads"], self.seconds / 2))
        repacked = "" if all(their["repacked"] for their in theirs) else ", not repacked"
        for name, runs in [("prefill", prefill), ("decode", decode)]:
            self.add(f"{name} q8_0 T{PROMPT}", "tokens/s", [run["tokens_per_second"] for run in runs],
                     f"llama.cpp{repacked}", [their[name] for their in theirs])
        self.add(f"prefill q8_0 T{PROMPT} int8-activations", "tokens/s",
                 [run["int8_activations_tokens_per_second"] for run in prefill],
                 f"llama.cpp{repacked}", [their["prefill"] for their in theirs])
        self.add(f"prefill q8_0 T{PROMPT}", "tokens/s", [run["tokens_per_second"] for run in prefill],
                 "generic", [run["generic_tokens_per_second"] for run in prefill])
        self.add("first token after start, q8_0", "ms", first)

    def roofline(self) -> None:
        """Kernels and served models: what bounds each, and how near it comes to that in the same run."""
        self.say("beside the peak of multiply-adds or the read stream of the same run, whichever bounds them")
        runs = [self.bench("all", seconds=self.seconds / 8) for _ in range(self.rounds)]
        roofs = [run["machine"] for run in runs]
        peaks = {"gflops": ("fma_peak_gflops", "GFLOP/s", "FMA peak"), "gb_s": ("read_gb_s", "GB/s", "read stream")}
        for samples in zip(*(run["rows"] for run in runs)):
            # The nearer roof, by the medians: the rate whose share of its peak is the largest.
            share = {rate: statistics.median(one[rate] / roof[peaks[rate][0]] for one, roof in zip(samples, roofs))
                     for rate in peaks if rate in samples[0]}
            rate = max(share, key=share.get)
            peak, unit, name = peaks[rate]
            self.add(samples[0]["what"], unit, [one[rate] for one in samples], name, [roof[peak] for roof in roofs])

    def append(self, where: dict[str, str]) -> None:
        results = HERE / "results.csv"
        with results.open(encoding="utf-8") as file:
            columns = next(csv.reader(file))
        with results.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, columns, lineterminator="\n").writerows(row | where for row in self.rows)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runtime", required=True)
    arguments.add_argument("--peers", type=pathlib.Path)
    arguments.add_argument("--llama-cpp", type=pathlib.Path, help="a Python that has it; passed over where there is none")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=4, help="how long ours is measured in a round")
    arguments.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    arguments.add_argument("--json", action="store_true", help="the rows as JSON on stdout; the table goes to stderr")
    chosen = arguments.parse_args()
    only = chosen.only.split(",")
    if unknown := set(only) - set(PARTS):
        sys.exit(f"--only: expected {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")

    script = chosen.peers and chosen.peers / "jax_llama_cpu.py"
    if script and not script.is_file():
        sys.exit(f"{script} is missing: --peers names the folder that holds it")
    llama_cpp = chosen.llama_cpp if chosen.llama_cpp and chosen.llama_cpp.exists() else None
    where = machine()
    figures = Figures(chosen.runtime, chosen.rounds, chosen.seconds, sys.stderr if chosen.json else sys.stdout)
    figures.say(f"machine: {where['cpu']}, {where['cores']} cores; commit {where['commit']}")
    figures.say(f"versions: {output(chosen.runtime, '--version').strip()}; peers: "
                + ", ".join(NUMPY + (JAX if script else []) + ([peers.version(llama_cpp)] if llama_cpp else [])))
    figures.say(f"median (least–most) of {chosen.rounds} rounds in turn; ratio: ours ÷ theirs, round by round")
    if "training" in only:
        figures.training(peers.python(JAX) if script else None, script)
    if "gemm" in only:
        figures.gemm(peers.python(NUMPY))
    if "serving" in only:
        figures.serving(llama_cpp)
    if "roofline" in only:
        figures.roofline()
    figures.append(where)
    if chosen.json:
        print(json.dumps({"machine": where, "rows": figures.rows}))
    if "training" in only and not script:
        figures.say("JAX was not measured: give --peers FOLDER (make bench-kernels PEERS=FOLDER)")
    if "serving" in only and not llama_cpp:
        figures.say("llama.cpp was not measured: `make llama-cpp` installs it")


if __name__ == "__main__":
    main()
