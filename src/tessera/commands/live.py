"""What a person sees of a run: one live line on a terminal, a line per evaluation elsewhere; and the trackers they may have.

Each is an observer of the training loop: a callable that gets events.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

from tessera.commands.terminal import printable
from tessera.errors import UserError
from tessera.train.loop import Observer


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def in_bits(measured: Mapping[str, Any]) -> dict[str, float]:
    """What was measured, by its unit; pixels first, where there are some.

    Args:
        measured: an `evaluation` event, or what has its fields.
    """
    values = {unit: measured.get(f"bits_per_{unit}") for unit in ("pixel", "second", "byte")}
    return {unit: value for unit, value in values.items() if value is not None and math.isfinite(value)}


class BandWatch:
    """Compares held-out losses on the way with what was foretold.

    Args:
        steps: of the whole run.
        band: rows with `part` of the run, `loss` and `intervals` (level -> [low, high]), as in `forecast.json`; may be empty.
        sealed: the forecast counts; one that was refused is shown, and nobody is alarmed by it.
    """

    def __init__(self, steps: int, band: Sequence[Mapping[str, Any]], sealed: bool = True) -> None:
        self.steps = steps
        self.band = band
        self.sealed = sealed
        self.left = False

    def words(self, step: int, loss: float) -> str:
        """Where a held-out loss stands; empty where nothing was foretold for that step."""
        foretold = self._at(step)
        if foretold is None:
            return ""
        middle, low, high = foretold
        place = "" if low <= loss <= high else ", OUTSIDE its 99 % band"
        return f"forecast {middle:.3f} ({low:.3f} to {high:.3f})" + (place if self.sealed else ", not sealed")

    def note(self, event: Mapping[str, Any]) -> dict[str, Any] | None:
        """The event that says that an evaluation left the 99 % band, the first time one does."""
        if event["event"] != "evaluation" or event["final"] or self.left or not self.sealed:
            return None
        foretold = self._at(event["step"])
        if foretold is None or foretold[1] <= _held_out(event) <= foretold[2]:
            return None
        self.left = True
        text = (
            f"at step {event['step']:,} the run left the 99 % band of its forecast: something differs from the ladder; "
            "look at data and rates."
        )
        return {"event": "note", "step": event["step"], "text": text}

    def _at(self, step: int) -> tuple[float, float, float] | None:
        """Loss and 99 % band at a step, between the two rows beside it."""
        part = step / self.steps
        for before, after in pairwise(self.band):
            if before["part"] <= part <= after["part"]:
                share = (part - before["part"]) / (after["part"] - before["part"])
                ends = [(row["loss"], *row["intervals"]["0.99"]) for row in (before, after)]
                first, second, third = (a + share * (b - a) for a, b in zip(*ends, strict=True))
                return first, second, third
        return None


class HeartWatch:
    """Sees held-out loss rise, which means that a run learns its examples by heart.

    Args:
        steps: of the whole run.
    """

    WORSE = 1.02
    """Held-out loss over its least; on the same rows it differs by less from one evaluation to the next."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._way: list[tuple[float, int]] = []

    def note(self, event: Mapping[str, Any]) -> dict[str, Any] | None:
        """The event that says so at the end of a run; the end itself, which is measured on other rows, is not compared."""
        if event["event"] != "evaluation":
            return None
        if not event["final"]:
            if math.isfinite(loss := _held_out(event)):
                self._way.append((loss, int(event["step"])))
            return None
        least, step = min(self._way, default=(math.inf, 0))
        if not self._way or self._way[-1][0] < self.WORSE * least:
            return None
        text = (
            f"held-out loss was least at step {step:,} of {self.steps:,} ({least:.4f}) and has risen by "
            f"{self._way[-1][0] / least - 1:.0%} since: the run learned its examples by heart; give it more data, or about "
            f"{step / self.steps:.0%} of the budget."
        )
        return {"event": "note", "step": event["step"], "text": text}


def _held_out(event: Mapping[str, Any]) -> float:
    """Loss of an evaluation; NaN, which a recorded one has as null."""
    return math.nan if event["loss"] is None else float(event["loss"])


_MARKS = ("pass_at_1", "pass_at_k", "truncated", "accuracy", "margin", "psnr", "ssim", "snr", "distance", "usage", "perplexity")
"""Of an exam, what is shown."""


class LiveLine:
    """Step, speed, share of the matmul peak, loss, bits per byte, place within the forecast, time left.

    Args:
        steps: of the whole run.
        watch: knows the forecast.
        stream: where; a line that rewrites itself only where it is a terminal.
    """

    def __init__(self, steps: int, watch: BandWatch | None = None, stream: TextIO | None = None) -> None:
        self.steps = steps
        self.watch = watch or BandWatch(steps, ())
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.bits = float("nan")
        self.unit = "byte"
        self.loss = float("nan")
        self.pace: float | None = None
        self._seconds = 0.0
        self._shown = 0.0
        self._open = False

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "step":
            self._step(event)
        elif kind == "evaluation":
            bits = in_bits(event)
            self.unit, self.bits = next(iter(bits.items()), ("byte", math.nan))
            measured = ", ".join([f"held-out loss {event['loss']:.4f}", *(f"{v:.4f} bits per {u}" for u, v in bits.items())])
            place = "" if event["final"] else self.watch.words(event["step"], event["loss"])
            self._say(f"step {event['step']:,}/{self.steps:,}  {measured}" + (f"  {place}" if place else ""))
        elif kind == "exam":
            marks = "  ".join(f"{name.replace('_at_', '@')} {value:.3f}" for name, value in event.items() if name in _MARKS)
            self._say(f"step {event['step']:,}/{self.steps:,}  held out: {marks}")
        elif kind == "sample" and self.terminal:
            first = " ".join((event["prompt"] + event["text"]).split())
            self._say(f"  {printable(first[:100])}")
        elif kind == "note":
            self._say(event["text"])

    def _step(self, event: dict[str, Any]) -> None:
        taken = event["seconds"] - self._seconds if self._seconds else None
        self._seconds = event["seconds"]
        self.loss = event["loss"] if self.loss != self.loss else 0.95 * self.loss + 0.05 * event["loss"]
        if taken is not None:
            self.pace = taken if self.pace is None else 0.95 * self.pace + 0.05 * taken
        if event["skipped"]:
            self._say(f"step {event['step']:,} skipped: loss {event['loss']:.4g}, gradient norm {event['grad_norm']:.4g}")
        if not self.terminal or time.monotonic() - self._shown < 0.2:
            return
        self._shown = time.monotonic()
        left = duration((self.steps - event["step"]) * self.pace) if self.pace else "?"
        if "reward" in event:
            what = (
                f"reward {event['reward']:.3f}  pass@k {event['pass_at_k']:.3f}  dead groups {event['dead_groups']:.0%}  "
                f"entropy {event['entropy']:.3f}  cut off {event['truncated']:.0%}  gradient {event['grad_norm']:.3f}"
            )
        else:
            # What reconstructs has neither of the two beside its loss.
            share = f"{event['peak_share']:.0%} of peak  " if event["peak_share"] else ""
            bits = f"  {self.bits:.3f} bits/{self.unit}" if share or math.isfinite(self.bits) else ""
            what = f"{share}loss {self.loss:.3f}{bits}"
        line = f"step {event['step']:,}/{self.steps:,}  {event['tokens_per_second']:,.0f} tokens/s  {what}  {left} left"
        self.stream.write(f"\r\x1b[2K{line}")
        self.stream.flush()
        self._open = True

    def close(self) -> None:
        """Ends the line."""
        if self._open:
            self.stream.write("\n")
            self._open = False

    def _say(self, text: str) -> None:
        self.stream.write(f"\r\x1b[2K{text}\n" if self.terminal else f"{text}\n")
        self.stream.flush()
        self._open = False


def check_tracker(kind: str) -> None:
    """Raises UserError where the tracker's package is not installed."""
    try:
        missing = kind != "none" and importlib.util.find_spec(kind) is None
    except ValueError:  # a module that says of itself that it cannot be imported
        missing = True
    if missing:
        raise UserError(f"train.track={kind} needs the package {kind}; pip install {kind}, or leave train.track at none.")


def tracker(kind: str, folder: Path, name: str) -> Observer | None:
    """An observer that feeds TensorBoard, Weights & Biases or Trackio.

    Raises:
        UserError: its package is not installed.
    """
    check_tracker(kind)
    if kind == "none":
        return None
    if kind == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(folder / "tensorboard"))

        def to_board(event: dict[str, Any]) -> None:
            for key, value in _numbers(event).items():
                board.add_scalar(key, value, event["step"])

        return to_board
    package = importlib.import_module(kind)
    package.init(project="tessera", name=name)

    def to_service(event: dict[str, Any]) -> None:
        if numbers := _numbers(event):
            package.log(numbers, step=event["step"])

    return to_service


def _numbers(event: dict[str, Any]) -> dict[str, float]:
    if event["event"] not in {"step", "evaluation", "exam"}:
        return {}
    return {f"{event['event']}/{k}": v for k, v in event.items() if isinstance(v, int | float) and k != "step"}
