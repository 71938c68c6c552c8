"""`python -m tessera.serve.tuner FOLDER`: the process of one tuning job, which gives way to whoever answers requests.

`FOLDER/wish.json` says what is wanted; everything that comes of it stands in `FOLDER/run`, from where it goes on if it was
stopped. It ends when its standard input does, so that it never outlives the server that started it. What a person can set
right ends it with the exit code 2 and one sentence on standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from tessera import device
from tessera.errors import Interrupted, UserError

NICENESS = 10


def main(folder: Path) -> int:
    """Prepares the run if that was not done, and trains it to its end; the exit code."""
    os.nice(NICENESS)
    device.prepare_process()
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    # Only now, since torch must find the process prepared.
    from tessera.posttrain import preference, reinforce, supervised
    from tessera.run import RunFolder, disk_may_be_full

    page = json.loads((folder / "wish.json").read_text(encoding="utf-8"))
    stage: Any = {"supervised": supervised, "dpo": preference, "reinforcement": reinforce}[page["kind"]]

    run = folder / "run"
    try:
        with disk_may_be_full(run):
            if run.exists():
                # A server that was killed may have left a process that is writing its last checkpoint.
                left = RunFolder(run)
                left.lock(wait=True)
                left.unlock()
            if not RunFolder(run).info:
                stage.prepare(stage.Wish.of(page["wish"]), run, _say)
            stage.tune(run, True, lambda folder: (), _say)
    except UserError as error:
        _say(str(error))
        return error.exit_code
    except Interrupted as stop:
        return stop.exit_code
    return 0


def _end_with_the_server() -> None:
    # Not by `sys.stdin`, whose lock this thread would hold when the interpreter ends.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
