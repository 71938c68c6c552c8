"""One rung of a ladder, trained in a process of its own: `python -m tessera.scaling.rung FOLDER PARENT`.

The folder is a run's folder like any other, prepared by `scaling.ladder`, so that a rung that was stopped goes on from its last
checkpoint. What the law needs of it is written last, as `rung.json`; checkpoints and tokenizer are then of no further use.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

RESULT = "rung.json"


def train_rung(path: Path, parent: int) -> None:
    """Trains the run in `path` to its end and writes `rung.json`: sizes, FLOPs, losses, the curve of held-out losses; `U`
    are the training tokens that there are, of which the rung reads `D`.

    Args:
        path: of its folder.
        parent: number of the process that waits for it.

    Where another command trains the same rung, this waits for it.

    Raises:
        UserError: the folder is damaged.
        Interrupted: a signal asked to stop; a checkpoint was written.
        SystemExit: the parent is gone.
    """
    from tessera import device
    from tessera.data.loader import Loader
    from tessera.data.shards import open_shards
    from tessera.run import RunFolder, write_text
    from tessera.tokens.vocabulary import Vocabulary
    from tessera.train import checkpoint, loop
    from tessera.train.job import assemble
    from tessera.train.objectives import evaluate

    folder = RunFolder.open(path)
    folder.lock(wait=True)
    if (path / RESULT).is_file():
        return
    info, recipe = folder.info, folder.recipe
    machine = device.detect(info["machine"]["dtype"], info["machine"]["threads"])
    vocabulary = Vocabulary.load(path / "tokenizer")
    start = checkpoint.latest(folder.checkpoints, lambda text: print(f"warning: {text}", file=sys.stderr))
    checkpoint.set_aside(folder.checkpoints, start)
    folder.forget_after(start.step if start else 0)

    def watch(event: dict[str, Any]) -> None:
        # Nobody waits for a rung whose ladder was killed.
        if event["event"] == "step" and os.getppid() != parent:
            raise SystemExit(1)

    shards = open_shards(Path(info["shards"]))
    job = assemble(folder, machine, vocabulary, shards, observers=(folder.record, watch))
    result = loop.train(job, start)
    steps = [e for e in folder.events() if e["event"] == "step"]
    shape, context = job.decoder.config, recipe.train.mean_context
    tokens = steps[-1]["tokens"]
    assert isinstance(job.loader, Loader)
    way = evaluate(job.decoder, job.held_out, job.token_bytes, machine.torch_device, *job.units)
    found = {
        "N": shape.matmul_parameters,
        "N_total": shape.parameters,
        "N_blocks": shape.matmul_parameters - shape.vocab_size * shape.width,
        "D": tokens,
        "U": shards.train_tokens,
        "C": shape.flops_per_token(context) * tokens,
        "C_6ND": 6.0 * shape.matmul_parameters * tokens,
        "loss": result.loss,
        **result.in_bits,
        "evaluated_tokens": result.tokens,
        "way_loss": way.loss,
        "curve": [
            [e["step"] / loop.total_steps(recipe), e["loss"]]
            for e in folder.events()
            if e["event"] == "evaluation" and not e["final"]
        ],
        "steps": len(steps),
        "skipped": sum(e["skipped"] for e in steps),
        "padding": job.loader.padding,
        "seconds": steps[-1]["seconds"],
    }
    write_text(path / RESULT, json.dumps(found, indent=1))
    shutil.rmtree(folder.checkpoints, ignore_errors=True)


def main() -> None:
    """Entry point of the process."""
    from tessera import device
    from tessera.errors import Interrupted, UserError

    device.prepare_process()
    try:
        train_rung(Path(sys.argv[1]), int(sys.argv[2]))
    except UserError as error:
        sys.exit(f"tessera: {error}")
    except Interrupted as stop:
        sys.exit(stop.exit_code)


if __name__ == "__main__":
    main()
