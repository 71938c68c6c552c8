"""The tour by the unmodified OpenAI SDK: asks a running server nine things and judges what comes back.

    tessera serve starter
    python docs/tour.py --base-url http://127.0.0.1:8000/v1 --model starter

Pictures, films and sounds go into a folder. What a model cannot do is said and left out; the exit code is 0 where all else is
right, 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import base64
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from openai import OpenAI

from tessera.data.builtin_sounds import PER_SECOND
from tessera.data.pictures import png, read_picture
from tessera.data.sounds import fitted_sound, read_sound
from tessera.evals.tour import STOP, judged
from tessera.sandbox.box import open_sandbox
from tessera.tour import STEPS, Asking, Step, askings


class Made(NamedTuple):
    """What came back: what is shown of it, what is judged, and the bytes of a file with its ending, if it is one."""

    shown: str
    judged: str | np.ndarray
    file: bytes = b""
    ending: str = ""


def complete(client: OpenAI, model: str, step: Step, asking: Asking, seed: int) -> Made:
    gap: dict[str, Any] = {"suffix": step.suffix} if step.suffix else {"stop": STOP[:4]}  # the API takes four
    answer = client.completions.create(
        model=model, prompt=asking.prompt, max_tokens=step.max_tokens, temperature=step.temperature, seed=seed, **gap
    )
    return Made(answer.choices[0].text, answer.choices[0].text)


def chat(client: OpenAI, model: str, step: Step, asking: Asking, seed: int) -> Made:
    content: Any = asking.prompt
    if asking.picture is not None:
        url = "data:image/png;base64," + base64.b64encode(png(asking.picture)).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": asking.prompt}]
    effort: Any = step.effort
    turns: Any = [{"role": "user", "content": content}]
    answer = client.chat.completions.create(
        model=model,
        messages=turns,
        temperature=step.temperature,
        seed=seed,
        reasoning_effort=effort,
        extra_body={"include_reasoning": True},
        max_completion_tokens=step.max_tokens + _thought(client, model, step.effort),
    )
    said = answer.choices[0].message
    thought = getattr(said, "reasoning", None)
    return Made((f"({thought.strip()}) " if thought else "") + (said.content or ""), said.content or "")


def draw(client: OpenAI, model: str, step: Step, asking: Asking, seed: int) -> Made:
    made: Any = client.images.generate(model=model, prompt=asking.prompt, size=step.size, extra_body={"seed": seed})
    file = base64.b64decode(made.data[0].b64_json)
    pixels = read_picture(file)
    return Made(f"a picture of {pixels.shape[1]}x{pixels.shape[0]}", pixels, file, "png")


def film(client: OpenAI, model: str, step: Step, asking: Asking, seed: int) -> Made:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # OpenAI's own service has ended
        job = client.videos.create_and_poll(model=model, prompt=asking.prompt, extra_body={"seed": seed}, poll_interval_ms=300)
        if job.status != "completed":
            raise RuntimeError(f"the film failed: {job.error}")
        # The frames as the model made them; a film file for people blurs colours.
        sheet = read_picture(client.videos.download_content(job.id, variant="spritesheet").read())
        file = client.videos.download_content(job.id).read()
    frames = np.stack(np.split(sheet, sheet.shape[1] // int(job.size.split("x")[0]), 1))
    ending = "gif" if file[:3] == b"GIF" else "mp4"
    return Made(f"a film of {len(frames)} frames of {frames.shape[2]}x{frames.shape[1]}", frames, file, ending)


def play(client: OpenAI, model: str, step: Step, asking: Asking, seed: int) -> Made:
    spoken = client.audio.speech.create(
        model=model, input=asking.prompt, voice="alloy", response_format="wav", extra_body={"seed": seed}
    )
    samples, rate = read_sound(spoken.read())
    return Made(f"a sound of {len(samples) / rate:.2f} s", fitted_sound(samples, rate, PER_SECOND), spoken.read(), "wav")


ASK: dict[str, Callable[[OpenAI, str, Step, Asking, int], Made]] = {
    "complete": complete, "fill": complete, "chat": chat, "look": chat, "judge": chat, "draw": draw, "film": film, "play": play,
}  # fmt: skip


def _thought(client: OpenAI, model: str, effort: str) -> int:
    budgets: dict[str, int] = getattr(client.models.retrieve(model), "thinking", {})
    return budgets.get(effort, 0) + 2


def tour(client: OpenAI, model: str, out: Path, seeds: int) -> dict[str, list[bool]]:
    """Asks every step with that many seeds and prints what comes; of each step that the model can do, what was right."""
    can: dict[str, Any] = dict(client.models.retrieve(model).model_extra or {})
    out.mkdir(parents=True, exist_ok=True)
    box = open_sandbox()
    found: dict[str, list[bool]] = {}
    try:
        for step in STEPS:
            if lacking := [need for need in step.needs if not can.get(need)]:
                print(f"{step.title}: left out, {model} has no {' and no '.join(lacking)}")
                continue
            for seed in range(seeds):
                for number, asking in enumerate(askings(step, seed)):
                    made = ASK[step.kind](client, model, step, asking, seed)
                    (right,) = judged(step, [asking], [made.judged], box)
                    found.setdefault(step.name, []).append(right)
                    where = ""
                    if made.file:
                        path = out / f"{step.name}-{seed}-{number}.{made.ending}"
                        path.write_bytes(made.file)
                        where = f", {path}"
                    if seed == 0:
                        print(f"{step.title}: {made.shown.strip()!r}{where}: {'right' if right else 'wrong'}", flush=True)
            if seeds > 1:
                print(f"  {sum(found[step.name])} of {len(found[step.name])} right", flush=True)
    finally:
        box.close()
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--out", type=Path, default=Path("tour"))
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args(arguments)
    with OpenAI(base_url=given.base_url, api_key=given.api_key) as client:
        found = tour(client, given.model, given.out, given.seeds)
    return 0 if all(all(right) for right in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
