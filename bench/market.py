#!/usr/bin/env python3
"""One placement decision beside SkyPilot's optimizer and gpuhunt's catalogue, in one run: each peer plants its own
catalogue and answers its own questions; our bench then reads that very catalogue, is asked the same, and must find the
same hourly price. A peer's time is its processor's, not the clock's: where others work too, that favours it.

usage: market.py --peers FOLDER [--questions 24] [--sizes 2500 12000 50000] -- COMMAND…

FOLDER holds skypilot_optimizer.py and gpuhunt_catalog.py. COMMAND is our bench (`cargo bench … --bench decide --`); it is
run once, with the files of what was planted, asked and answered as its last arguments.
"""

import argparse
import json
import os
import pathlib
import random
import runpy
import subprocess
import sys
import tempfile
import time

import peers

REQUIREMENTS = ["skypilot==0.14.1", "pulp==3.3.2", "gpuhunt==0.1.34"]
MODELS = ["V100", "A100", "H100", "L4", "A10G", "T4"]
COUNTS = [1, 2, 4, 8]
HERE = pathlib.Path(__file__).resolve()


def wishes(count: int) -> list[tuple[str, int, bool]]:
    dice = random.Random(11)
    return [(dice.choice(MODELS), dice.choice(COUNTS), dice.random() < 0.5) for _ in range(count)]


def answered(model: str, count: int, spot: bool, seconds: float, price: float | None) -> dict:
    return {"model": model, "count": count, "spot": spot, "micros": seconds * 1e6, "price": price}


def planted_csv(folder: pathlib.Path) -> list[dict]:
    """SkyPilot's catalogue as offers: each row with a price on demand, and one with a price on spot."""
    import csv

    offers = []
    for provider in ("aws", "runpod", "lambda"):
        with open(folder / provider / "vms.csv", newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for spot, price in ((False, row["Price"]), (True, row["SpotPrice"])):
                    if price:
                        offers.append({
                            "provider": provider, "region": row["Region"], "zone": row.get("AvailabilityZone") or "",
                            "kind": row["InstanceType"], "model": row["AcceleratorName"] or None,
                            "count": int(float(row["AcceleratorCount"] or 0)), "vcpus": float(row["vCPUs"]),
                            "memory_gib": float(row["MemoryGiB"]), "spot": spot, "price": float(price)})
    return offers


def ask_skypilot(script: str, size: int, questions: int) -> dict:
    """Its script plants the catalogue under HOME and warms the optimizer up; then it is asked one by one."""
    of_runpod = min(size // 5, 7_056)
    sys.argv = [script, str(size - of_runpod), str(of_runpod), "3"]
    planted = runpy.run_path(script)
    answers = []
    for model, count, spot in wishes(questions):
        begin = time.process_time()
        try:
            _, (_, _, _, price) = planted["one"](model, count, spot)
        except Exception as error:  # nothing was planted that would do
            print(f"skypilot, {count} x {model}: {type(error).__name__}", file=sys.stderr)
            continue
        answers.append(answered(model, count, spot, time.process_time() - begin, price))
    return {"offers": planted_csv(pathlib.Path.home() / ".sky/catalogs/v8"), "answers": answers}


def ask_gpuhunt(script: str, size: int, questions: int) -> dict:
    sys.argv = [script, str(size), "3"]
    catalog = runpy.run_path(script)["c"]
    offers = [
        {"provider": item.provider or name, "region": item.location, "zone": "", "kind": f"{item.instance_name}-{index}",
         "model": item.gpu_name, "count": item.gpu_count, "vcpus": item.cpu, "memory_gib": item.memory,
         "spot": item.spot, "price": item.price}
        for name, known in catalog.catalog.items() for index, item in enumerate(known.items)]
    answers = []
    for model, count, spot in wishes(questions):
        begin = time.process_time()
        found = catalog.query(gpu_name=model, min_gpu_count=count, max_gpu_count=count, spot=spot)
        seconds = time.process_time() - begin
        answers.append(answered(model, count, spot, seconds, min((item.price for item in found), default=None)))
    return {"offers": offers, "answers": answers}


PEERS = {"skypilot": ("skypilot_optimizer.py", ask_skypilot), "gpuhunt": ("gpuhunt_catalog.py", ask_gpuhunt)}


def ask(peer: str, folder: str, size: str, questions: str, out: str) -> None:
    """Runs inside the peers' environment."""
    script, question = PEERS[peer]
    said = question(str(pathlib.Path(folder) / script), int(size), int(questions))
    version = next(one for one in REQUIREMENTS if one.startswith(peer)).replace("==", " ")
    pathlib.Path(out).write_text(json.dumps({"peer": version, **said}), encoding="utf-8")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--peers", type=pathlib.Path, required=True)
    arguments.add_argument("--questions", type=int, default=24)
    arguments.add_argument("--sizes", type=int, nargs="+", default=[2_500, 12_000, 50_000])
    arguments.add_argument("command", nargs="+")
    chosen = arguments.parse_args()
    missing = [script for script, _ in PEERS.values() if not (chosen.peers / script).is_file()]
    if missing:
        sys.exit(f"{chosen.peers} lacks {', '.join(missing)}: --peers names the folder that holds them")
    python = peers.python(REQUIREMENTS)
    with tempfile.TemporaryDirectory(prefix="petaflop-market-") as scratch:
        files = []
        for peer in PEERS:
            for size in chosen.sizes:
                out = pathlib.Path(scratch) / f"{peer}-{size}.json"
                home = pathlib.Path(scratch) / f"home-{peer}-{size}"
                home.mkdir()
                environment = {**os.environ, "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
                said = subprocess.run(
                    [python, str(HERE), "--ask", peer, str(chosen.peers.resolve()), str(size), str(chosen.questions), str(out)],
                    env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                if said.returncode != 0:
                    sys.exit(f"{peer} at {size}: {said.stdout[-2000:]}{said.stderr[-4000:]}")
                files.append(str(out))
        sys.exit(subprocess.run([*chosen.command, *files]).returncode)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ask"]:
        ask(*sys.argv[2:])
    else:
        main()
