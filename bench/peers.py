"""The environment of Python packages that peers are measured in."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import venv


def python(requirements: list[str]) -> str:
    """The interpreter of an environment of its own with these packages, made once."""
    cache = pathlib.Path(os.environ.get("PETAFLOP_CACHE") or pathlib.Path.home() / ".cache/petaflop")
    name = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:12]
    home = cache / f"venv-bench-{name}"
    ready = home / "ready"
    if not ready.exists():
        print(f"installing {', '.join(requirements)} into {home} (once)", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([home / "bin/pip", "install", "--quiet", *requirements], check=True)
        ready.touch()
    return str(home / "bin/python")


def version(python: pathlib.Path) -> str:
    """Which llama-cpp-python that interpreter has."""
    asked = "import importlib.metadata as m; print('llama-cpp-python', m.version('llama-cpp-python'), sep='==')"
    return subprocess.run([python, "-c", asked], check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


def llama_cpp(python: pathlib.Path, file: str, prompt: int, threads: int, seconds: float) -> dict:
    """Tokens a second of llama.cpp; with its weights as they lie where repacked ones end the process."""
    script = pathlib.Path(__file__).with_name("llama_cpp_model.py")
    command = [python, script, file, str(prompt), str(threads), str(seconds)]
    asked = subprocess.run(command, text=True, capture_output=True)
    if asked.returncode < 0:
        asked = subprocess.run(command, text=True, capture_output=True, env=os.environ | {"AS_THEY_LIE": "1"})
    if asked.returncode:
        sys.exit(f"llama.cpp ended with {asked.returncode}: {asked.stderr.strip()}")
    return json.loads(asked.stdout)
