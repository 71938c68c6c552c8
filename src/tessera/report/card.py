"""The card of a model that a chain of stages made: one Markdown page with the front matter that the Hugging Face hub reads.

The chain's folder goes in, `CARD.md` in it comes out. Everything on the page is from the records that the stages left: nothing is
typed by hand, so that a second run of the chain writes its own card. The folder holds

    chain.json          recipe, budget, commit, command, versions, machine, stages: name, kind, folder, seconds
    BASE/, SFT/, ...    the runs of the stages
    evaluations.json    what `tessera eval --json` printed, each row with `of`: the chain's recipe, or a specialist's
    samples.json        step, prompt, answer, right, and a file where something was made
    model/              the Hugging Face folder
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tessera.errors import UserError
from tessera.model import starter
from tessera.report.charts import duration, short
from tessera.report.forecast import forecast_words
from tessera.report.licences import UNKNOWN, licence_of, named, told
from tessera.report.measured import SAMPLES, SCORES, Measured, read_measured
from tessera.report.record import Event, RunRecord, items_of, mapping_of, number_of, read_json, read_run
from tessera.run import CHAIN, write_bytes

CARD = "CARD.md"
TOUR = "tour"
"""The suite of what the page opens with."""
_SAFETY = re.compile(r"hierarchy|refus|inject|moderation|jailbreak")
"""Of the names of suites that stand under safety."""
_ASKED_DATA = ("data", "examples", "pairs", "ptx")
"""What of a stage's wishes names documents."""
_MOST_SAMPLES = 16
"""Of each kind, right and wrong."""
_MISSING = "&ndash;"


@dataclass(frozen=True)
class Chain:
    """What the folder says.

    Args:
        folder: of the chain.
        page: `chain.json`.
        runs: name of a stage -> what its folder says, where that holds a run.
        config: `model/config.json`.
        measured: `evaluations.json`.
        samples: `samples.json`.
    """

    folder: Path
    page: dict[str, Any]
    runs: dict[str, RunRecord]
    config: dict[str, Any]
    measured: list[Measured]
    samples: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """Of the recipe, which may be a page; its own measurements go by it too."""
        return Path(str(self.page["recipe"])).stem

    @property
    def stages(self) -> list[dict[str, Any]]:
        """Of `chain.json`, in the order in which they ran."""
        return [mapping_of(stage) for stage in items_of(self.page.get("stages"))]

    def asked(self, number: int) -> dict[str, Any]:
        """What the stage of that number was asked for: what its record says, else the recipe's page."""
        then = items_of(self.base.recipe.get("then")) if self.base else []
        planned = mapping_of(then[number - 1]) if 0 < number <= len(then) else {}
        return planned | mapping_of(self.stages[number].get("asked"))

    @property
    def base(self) -> RunRecord | None:
        """The pre-training: the first stage that has a run."""
        return next(iter(self.runs.values()), None)

    @property
    def parameters(self) -> float:
        """Of the model."""
        return number_of(self.base.about, "parameters") if self.base else math.nan

    @property
    def own(self) -> list[Measured]:
        """What the model itself got."""
        return [row for row in self.measured if row.of in (self.name, "")]


def read_chain(folder: Path) -> Chain:
    """Everything that a chain's folder holds.

    Raises:
        UserError: it has no readable `chain.json` with a recipe, no model, or damaged evaluations.
    """
    page = mapping_of(read_json(folder / CHAIN))
    if not page.get("recipe"):
        raise UserError(f"{folder} is not the folder of a chain: it has no {CHAIN} that names a recipe.")
    config = mapping_of(read_json(folder / "model" / "config.json"))
    if not config:
        raise UserError(f"{folder} has no model/ yet; go on with its chain first.")
    runs = {}
    for stage in map(mapping_of, items_of(page.get("stages"))):
        place = folder / str(stage.get("folder") or stage.get("name") or "")
        if (place / "recipe.yaml").is_file():
            runs[str(stage.get("name"))] = read_run(place)
    samples = [mapping_of(sample) for sample in items_of(read_json(folder / SAMPLES))]
    return Chain(folder, page, runs, config, read_measured(folder / SCORES), samples)


def write_card(folder: Path) -> Path:
    """Writes `CARD.md` into a chain's folder and returns its path.

    Raises:
        UserError: as `read_chain`.
    """
    chain = read_chain(folder)
    parts = [_front_matter(chain), f"# {chain.name}", *(section(chain) for section in _SECTIONS)]
    path = folder / CARD
    # Generated text may hold lone surrogates, which have no UTF-8.
    write_bytes(path, ("\n\n".join(part.strip() for part in parts if part) + "\n").encode(errors="replace"))
    return path


def sample_files(folder: Path) -> list[str]:
    """What the samples of a chain made, and the card shows: paths within its folder, of files that are there."""
    named_files = [str(mapping_of(sample).get("file") or "") for sample in items_of(read_json(folder / SAMPLES))]
    inside = (name for name in named_files if name and (folder / name).resolve().is_relative_to(folder.resolve()))
    return sorted({name for name in inside if (folder / name).is_file()})


def _front_matter(chain: Chain) -> str:
    """What the hub shows beside the card and compares models by."""
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": row.on or row.suite, "type": row.suite},
            "metrics": [{"type": row.measure, "name": row.measure, "value": round(row.value, 6)}],
        }
        for row in chain.own
        if math.isfinite(row.value)
    ]
    page: dict[str, Any] = {
        "license": "apache-2.0",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tessera"],
    }
    if results:
        page["model-index"] = [{"name": chain.name, "results": results}]
    return f"---\n{yaml.safe_dump(page, sort_keys=False, allow_unicode=True)}---"


def _what(chain: Chain) -> str:
    summary = str(chain.base.recipe.get("summary") or "") if chain.base else ""
    made = ", then ".join(str(stage.get("name")) for stage in chain.stages)
    seconds = math.fsum(number_of(stage, "seconds") for stage in chain.stages)
    took = f" in {duration(seconds)}" if math.isfinite(seconds) else ""
    said = (
        f"A model of {short(chain.parameters)} parameters, made{took} by `tessera reproduce {chain.name}` from nothing: {made}. "
        "Nobody wrote this page: it is what the run recorded of itself."
    )
    model = chain.name if chain.name == starter.NAME else f"runs/{chain.name}"
    use = f"tessera serve {model}\ntessera chat {model}\ntessera train code --init {model} --budget 20m"
    return f"{summary}\n\n{said}\n\n{_code(use, 'sh')}"


def _shape(chain: Chain) -> str:
    fields = (
        ("architecture", ", ".join(map(str, items_of(chain.config.get("architectures"))))),
        ("parameters", _whole(chain.parameters)),
        ("layers", chain.config.get("num_hidden_layers")),
        ("width", chain.config.get("hidden_size")),
        ("heads", chain.config.get("num_attention_heads")),
        ("heads of keys and values", chain.config.get("num_key_value_heads")),
        ("feed-forward width", chain.config.get("intermediate_size")),
        ("context, tokens", chain.config.get("max_position_embeddings")),
        ("ids", chain.config.get("vocab_size")),
        ("stored as", chain.config.get("dtype")),
    )
    return _section("Shape", _table(("", ""), [(name, str(value)) for name, value in fields if value not in (None, "")]))


def _making(chain: Chain) -> str:
    rows = []
    for number, stage in enumerate(chain.stages):
        run = chain.runs.get(str(stage.get("name")))
        steps, found = (run.steps, [e for e in run.evaluations if math.isfinite(number_of(e, "loss"))]) if run else ([], [])
        tokens = number_of(steps[-1], "tokens") if steps else math.nan
        loss = number_of(found[-1], "loss") if found else math.nan
        seconds = number_of(stage, "seconds")
        rows.append((
            str(stage.get("name")),
            str(stage.get("kind") or ""),
            duration(seconds) if math.isfinite(seconds) else _MISSING,
            short(tokens) if tokens > 0 else _MISSING,
            f"{loss:.4f}" if math.isfinite(loss) else _MISSING,
            ", ".join(f"{key} {_value(value)}" for key, value in chain.asked(number).items() if _worth_telling(key, value)),
        ))  # fmt: skip
    heads = ("stage", "kind", "time", "tokens", "held-out loss, nats", "asked")
    words = [f"{_key(name)}: {_value(value)}" for name, value in mapping_of(chain.page.get("machine")).items()]
    where = f"\n\nOn one machine: {'; '.join(words)}." if words else ""
    return _section("How it was made", _table(heads, rows, right=(2, 3, 4)) + where) if rows else ""


def _worth_telling(key: str, value: Any) -> bool:
    """Whether a wish says something here: not where it is nothing, a place of this machine, or told in another column."""
    return key not in (*_ASKED_DATA, "model", "stage") and value not in (None, "", 0, [], {}) and not str(value).startswith("/")


def _data(chain: Chain) -> str:
    rows = []
    for stage, address, share, source in _sources(chain):
        size = number_of(source, "bytes")
        rows.append((
            stage,
            f"`{named(address)}`",
            f"{share:.0%}" if isinstance(share, float) else _MISSING,
            _whole(number_of(source, "documents") or math.nan),
            f"{size / 1e6:,.1f} MB" if size > 0 else _MISSING,
            licence_of(address),
        ))  # fmt: skip
    heads = ("stage", "source", "share", "documents", "size", "licence")
    return _section("Data", _table(heads, rows, right=(2, 3, 4))) if rows else ""


def _sources(chain: Chain) -> Iterable[tuple[str, str, Any, Event]]:
    """Stage, address, share of the mixture and what is known of the documents, of each source of each stage."""
    for number, stage in enumerate(chain.stages):
        name, asked = str(stage.get("name")), chain.asked(number)
        run = chain.runs.get(name)
        about = [mapping_of(source) for source in items_of(run.about.get("data") if run else None)]
        if number and (addresses := [str(asked[key]) for key in _ASKED_DATA if asked.get(key)]):
            yield from (
                (name, address, None, about[0] if place == 0 and about else {}) for place, address in enumerate(addresses)
            )
            continue
        page = map(mapping_of, items_of(mapping_of(run.recipe.get("data") if run else None).get("sources")))
        weights = {source.get("uri"): source.get("weight") for source in page}
        yield from ((name, str(source.get("uri") or ""), weights.get(source.get("uri")), source) for source in about)


def _forecast(chain: Chain) -> str:
    said = forecast_words(chain.base.forecast, chain.base.verdict) if chain.base else ""
    return _section("Forecast and verdict", said or "No forecast was made before this run.")


def _tour(chain: Chain) -> str:
    cells = [
        (row.measure, f"**{_with_error(row)}**", _whole(row.n), _figure(row.chance)) for row in chain.own if row.suite == TOUR
    ]
    text = "What the page opens with, asked with other seeds; a checker judges each answer, and chance is a blind guess."
    return _section("The tour", f"{text}\n\n{_table(('step', 'right', 'n', 'chance'), cells, right=(1, 2, 3))}") if cells else ""


def _measurements(chain: Chain) -> str:
    rows = [row for row in chain.own if row.suite != TOUR and not _SAFETY.search(row.suite)]
    text = (
        "± is one standard error over n. A specialist is the recipe named in brackets, trained from nothing with an equal budget."
    )
    return _section("Measured", f"{text}\n\n{_rows(chain, rows)}") if rows else ""


def _safety(chain: Chain) -> str:
    rows = [row for row in chain.own if _SAFETY.search(row.suite)]
    text = "What it refuses rightly, and what it refuses in vain: either number alone is easy to make high."
    return _section("Safety", f"{text}\n\n{_rows(chain, rows)}") if rows else ""


def _rows(chain: Chain, rows: Iterable[Measured]) -> str:
    cells = []
    for row in rows:
        others = [other for other in chain.measured if other.what == row.what and other.of not in (chain.name, "")]
        cells.append((
            row.suite,
            row.measure + (f", {told(row.on)}" if row.on else "") + (" (lower is better)" if row.less_is_better else ""),
            f"**{_with_error(row)}**",
            _whole(row.n),
            _figure(row.chance),
            f"{_figure(row.baseline)} ({row.baseline_is})" if math.isfinite(row.baseline) else _MISSING,
            ", ".join(f"{_with_error(other)} ({other.of})" for other in others) or _MISSING,
        ))  # fmt: skip
    return _table(("suite", "measure", chain.name, "n", "chance", "baseline", "specialists"), cells, right=(2, 3, 4))


def _samples(chain: Chain) -> str:
    parts = []
    for right, title in ((True, "Right"), (False, "Wrong")):
        chosen = [sample for sample in chain.samples if bool(sample.get("right")) is right][:_MOST_SAMPLES]
        shown = "\n\n".join(_sample(sample) for sample in chosen)
        parts += [f"### {title}\n\n{shown}"] if shown else []
    judged = "The first answer of each kind that a checker found right, and the first that it found wrong, as they came."
    return _section("Samples", "\n\n".join([judged, *parts])) if parts else ""


def _sample(sample: dict[str, Any]) -> str:
    said = f"*{_cell(str(sample.get('step') or ''))}*\n\n{_code(str(sample.get('prompt') or ''))}"
    if answer := str(sample.get("answer") or ""):
        said += f"\n\n{_code(answer)}"
    if file := str(sample.get("file") or ""):
        picture = Path(file).suffix.lower() in (".png", ".gif", ".jpg", ".webp")
        said += f"\n\n{'!' if picture else ''}[{Path(file).name}]({file})"
    return said


def _limits(chain: Chain) -> str:
    """What it cannot do, as far as the measurements say so."""
    guesses = [f"{row.suite}, {row.measure}" for row in chain.own if row.suite != TOUR and row.beats_guessing is False]
    behind = []
    for row in chain.own:
        for other in chain.measured:
            if other.what == row.what and other.of not in (chain.name, "") and _clearly_behind(row, other):
                behind.append(f"{row.suite}, {row.measure}: {_with_error(row)}, the specialist `{other.of}` {_with_error(other)}")
    unknown = sorted({named(address) for _, address, _, _ in _sources(chain) if licence_of(address) == UNKNOWN})
    lines = [
        f"It reads {_whole(number_of(chain.config, 'max_position_embeddings'))} tokens at once and forgets what came before."
    ]
    lines += [
        f"Of the tour, {row.measure}: right {row.value:.0%} of the time."
        for row in chain.own
        if row.suite == TOUR and row.value < 0.9
    ]
    if guesses:
        lines.append(f"No better than chance or the baseline, within two standard errors: {'; '.join(guesses)}.")
    lines += [f"Clearly behind a specialist: {said}." for said in behind]
    lines += [f"The licence of {source} is not known to this card: ask before you pass the weights on." for source in unknown]
    return _section("Limits", "\n".join(f"- {line}" for line in lines))


def _clearly_behind(row: Measured, other: Measured) -> bool:
    """By more than two standard errors of the difference."""
    gap = row.value - other.value if row.less_is_better else other.value - row.value
    error = math.hypot(*(e if math.isfinite(e) else 0.0 for e in (row.error, other.error)))
    return gap > 2 * error and gap > 0


def _again(chain: Chain) -> str:
    facts = [(key, chain.page.get(key)) for key in ("commit", "budget", "seed")]
    versions = ", ".join(f"{name} {version}" for name, version in mapping_of(chain.page.get("versions")).items())
    rows = [(key, _value(value)) for key, value in [*facts, ("versions", versions)] if value not in (None, "")]
    command = told(str(chain.page.get("command") or f"tessera reproduce {chain.name}"))
    return _section("Make it again", f"{_code(command, 'sh')}\n\n{_table(('', ''), rows)}")


_SECTIONS = (_what, _tour, _shape, _measurements, _safety, _limits, _samples, _forecast, _making, _data, _again)


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table; columns in `right` are set right."""
    rule = ["---:" if place in right else "---" for place in range(len(heads))]
    lines = [heads, rule, *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Text that stays within its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str, language: str = "") -> str:
    """Text as it is, between fences that are longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language or 'text'}\n{text.rstrip()}\n{fence}"


def _with_error(row: Measured) -> str:
    return _figure(row.value) + (f" ± {_figure(row.error)}" if math.isfinite(row.error) else "")


def _figure(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else _MISSING


def _whole(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else _MISSING


def _key(name: str) -> str:
    return name.replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
