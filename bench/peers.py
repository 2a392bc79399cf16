"""The environment of Python packages that peers are measured in."""

import hashlib
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
