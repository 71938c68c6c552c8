"""The model in the box: how fast it is there.

    python benchmarks/box.py                         # loading, and starts of a server
    python benchmarks/box.py --only fresh            # a fresh clone with an empty home, to the first answer

`load`: checksums are compared and weights read, in a process that has imported everything. `start`: from the start of
`tessera serve starter` to its first answer; the first start makes the database, and is told apart. `fresh`: the same in a clone
of this checkout's commit, set-up included; what is not committed does not count. The clock is wall time: a person waits for it.
On a machine with other work processor time, which is told beside it, says more.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import environment, facts, result_path, spread, store
from fresh_clone import clone, of_a_fresh_machine
from served import Client, ServerProcess

BARS = {"load_seconds": 2.0, "start_seconds": 5.0, "fresh_seconds": 180.0}
PARTS = ("load", "start", "fresh")
_QUESTION = {"model": "starter", "messages": [{"role": "user", "content": "What is 2 + 3?"}], "max_tokens": 8}
_LOAD = """
import json, time
from tessera.commands.generate import open_engine
from tessera.model import starter, weights
weights.resolve_model("starter")
starter.model_folder.cache_clear()
begin, cpu = time.perf_counter(), time.process_time()
engine = open_engine("starter")
found = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
print(json.dumps(found | {"parameters": engine.decoder.config.parameters}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="that compute, in the parts load and start")
    parser.add_argument("--only", default="load,start", help="parts to run")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output too")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    result: dict[str, Any] = facts() | {"threads": options.threads, "bars": BARS}
    with tempfile.TemporaryDirectory() as scratch:
        # A folder `starter` in the working directory would go before the box, and `runs/` is written there.
        os.chdir(scratch)
        for part in wanted:
            result[part] = {"load": load, "start": start, "fresh": fresh}[part](Path(scratch), options)
    store(result_path("box"), result)
    if options.json:
        print(json.dumps(result))


def load(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Checksums, weights, tokenizer, engine."""
    command, rounds = [sys.executable, "-c", _LOAD], []
    for _ in range(options.rounds):
        done = subprocess.run(command, env=environment(options.threads), check=True, capture_output=True)
        rounds.append(json.loads(done.stdout))
    told, cpu = (spread([each[clock] for each in rounds]) for clock in ("seconds", "cpu_seconds"))
    size, wall = (
        f"{rounds[0]['parameters'] / 1e6:.1f}M parameters",
        f"{told['median']:.2f} s ({told['min']:.2f}..{told['max']:.2f})",
    )
    print(f"loading {size}: {wall}, {cpu['median']:.2f} s of one core")
    return {"seconds": told, "cpu_seconds": cpu, "parameters": rounds[0]["parameters"]}


def start(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start to first answer, again and again with one folder of what is kept."""
    found, busy = [], []
    for _ in range(options.rounds + 1):
        with ServerProcess(Path("starter"), scratch / "data", (), options.threads) as server:
            server.answer("/v1/chat/completions", _QUESTION)
            found.append(time.perf_counter() - server.began)
            busy.append(server.cpu_seconds)
    told, cpu = spread(found[1:]), spread(busy[1:])
    print(
        f"start to first answer: first {found[0]:.2f} s, then {told['median']:.2f} s ({told['min']:.2f}..{told['max']:.2f}), ",
        end="",
    )
    print(f"{cpu['median']:.2f} s of one core")
    return {"first_seconds": found[0], "seconds": told, "cpu_seconds": cpu, "samples": found}


def fresh(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Clone, set-up and start to the first answer."""
    clean = of_a_fresh_machine(scratch)
    begin, ready, said = time.perf_counter(), None, []
    clone(scratch / "clone", clean)
    process = subprocess.Popen(
        ["./tessera", "serve", "starter", "--port", "0"], cwd=scratch / "clone", env=clean, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        print(line, end="", flush=True)
        said.append(line.rstrip("\n"))
        if line.startswith("Setting up: done"):
            ready = time.perf_counter() - begin
        if found := re.search(r"http://([\w.]+):(\d+)/v1", line):
            with Client(found[1], int(found[2])) as client:
                status = client.ask("POST", "/v1/chat/completions", _QUESTION).status
            seconds = time.perf_counter() - begin
            break
    else:
        sys.exit(f"the server ended with code {process.wait()}")
    process.send_signal(signal.SIGINT)
    process.wait(60)
    print(f"clone to first answer (status {status}): {seconds:.0f} s, set-up until {ready or 0:.0f} s")
    return {"seconds": seconds, "set_up_seconds": ready, "status": status, "output": said}


if __name__ == "__main__":
    main()
