"""Two tabs: the training runs with their curves, forecasts and the ledger; tuning with its jobs and the pairs to tune on."""

from __future__ import annotations

import asyncio
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nicegui import ui

from tessera.look import DARK, LIGHT
from tessera.serve.page.client import Client, Refused

if TYPE_CHECKING:
    from tessera.serve.page.view import Page

_NOTHING = "\N{EN DASH}"
_UNDER_WAY = ("validating_files", "queued", "running", "paused")
"""States of a fine-tuning job that can be cancelled."""


class RunsPanel:
    """Draws itself where it is made.

    Args:
        page: of which it is a part.
    """

    def __init__(self, page: Page) -> None:
        self._page = page
        self._name = ""
        self._last: dict[str, Any] = {}
        self._dark = False
        with ui.element("div").classes("sheet"):
            with ui.element("div").classes("card"):
                with ui.row().classes("head"):
                    self._select = ui.select([], on_change=self._choose).props('outlined dense options-dense aria-label="Run"')
                    self._select.classes("run-select")
                    self._state = ui.label().classes("state")
                    self._summary = ui.label().classes("dim")
                self._tiles = ui.element("div").classes("tiles")
                self._chart = ui.echart({}, renderer="svg").classes("chart")
                self._foretold = ui.label().classes("dim")
            with ui.element("div").classes("card"):
                ui.label("Ledger of forecasts").classes("card-title")
                self._hits = ui.label().classes("dim")
                self._ledger = ui.element("div").classes("scroll")

    async def show(self) -> None:
        """The tab is looked at."""
        try:
            runs = (await self._page.client.get("/tessera/runs"))["data"]
            ledger = await self._page.client.get("/tessera/ledger")
        except Refused as refused:
            self._summary.text = refused.message
            return
        names = [run["id"] for run in runs]
        name = self._name if self._name in names else next(iter(names), None)
        self._select.set_options(names, value=name)
        if name is None:
            self._summary.text = "No runs lie beside the models that are served."
        self._draw_ledger(ledger)
        await self.refresh()

    async def refresh(self) -> None:
        """Shows what the run wrote meanwhile."""
        if not self._name:
            return
        try:
            run = await self._page.client.get(f"/tessera/runs/{self._name}")
        except Refused as refused:
            self._summary.text = refused.message
            return
        dark = await ui.run_javascript("document.body.classList.contains('body--dark')", timeout=5)
        if run != self._last or dark != self._dark:
            self._last, self._dark = run, dark
            self._draw(run)

    async def _choose(self) -> None:
        if self._select.value and self._select.value != self._name:
            self._name = str(self._select.value)
            await self.refresh()

    def _draw(self, run: Mapping[str, Any]) -> None:
        measured = run["evaluations"][-1] if run["evaluations"] else {}
        losses = [y for _, y in run["losses"] if y is not None]
        part = (run["tokens"] or 0) / run["planned_tokens"] if run["planned_tokens"] else math.nan
        state = "finished" if part >= 0.99 else f"{part:.0%} of its tokens" if part > 0 else "not started"
        self._state.text = state
        self._state.classes(replace="state" + ("" if state == "finished" else " open"))
        self._summary.text = run["summary"]
        self._tiles.clear()
        with self._tiles:
            for value, label in (
                (_decimals(measured.get("bits_per_byte")), "bits per byte, held out"),
                (_decimals(measured.get("loss")), "held-out loss, nats per token"),
                (_decimals(losses[-1] if losses else None), "training loss"),
                (_short(run["tokens"]), "training tokens"),
                (_duration(run["seconds"]), "training time"),
                (_short(run["parameters"]), "parameters"),
            ):
                with ui.element("div"):
                    ui.label(value).classes("value")
                    ui.label(label).classes("dim")
        self._chart.options.clear()
        self._chart.options.update(loss_chart(run, DARK if self._dark else LIGHT))
        self._chart.update()
        self._foretold.text = _forecast_words(run["forecast"], run["verdict"])

    def _draw_ledger(self, ledger: Mapping[str, Any]) -> None:
        hits = ledger["hits"].get("0.9", {"inside": 0, "of": 0})
        said = f"{hits['inside']} of {hits['of']} judged runs ended inside their 90 % interval." if hits["of"] else ""
        gaps = (
            f" Lines {', '.join(map(str, ledger['gaps']))} of the ledger do not follow from those before."
            if ledger["gaps"]
            else ""
        )
        self._hits.text = (said or "No forecast was judged yet.") + gaps
        self._ledger.clear()
        if not ledger["data"]:
            return
        rows = []
        for entry in ledger["data"]:
            low, high = (entry["intervals"] or {}).get("0.9", (None, None))
            miss = f"{entry['miss']:+.1%}" if entry["miss"] is not None else _NOTHING
            rows.append(
                (
                    entry["run"],
                    (entry["when"] or "")[:10],
                    _decimals(entry["foretold"]),
                    f"{_decimals(low)} to {_decimals(high)}",
                    _decimals(entry["loss"]),
                    miss,
                    _standing(entry),
                )
            )
        with self._ledger:
            _table(("run", "sealed", "foretold", "90 % interval", "came", "miss", "verdict"), rows)


class TuningPanel:
    """Draws itself where it is made.

    Args:
        page: of which it is a part.
    """

    def __init__(self, page: Page) -> None:
        self._page = page
        self._job = ""
        self._rows: list[tuple[str, ...]] = []
        self._curves = Curves("")
        self._drawn: tuple[int, bool] = (0, False)
        self._made: set[str] = set()
        with ui.element("div").classes("sheet"):
            with ui.element("div").classes("card"):
                ui.label("Fine-tuning jobs").classes("card-title")
                self._said = ui.label().classes("dim")
                self._jobs = ui.element("div").classes("scroll")
                with ui.row().classes("head") as self._head:
                    self._select = ui.select([], on_change=self._choose).props('outlined dense options-dense aria-label="Job"')
                    self._select.classes("run-select")
                    self._cancel = ui.button("Cancel the job", icon="stop", on_click=self._stop, color=None)
                    self._cancel.props("outline no-caps")
                self._chart = ui.echart({}, renderer="svg").classes("chart")
            with ui.element("div").classes("card"):
                ui.label("Pairs to tune on").classes("card-title")
                ui.label(
                    "A thumb up and a thumb down under answers to the same question make a pair: prompt, chosen, rejected."
                ).classes("dim")
                self._pairs = ui.element("div").classes("pairs")
                with ui.row().classes("head"):
                    self._export = ui.button("Download preferences.jsonl", icon="download", on_click=self._download, color=None)
                    self._export.props("outline no-caps")
                    self._tune = ui.button("Tune on these pairs", icon="auto_fix_high", on_click=self._begin, color=None)
                    self._tune.props("outline no-caps")

    async def show(self) -> None:
        """The tab is looked at."""
        self._rows, self._drawn = [], (0, False)
        await self.refresh()
        try:
            pairs = (await self._page.client.get("/tessera/preferences", limit=20))["data"]
        except Refused as refused:
            self._page.say(refused.message)
            return
        self._export.set_visibility(bool(pairs))
        self._tune.set_visibility(bool(pairs))
        self._pairs.clear()
        with self._pairs:
            if not pairs:
                ui.label("None yet.").classes("dim")
            for pair in pairs:
                with ui.element("div").classes("pair"):
                    ui.label(_last_words(pair["prompt"])).classes("pair-prompt")
                    for kind, icon in (("chosen", "thumb_up"), ("rejected", "thumb_down")):
                        with ui.element("div").classes(f"pair-{kind}"):
                            ui.icon(icon, size="16px")
                            ui.label(_last_words(pair[kind]))

    async def refresh(self) -> None:
        """Shows how the jobs stand, and the curves of one of them."""
        try:
            jobs = (await self._page.client.get("/v1/fine_tuning/jobs", limit=20))["data"]
        except Refused as refused:
            self._said.text = refused.message
            jobs = []
        else:
            self._said.text = "" if jobs else "None yet. Jobs are started through the API: client.fine_tuning.jobs.create(...)."
        made = {job["fine_tuned_model"] for job in jobs} - {None}
        if made - self._made:
            self._made |= made
            await self._page.load_models()
        rows = [_job_row(job) for job in jobs]
        if rows != self._rows:
            self._rows = rows
            self._jobs.clear()
            if rows:
                with self._jobs:
                    _table(("job", "status", "from", "gave", "began", "tokens"), rows)
        ids = [job["id"] for job in jobs]
        self._job = self._job if self._job in ids else next(iter(ids), "")
        if self._select.options != ids or self._select.value != (self._job or None):
            self._select.set_options(ids, value=self._job or None)
        state = next((job["status"] for job in jobs if job["id"] == self._job), "")
        self._head.set_visibility(bool(jobs))
        self._cancel.set_visibility(state in _UNDER_WAY)
        await self._draw()

    async def _choose(self) -> None:
        if self._select.value and self._select.value != self._job:
            self._job = str(self._select.value)
            await self.refresh()

    async def _stop(self) -> None:
        try:
            await self._page.client.post(f"/v1/fine_tuning/jobs/{self._job}/cancel", {})
        except Refused as refused:
            self._page.say(refused.message)
        await self.refresh()

    async def _draw(self) -> None:
        if self._curves.job != self._job:
            self._curves = Curves(self._job)
        if self._job:
            try:
                await self._curves.read(self._page.client)
            except Refused as refused:
                self._said.text = refused.message
        self._chart.set_visibility(bool(self._curves.losses))
        dark = await ui.run_javascript("document.body.classList.contains('body--dark')", timeout=5)
        drawn = (len(self._curves.seen), dark)
        if self._curves.losses and drawn != self._drawn:
            self._drawn = drawn
            self._chart.options.clear()
            colours = DARK if dark else LIGHT
            self._chart.options.update(loss_chart(self._curves.as_run(), colours, "steps", self._curves.what, self._curves.unit))
            self._chart.update()

    async def _begin(self) -> None:
        """A preference job on all pairs, of the first model that is chosen."""
        names = self._page.chat.models
        if not names:
            self._page.say("Choose the model that is to be tuned, at the top.", "warning")
            return
        if not self._tune.enabled:
            return  # clicked twice
        self._tune.disable()
        try:
            lines = (await self._page.client.text("/tessera/preferences.jsonl")).encode()
            file = (await self._page.client.upload("preferences.jsonl", "fine-tune", lines))["id"]
            body = {"model": names[0], "training_file": file, "method": {"type": "dpo"}, "suffix": "thumbs"}
            self._job = (await self._page.client.post("/v1/fine_tuning/jobs", body))["id"]
            self._page.say(f"{names[0]} learns from the pairs; the new model will answer beside the others.", "positive")
            await self.refresh()
        except Refused as refused:
            self._page.say(refused.message)
        finally:
            self._tune.enable()

    async def _download(self) -> None:
        try:
            lines = await self._page.client.text("/tessera/preferences.jsonl")
        except Refused as refused:
            self._page.say(refused.message)
            return
        ui.download.content(lines, "preferences.jsonl", "application/jsonl")


class Curves:
    """The losses of a fine-tuning job as its events tell them, or the rewards of one that is paid by a grader; each time only the
    new ones are read.

    Args:
        job: its id.
    """

    what, unit = "loss", "nats per token"

    def __init__(self, job: str) -> None:
        self.job = job
        self.seen: set[str] = set()
        self.losses: list[list[float]] = []
        self.held_out: list[dict[str, float]] = []
        self.steps: int | None = None
        self._reading = asyncio.Lock()

    async def read(self, client: Client) -> None:
        """Reads on, from the latest event back to the first that is known.

        Raises:
            Refused: the server did not answer.
        """
        new: list[dict[str, Any]] = []
        query: dict[str, Any] = {"limit": 100}
        async with self._reading:
            while True:
                page = await client.get(f"/v1/fine_tuning/jobs/{self.job}/events", **query)
                unknown = [event for event in page["data"] if event["id"] not in self.seen]
                new += unknown
                if not page["has_more"] or len(unknown) < len(page["data"]):
                    break
                query["after"] = page["last_id"]
            for event in reversed(new):
                self.seen.add(event["id"])
                if event["type"] == "metrics":
                    self._take(event["data"])

    def as_run(self) -> dict[str, Any]:
        """In the form of a training run, whose chart it shares."""
        return {"losses": self.losses, "evaluations": self.held_out, "band": [], "planned_tokens": self.steps}

    def _take(self, data: Mapping[str, Any]) -> None:
        self.steps = data["total_steps"]
        if "train_reward_mean" in data or "valid_reward_mean" in data:
            self.what, self.unit = "reward_mean", "mean"
        elif "train_preference_accuracy" in data or "valid_preference_accuracy" in data:
            self.unit = "nats per pair"
        if data.get(f"train_{self.what}") is not None:
            self.losses.append([data["step"], data[f"train_{self.what}"]])
        for name in (f"valid_{self.what}", f"full_valid_{self.what}"):
            if data.get(name) is not None:
                self.held_out.append({"tokens": data["step"], "loss": data[name]})


def loss_chart(
    run: Mapping[str, Any],
    colours: Mapping[str, str],
    along: str = "training tokens",
    what: str = "loss",
    unit: str = "nats per token",
) -> dict[str, Any]:
    """The options of an ECharts chart: training loss, held-out loss, and the band in which it was foretold to go.

    Args:
        run: as `/tessera/runs/NAME` shows it.
        colours: of the page.
        along: what the horizontal axis counts.
        what, unit: of the vertical axis.
    """
    what = what.split("_")[0]
    dim, rule = {"color": colours["dim"]}, {"lineStyle": {"color": colours["rule"]}}
    thin = {
        "type": "line",
        "showSymbol": False,
        "lineStyle": {"width": 0},
        "stack": "band",
        "silent": True,
        "tooltip": {"show": False},
    }
    held = [[e["tokens"], e["loss"]] for e in run["evaluations"] if e["loss"] is not None]
    losses = [[x, y] for x, y in run["losses"] if y is not None]
    series: list[dict[str, Any]] = []
    if run["band"]:
        low = [[row["tokens"], row["low"]] for row in run["band"]]
        wide = [[row["tokens"], row["high"] - row["low"]] for row in run["band"]]
        ground = {"color": colours["faint"], "opacity": 0.35}
        series.append(thin | {"name": "low", "data": low, "stackStrategy": "all"})
        series.append(
            thin
            | {
                "name": "forecast of the held-out loss, 90 %",
                "data": wide,
                "areaStyle": ground,
                "itemStyle": {"color": colours["faint"]},
                "stackStrategy": "all",
            }
        )
    series.append(_line(f"training {what}", losses, colours["accent"], 1.2))
    series.append(
        _line(f"held-out {what}", held, colours["second"], 2) | {"showSymbol": True, "symbolSize": 6, "symbol": "circle"}
    )
    values = [y for _, y in losses[len(losses) // 20 :] + held] + [row[end] for row in run["band"] for end in ("low", "high")]
    bounds = {"min": _floor(min(values)), "max": _ceil(max(values))} if values else {}
    formatter = "v => v >= 1e9 ? v / 1e9 + 'G' : v >= 1e6 ? v / 1e6 + 'M' : v >= 1e3 ? v / 1e3 + 'k' : v"
    return {
        "animation": False,
        "textStyle": {"fontFamily": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif"},
        "grid": {"left": 52, "right": 18, "top": 40, "bottom": 46},
        "legend": {
            "data": [one["name"] for one in series if one["name"] != "low"],
            "left": 0,
            "top": 0,
            "icon": "roundRect",
            "itemWidth": 16,
            "itemHeight": 4,
            "textStyle": dim,
        },
        "tooltip": {
            "trigger": "axis",
            "backgroundColor": colours["card"],
            "borderColor": colours["rule"],
            "textStyle": {"color": colours["ink"]},
            ":valueFormatter": "v => v == null ? '' : Number(v).toFixed(3)",
        },
        "xAxis": {
            "type": "value",
            "name": along,
            "nameLocation": "middle",
            "nameGap": 28,
            "nameTextStyle": dim,
            "axisLabel": dim | {":formatter": formatter, "showMaxLabel": False},
            "axisLine": {"lineStyle": {"color": colours["dim"]}},
            "splitLine": {"show": False},
            "max": run["planned_tokens"] or "dataMax",
        },
        "yAxis": {
            "type": "value",
            "name": f"{what} ({unit})",
            "nameLocation": "middle",
            "nameGap": 36,
            "nameTextStyle": dim,
            "axisLabel": dim | {"showMaxLabel": False},
            "splitLine": rule,
        }
        | bounds,
        "series": series,
    }


def _line(name: str, points: list[list[float]], colour: str, width: float) -> dict[str, Any]:
    style = {"lineStyle": {"color": colour, "width": width}, "itemStyle": {"color": colour}}
    return {"name": name, "type": "line", "data": points, "showSymbol": False} | style


def _job_row(job: Mapping[str, Any]) -> tuple[str, ...]:
    failed = (job.get("error") or {}).get("message")
    made = job.get("fine_tuned_model") or failed or _NOTHING
    return (job["id"], job["status"], job["model"], made, _when(job["created_at"]), _short(job.get("trained_tokens")))


def _forecast_words(forecast: Mapping[str, Any], verdict: Mapping[str, Any]) -> str:
    if "loss" not in forecast:
        return ""
    low, high = forecast["intervals"]["0.9"]
    said = f"Foretold: {forecast['loss']:.3f}, 90 % between {low:.3f} and {high:.3f}."
    if forecast.get("refused"):
        return f"{said} Not sealed: {' '.join(forecast.get('reasons', []))}"
    if verdict.get("void"):
        return f"{said} Verdict: void, {verdict['void']}."
    if "loss" in verdict:
        inside = "inside" if verdict["inside"]["0.9"] else "outside"
        return f"{said} It came to {verdict['loss']:.3f} ({verdict['miss']:+.1%}), {inside} the interval."
    return f"{said} No verdict yet."


def _standing(entry: Mapping[str, Any]) -> str:
    if entry["state"] != "judged":
        return str(entry["state"])
    return "inside" if entry["inside"]["0.9"] else "outside"


def _table(names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    with ui.element("table"):
        with ui.element("tr"):
            for name in names:
                with ui.element("th"):
                    ui.label(name)
        for row in rows:
            with ui.element("tr"):
                for value in row:
                    with ui.element("td"):
                        ui.label(value)


def _last_words(said: str | list[dict[str, Any]]) -> str:
    """What stands at the end of a prompt or an answer, shortened."""
    content = said if isinstance(said, str) else said[-1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    return text if len(text) < 240 else text[:239] + "…"


def _when(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _decimals(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.3f}"


def _short(value: float | None) -> str:
    if value is None:
        return _NOTHING
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _NOTHING
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def _floor(value: float) -> float:
    return math.floor(value * 10) / 10


def _ceil(value: float) -> float:
    return math.ceil(value * 10) / 10
