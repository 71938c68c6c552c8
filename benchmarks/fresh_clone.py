"""From a fresh clone to a finished quickstart: this checkout's commit, an empty folder, an empty home, one command.

    python benchmarks/fresh_clone.py [--keep FOLDER] [--arguments "--budget 2m"]

What is not committed does not count. The home and the caches are empty, so that set-up downloads and installs everything; the
rest of the environment (a proxy, pip's configuration of the machine) stays. The clock is wall time: a person waits for it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import HERE, facts, result_path, store

BAR_SECONDS = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, default=None, help="a folder to make for the clone; default: a temporary one")
    parser.add_argument("--arguments", default="", help="of quickstart")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch) / "clone"
        result: dict[str, Any] = {**facts(), **measure(folder.resolve(), Path(scratch), shlex.split(options.arguments))}
    print(f"exit code {result['exit']} after {result['seconds']:.0f} s (the bar is {BAR_SECONDS:.0f} s)")
    store(result_path("fresh-clone"), result)
    if options.json:
        print(json.dumps(result))
    sys.exit(result["exit"])


def measure(folder: Path, scratch: Path, arguments: list[str]) -> dict[str, Any]:
    """Clones to `folder` and runs the quickstart there.

    Returns:
        exit: code of the quickstart. seconds: of cloning and quickstart together. set_up_seconds: of these, until the packages
        stood. output: what the quickstart printed.
    """
    environment = of_a_fresh_machine(scratch)
    begin, ready, lines = time.perf_counter(), None, []
    clone(folder, environment)
    process = subprocess.Popen(
        ["./tessera", "quickstart", *arguments],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip("\n"))
        if ready is None and re.match(r"Setting up: done", line):
            ready = time.perf_counter() - begin
    code = process.wait()
    return {"exit": code, "seconds": time.perf_counter() - begin, "set_up_seconds": ready, "output": lines}


def of_a_fresh_machine(scratch: Path) -> dict[str, str]:
    """An environment with an empty home, below `scratch`, and no caches."""
    home = scratch / "home"
    home.mkdir()
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "TESSERA_DATA", "TESSERA_CACHE", "XDG_CACHE_HOME", "OMP_NUM_THREADS")
    return {**{k: v for k, v in os.environ.items() if k not in hidden}, "HOME": str(home)}


def clone(folder: Path, environment: dict[str, str]) -> None:
    """This checkout's commit into a new folder."""
    subprocess.run(["git", "clone", "-q", str(HERE.parent), str(folder)], check=True, env=environment)


if __name__ == "__main__":
    main()
