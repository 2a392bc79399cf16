#!/usr/bin/env python3
"""Training speed beside a peer's, in one run: ours and JAX in turn, so that a machine whose speed drifts
slows both. Prints machine, versions, median and spread, and the ratio pair by pair; appends a row to results.csv.
Then kernels and a served model beside the roofline of the same run (`petaflop-runtime bench all`).

usage: bench.py --runtime PATH [--peers FOLDER] [--rounds 5] [--seconds 8]

FOLDER holds jax_llama_cpu.py (LAYERS DIM HEADS VOCAB SEQ BATCH as arguments, one line with "N tok/s" as output).
Without it the peer's column stays empty, and the last line says so.
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

import peers

# Layers, width, heads, vocabulary, sequence, batch: the sizes of the peer's own table.
SHAPES = [(4, 128, 4, 512, 128, 16), (4, 192, 6, 1024, 256, 8), (4, 256, 8, 2048, 256, 8)]
REQUIREMENTS = ["jax==0.10.2", "optax==0.2.8"]
HERE = pathlib.Path(__file__).resolve().parent


def output(*command: str, **options) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options).stdout


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f}–{max(values):,.0f})"


def machine() -> dict[str, str]:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    commit = output("git", "-C", str(HERE), "describe", "--always", "--dirty").strip()
    return {"cpu": model, "cores": str(len(os.sched_getaffinity(0))), "commit": commit}


def beside_the_roofline(runtime: str, rounds: int, seconds: float) -> list[dict]:
    """Rows of kernels and served models: what bounds each, and how near it comes to that in the same run."""
    runs = [json.loads(output(runtime, "bench", "all", "--seconds", str(seconds), "--json")) for _ in range(rounds)]
    peaks = {"gflops": "fma_peak_gflops", "gb_s": "read_gb_s"}
    units = {"gflops": "GFLOP/s", "gb_s": "GB/s"}
    rows = []
    for samples in zip(*(run["rows"] for run in runs)):
        machines = [run["machine"] for run in runs]
        # The nearer roof, by the medians: the rate whose share of its peak is the largest.
        share = {rate: statistics.median(one[rate] / machine[peaks[rate]] for one, machine in zip(samples, machines))
                 for rate in peaks if rate in samples[0]}
        rate = max(share, key=share.get)
        values = [one[rate] for one in samples]
        name, roof = samples[0]["what"], statistics.median(machine[peaks[rate]] for machine in machines)
        print(f"  {name:38} {spread(values)} {units[rate]}   roof {roof:,.0f}   ratio {share[rate]:.2f}")
        rows.append({"what": name, "unit": units[rate], "ours": round(statistics.median(values), 1),
                     "ours_min": round(min(values), 1), "ours_max": round(max(values), 1), "peer": "roofline",
                     "peer_median": round(roof, 1), "ratio": f"{share[rate]:.3f}", "rounds": rounds})
    return rows


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runtime", required=True)
    arguments.add_argument("--peers", type=pathlib.Path)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=8)
    chosen = arguments.parse_args()

    where = machine()
    python = None
    if chosen.peers:
        script = chosen.peers / "jax_llama_cpu.py"
        if not script.is_file():
            sys.exit(f"{script} is missing: --peers names the folder that holds it")
        python = peers.python(REQUIREMENTS)
    print(f"machine: {where['cpu']}, {where['cores']} cores; commit {where['commit']}")
    print(f"versions: {output(chosen.runtime, '--version').strip()}; peer: {', '.join(REQUIREMENTS) if python else 'none'}")
    print(f"training, f32, forward + backward + AdamW, tokens/s: median (least–most) of {chosen.rounds} rounds in turn")

    rows = []
    for shape in SHAPES:
        layers, dim, heads, vocab, seq, batch = map(str, shape)
        ours, theirs, facts = [], [], {}
        for _ in range(chosen.rounds):
            facts = json.loads(output(
                chosen.runtime, "bench", "training", "--layers", layers, "--dim", dim, "--heads", heads, "--vocab", vocab,
                "--seq", seq, "--batch", batch, "--seconds", str(chosen.seconds), "--json", stderr=subprocess.DEVNULL))
            ours.append(facts["tokens_per_second"])
            if python:
                line = output(python, str(script), layers, dim, heads, vocab, seq, batch, stderr=subprocess.DEVNULL)
                found = re.search(r"([\d.]+) tok/s", line)
                if not found:
                    sys.exit(f"{script} printed no tokens/s: {line!r}")
                theirs.append(float(found.group(1)))
        name = f"L{layers} D{dim} V{vocab} T{seq} B{batch}"
        ratios = [a / b for a, b in zip(ours, theirs)]
        beside = (f"   JAX {spread(theirs)}   ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
                  if theirs else "")
        print(f"  {name:28} ours {spread(ours)}{beside}")
        planned, arena, rss = facts["planned_bytes"], facts["arena_bytes"], facts["peak_rss_bytes"]
        print(f"  {'':28} arena {arena:,} bytes, planned {planned:,}{'' if arena == planned else ' DIFFER'}; peak RSS {rss:,}")
        rows.append({"what": f"training {name}", "unit": "tokens/s", "ours": round(statistics.median(ours)),
                     "ours_min": round(min(ours)), "ours_max": round(max(ours)),
                     "peer": REQUIREMENTS[0] if theirs else "", "peer_median": round(statistics.median(theirs)) if theirs else "",
                     "ratio": f"{statistics.median(ratios):.3f}" if ratios else "", "rounds": chosen.rounds, **where})

    print("kernels and a served model, beside the peak of multiply-adds or the read stream of the same run, whichever bounds them")
    rows += [row | where for row in beside_the_roofline(chosen.runtime, min(chosen.rounds, 3), chosen.seconds / 8)]

    results = HERE / "results.csv"
    fresh = not results.exists()
    with results.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if fresh:
            writer.writeheader()
        writer.writerows(rows)
    if not python:
        print("no peer measured: give --peers FOLDER (make bench PEERS=FOLDER)")


if __name__ == "__main__":
    main()
