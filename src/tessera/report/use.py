"""What a run's model can be used for: the commands at the end of its report, only those that do something with such a model."""

from __future__ import annotations

import math
import shlex
from html import escape

from tessera.report.parts import section, table
from tessera.report.record import RunRecord, items_of, mapping_of, number_of

_MEDIA = (
    # Count of it in `run.json` and part of the recipe, what it is called, the tasks that make it and that perceive it, its option
    # and its file.
    ("pictures", "image", "a picture", "draw", "see", "--image", "picture.png"),
    ("films", "video", "a film", "film", "tell", "--video", "film.gif"),
    ("sounds", "audio", "sound", "speak", "listen", "--audio", "sound.wav"),
)


def finished(run: RunRecord) -> bool:
    """Whether all was trained that was planned."""
    settings, last = mapping_of(run.recipe.get("train")), run.steps[-1] if run.steps else {}
    planned = number_of(settings, "tokens")
    # Where rows are filled up with padding, the last step comes before the last token.
    batch_tokens = number_of(settings, "batch_rows") * number_of(settings, "context")
    return number_of(last, "tokens") >= planned * 0.99 or number_of(last, "step") * batch_tokens >= planned


def use_it(run: RunRecord) -> str:
    """The section with the commands."""
    folder = shlex.quote(str(run.folder))
    judges = _judging(run, folder)
    rows = judges or [*_making(run, folder), (f"tessera eval {folder}", "measure it")]
    if not finished(run):
        rows.append((f"tessera {_command(run)} --out {folder} --resume", "go on where the run stopped"))
    commands = table(("", ""), [(f"<code>{escape(command)}</code>", what) for command, what in rows])
    weights = f"<code>{escape(str(run.folder / 'model'))}</code>"
    text = f'<p class="dim">The weights in {weights} open in transformers with <code>from_pretrained</code>.</p>'
    return section("Use it", commands + ("" if judges else text))


def _judging(run: RunRecord, folder: str) -> list[tuple[str, str]]:
    """Of a model that judges texts and writes none."""
    if "moderation" in run.about:
        return [
            (f"tessera eval {folder} --suite moderation --data labelled.jsonl", "measure it on labelled texts"),
            (f"tessera serve MODEL {folder}", "answer with one model, judge with this one"),
        ]
    if mapping_of(run.about.get("preference")).get("kind") == "reward":
        judged = f"tessera posttrain grpo --model MODEL --data prompts.jsonl --reward-model {folder}"
        return [(judged, "let another model learn from its rewards")]
    return []


def _making(run: RunRecord, folder: str) -> list[tuple[str, str]]:
    """Of a model that makes something, in the order text, dialogue, media."""
    rows = []
    if _writes(run):
        prompts = items_of(mapping_of(run.recipe.get("train")).get("sample_prompts"))
        prompt = next((str(p).splitlines()[0] for p in prompts if str(p).strip()), "Once upon a time")
        rows.append((f"tessera generate {folder} {shlex.quote(prompt)}", "continue a text"))
    if run.about.get("dialogue"):
        rows.append((f"tessera chat {folder}", "talk to it in the terminal"))
    learned = mapping_of(run.recipe.get("data"))
    for name, kind, called, make, perceive, option, file in _MEDIA:
        tasks = mapping_of(mapping_of(learned.get(name)).get("tasks"))
        taught = _count(run, name) > 0
        if (taught and number_of(tasks, make) > 0) or run.about.get("medium") == kind:
            rows.append((f'tessera generate {folder} "a caption" --out {file}', f"make {called}"))
        if taught and number_of(tasks, perceive) > 0:
            rows.append((f'tessera generate {folder} "" {option} {file}', f"let it say what is in {called}"))
    return rows


def _writes(run: RunRecord) -> bool:
    """Whether it learned from texts too, and not only from captioned pictures, films or recordings."""
    if "medium" in run.about:
        return False
    media = sum(_count(run, name) for name, *_ in _MEDIA)
    return not media or _count(run, "documents") > media


def _count(run: RunRecord, key: str) -> float:
    counts = (number_of(mapping_of(source), key) for source in items_of(run.about.get("data")))
    return math.fsum(count for count in counts if math.isfinite(count))


def _command(run: RunRecord) -> str:
    """The command that the run goes on by, without `tessera`."""
    if run.stages.get("recipe"):
        return f"posttrain {run.stages['recipe']}"
    preferred = str(mapping_of(run.about.get("preference")).get("kind") or "dpo")
    reinforced = str(mapping_of(run.about.get("reinforce")).get("kind") or "grpo")
    tuned = {"asked": "sft", "reinforce": reinforced, "preference": preferred, "distil": "distil", "moderation": "moderation"}
    # The page in the folder, since the run's own may have been anywhere, and need not be among those that are shipped.
    trained = f"train {shlex.quote(str(run.folder / 'recipe.yaml'))}"
    return next((f"posttrain {name}" for key, name in tuned.items() if key in run.about), trained)
