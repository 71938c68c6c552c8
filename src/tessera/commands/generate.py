"""`tessera generate`: a prompt in, its completion out, to the terminal as it comes or as one JSON object."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tessera.commands import films, sounds, terminal
from tessera.commands.pictures import Asked, generate_picture, refuse_contradictions
from tessera.engine import native
from tessera.engine.engine import DEFAULT_LIMITS, Engine, Limits
from tessera.engine.films import TEMPERATURE as FILM_TEMPERATURE
from tessera.engine.request import Completion, Request
from tessera.engine.sampling import SamplingParams
from tessera.engine.sounds import TEMPERATURE as SOUND_TEMPERATURE
from tessera.engine.thinking import THINK, THOUGHT, budgets_of, thought
from tessera.errors import UserError
from tessera.model import weights
from tessera.model.decoder import join_weights
from tessera.tokens import chat as chats
from tessera.tokens.prompts import fill_prompt
from tessera.tokens.vocabulary import Vocabulary

_NO_PICTURES = Asked()


def open_engine(model: str, precision: str = "auto", limits: Limits = DEFAULT_LIMITS) -> Engine:
    """An engine for a run's folder or a Hugging Face folder, on this machine's device, in `precision` or what is fastest."""
    folder = weights.resolve_model(model)
    machine = native.machine_for(weights.read_config(folder).parameters, precision)
    decoder = weights.load(folder, machine.torch_dtype)
    vocabulary = Vocabulary.load(folder, decoder.config.vocab_size)
    decoder = decoder.to(machine.torch_device, machine.torch_dtype).eval()
    join_weights(decoder)
    return Engine(decoder, vocabulary, limits)


def generate(
    model: str,
    prompt: str,
    suffix: str | None = None,
    max_tokens: int = 256,
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int | None = None,
    stop: Sequence[str] = (),
    as_json: bool = False,
    pictures: Asked = _NO_PICTURES,
    effort: str | None = None,
) -> None:
    """Completes `prompt` and prints prompt and completion, or makes and perceives pictures, films and sound.

    Args:
        model: a run's folder or a Hugging Face folder.
        prompt: text; `-` reads standard input.
        suffix: text that comes after the gap to fill; the model must have been trained with `data.fill_in_the_middle`.
        temperature: None: 0.8 for text, 1 for pictures, 0.5 for films and sound, 0 for what is said of something.
        pictures: what is asked for beside text.
        as_json: print one object with prompt_ids, ids, logprobs, text, files, seconds, seed and finish_reason instead.
        effort: `prompt` is what a user says, to be thought about so long before the answer, which alone is printed; `none`: at
            once. In the object the thought is `reasoning`.

    Raises:
        UserError: no model, no such token in its vocabulary, settings out of range.
    """
    if temperature is None:
        temperature = _usual_temperature(pictures)
    params = SamplingParams(max_tokens, temperature, top_k, top_p, min_p, seed=seed, stop=tuple(stop))
    text = terminal.read_standard_input() if prompt == "-" else prompt
    if pictures.any:
        refuse, make = refuse_contradictions, generate_picture
        if sounds.speaks_of_sounds(pictures):
            refuse, make = sounds.refuse_contradictions, sounds.generate_sound
        elif films.speaks_of_films(pictures):
            refuse, make = films.refuse_contradictions, films.generate_film
        refuse(pictures)
        _refuse_idle(pictures)
        for name, given in (("--suffix", suffix), ("--effort", effort)):
            if given is not None:
                raise UserError(f"{name} is for texts; it does not go with pictures, films and sound.")
        pictures = replace(pictures, learned=frozenset(weights.read_special(weights.resolve_model(model)).guided))
        make(open_engine(model), text, pictures, params, as_json, Path(model).resolve().name)
        return
    if suffix is not None and effort is not None:
        raise UserError("--suffix fills a gap in a running text, which nobody thinks about; leave --effort out.")
    if not text and suffix is None and effort is None:
        print("note: the prompt is empty, so the model begins a text of its own.", file=sys.stderr)
    engine = open_engine(model)
    context, think = engine.decoder.config.context, None
    if effort is not None:
        if effort != "none":
            think = thought(engine.vocabulary, budgets_of(model), effort)
            params = replace(params, max_tokens=max_tokens + think.tokens)
        said = [chats.Message("user", text)]
        question = chats.render(said, add_generation_prompt=True, effort=effort if think else "")
        ids = engine.vocabulary.encode(question).ids.tolist()
    elif suffix is None:
        ids = engine.vocabulary.encode_prompt(text) or [engine.vocabulary.end_id]
    else:
        ids = fill_prompt(engine.vocabulary, text, suffix, room=context - min(max_tokens, context // 2))
    if not as_json and effort is None:
        terminal.write(text)
    start = time.perf_counter()
    show = None if as_json else lambda index, token, piece: terminal.write(piece)
    completion = engine.complete([Request(tuple(ids), params, think)], show)[0]
    seconds = time.perf_counter() - start
    if as_json:
        report = {
            "prompt_ids": completion.prompt_ids.tolist(),
            "ids": completion.ids.tolist(),
            "logprobs": [round(float(p), 6) for p in completion.logprobs],
            "text": completion.text,
            "files": [],
            "seconds": round(seconds, 4),
            "seed": completion.seed,
            "finish_reason": completion.finish_reason,
        }
        if think is not None:
            report["reasoning"] = _reasoning(engine.vocabulary, completion)
        print(json.dumps(report, ensure_ascii=False))
    else:
        terminal.write(suffix or "", end="\n")
    if completion.cut_tokens:
        print(f"note: the model reads {context} tokens; the first {completion.cut_tokens} were left out.", file=sys.stderr)


def _usual_temperature(pictures: Asked) -> float:
    """Where none is asked for."""
    if not pictures.any:
        return 0.8
    if not pictures.out:
        return 0.0
    if sounds.speaks_of_sounds(pictures):
        return SOUND_TEMPERATURE
    return FILM_TEMPERATURE if films.speaks_of_films(pictures) else 1.0


def _refuse_idle(asked: Asked) -> None:
    """Raises UserError where an option speaks of what is made and nothing is, or where there is no folder for what is made."""
    if asked.out is not None:
        folder = Path(asked.out).parent
        if not folder.is_dir():
            raise UserError(f"{asked.out} cannot be written: there is no folder {folder}.")
        return
    made = {"guidance": asked.guidance, "guidance-interval": asked.guidance_interval, "best-of": asked.best_of}
    for name, given in (made | {"frames": asked.frames, "seconds": asked.seconds}).items():
        if given is not None:
            raise UserError(f"--{name} is for what is made, and a question makes nothing: give --out FILE, or leave it out.")


def _reasoning(vocabulary: Vocabulary, completion: Completion) -> str:
    """What was thought, between its marks."""
    ids = completion.ids.tolist()
    end = ids.index(vocabulary.control(THOUGHT)) if vocabulary.control(THOUGHT) in ids else len(ids)
    return vocabulary.decode_text(ids[ids.index(vocabulary.control(THINK)) + 1 : end])
