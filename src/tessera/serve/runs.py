"""`/tessera/runs`, `/tessera/ledger`: the training runs beside the models that are served, while they go and afterwards.

With keys they are shown to operators only: a run belongs to whoever runs the server. A run's curves are read from its
`metrics.jsonl` as it grows: each request reads only the lines that are new.
"""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from tessera.errors import UserError
from tessera.run import Follower, RunFolder
from tessera.scaling import ledger
from tessera.serve.context import Id, Operating, in_thread
from tessera.serve.errors import ApiError, not_found

router = APIRouter(tags=["runs"])

_MOST_POINTS = 300
"""Of a curve: more than that no screen shows."""
_MOST_FOLLOWED = 16


@router.get("/tessera/runs")
async def list_runs(here: Operating) -> dict[str, Any]:
    """The runs, the one that wrote last first."""
    return {"object": "list", "data": await in_thread(_list, here.server.runs)}


@router.get("/tessera/runs/{name}")
async def retrieve(name: Id, here: Operating) -> dict[str, Any]:
    """A run with its curves and, if it was foretold, its forecast and verdict."""
    folder = here.server.runs / name if here.server.runs and name not in (".", "..") else None
    if folder is None or not _is_run(folder):
        raise not_found("run", name)
    try:
        return await in_thread(_whole, folder)
    except UserError as error:
        raise ApiError(500, str(error), code="damaged_run") from None


@router.get("/tessera/ledger")
async def read_ledger(here: Operating) -> dict[str, Any]:
    """Every forecast that was sealed beside these runs, newest first, and what came of it."""
    if here.server.runs is None:
        return {"object": "list", "data": [], "hits": {}, "gaps": []}
    book = await in_thread(ledger.read, here.server.runs / ledger.FILE)
    entries = [_entry(entry) for entry in book.entries[::-1]]
    hits = {level: {"inside": inside, "of": of} for level, (inside, of) in book.hits().items()}
    return {"object": "list", "data": entries, "hits": hits, "gaps": list(book.gaps)}


@dataclass
class _Curves:
    """What was read of one run's `metrics.jsonl` so far."""

    follower: Follower
    steps: list[tuple[float, float]] = field(default_factory=list)
    evaluations: list[tuple[float, float, float]] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> None:
        """Reads on; from the start where the file is another than it was."""
        anew, events = self.follower.read()
        if anew:
            self.steps, self.evaluations, self.last = [], [], {}
        for event in events:
            self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        tokens, loss = _number(event.get("tokens")), _number(event.get("loss"))
        if event.get("event") == "step":
            while self.steps and self.steps[-1][0] >= tokens:  # done again after a resume
                self.steps.pop()
            self.steps.append((tokens, loss))
            self.last = event
        elif event.get("event") == "evaluation":
            while self.evaluations and self.evaluations[-1][0] >= tokens:
                self.evaluations.pop()
            self.evaluations.append((tokens, loss, _number(event.get("bits_per_byte"))))


_followed: OrderedDict[Path, _Curves] = OrderedDict()
_following = threading.Lock()


def _curves(folder: Path) -> _Curves:
    with _following:
        curves = _followed.setdefault(folder, _Curves(Follower(folder)))
        _followed.move_to_end(folder)
        while len(_followed) > _MOST_FOLLOWED:
            _followed.popitem(last=False)
    return curves


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and (folder / "recipe.yaml").is_file()


def _list(runs: Path | None) -> list[dict[str, Any]]:
    if runs is None or not runs.is_dir():
        return []
    found = []
    for folder in runs.iterdir():
        if _is_run(folder):
            metrics = folder / "metrics.jsonl"
            written = (metrics if metrics.is_file() else folder).stat().st_mtime
            has = {"has_model": (folder / "model").is_dir(), "has_forecast": (folder / "forecast.json").is_file()}
            found.append({"id": folder.name, "object": "run", "written_at": int(written)} | has)
    return sorted(found, key=lambda run: run["written_at"], reverse=True)


def _whole(folder: Path) -> dict[str, Any]:
    curves = _curves(folder)
    with curves.lock:
        curves.read()
        steps, evaluations, last = _thinned(curves.steps), list(curves.evaluations), dict(curves.last)
    try:
        recipe = RunFolder.open(folder).recipe
        summary, planned = recipe.summary, recipe.train.tokens
    except UserError:
        summary, planned = "", None
    forecast, verdict = _json(folder / "forecast.json"), _json(folder / "verdict.json")
    return {
        "id": folder.name,
        "object": "run",
        "summary": summary,
        "tokens": _finite(_number(last.get("tokens"))),
        "planned_tokens": planned,
        "seconds": _finite(_number(last.get("seconds"))),
        "tokens_per_second": _finite(_number(last.get("tokens_per_second"))),
        "parameters": _json(folder / "run.json").get("parameters"),
        "losses": [[x, _finite(y)] for x, y in steps],
        "evaluations": [{"tokens": x, "loss": _finite(y), "bits_per_byte": _finite(z)} for x, y, z in evaluations],
        "band": _band(forecast, planned),
        "forecast": {key: forecast[key] for key in ("loss", "intervals", "made", "refused", "reasons") if key in forecast},
        "verdict": {key: verdict[key] for key in ("loss", "miss", "inside", "z", "void") if key in verdict},
    }


def _band(forecast: dict[str, Any], planned: float | None) -> list[dict[str, float]]:
    """The 90 % band of the held-out loss along the run."""
    if "intervals" not in forecast or not planned:
        return []
    rows = [*forecast.get("band", []), {"part": 1.0, "intervals": forecast["intervals"]}]
    return [dict(zip(("tokens", "low", "high"), (row["part"] * planned, *row["intervals"]["0.9"]), strict=True)) for row in rows]


def _entry(entry: ledger.Entry) -> dict[str, Any]:
    verdict = entry.verdict or {}
    return {
        "run": Path(entry.run).name,
        "seal": entry.seal,
        "state": entry.state,
        "when": entry.sealed.get("when"),
        "foretold": entry.sealed.get("loss"),
        "intervals": entry.sealed.get("intervals"),
        "loss": verdict.get("loss"),
        "miss": verdict.get("miss"),
        "inside": verdict.get("inside"),
        "void": verdict.get("void") or None,
    }


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Few enough points, each the mean of its neighbours."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    thinned = []
    for i in range(_MOST_POINTS):
        group = points[i * len(points) // _MOST_POINTS : (i + 1) * len(points) // _MOST_POINTS]
        values = [y for _, y in group if math.isfinite(y)]
        thinned.append((group[-1][0], math.fsum(values) / len(values) if values else math.nan))
    return thinned


def _json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where it is absent, half written or something else."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
