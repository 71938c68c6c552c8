"""Instructions whose following can be seen in the text alone: the kinds of IFEval, by its names and with its arguments.

Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models", arXiv 2311.07911, table 1. All of its kinds are
here but `language:response_language`, which needs a model that knows languages. What they judge is form: `zzz` has no comma, so a
task made of prohibitions alone is no reward by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tessera.errors import UserError
from tessera.posttrain.verifiers.task import Task

Check = Callable[[str, Mapping[str, Any]], bool]


def instructions(task: Task, answer: str) -> float:
    """1 where every instruction of the task is followed; the prompt itself, or nothing, is no answer.

    `task.data` holds `instruction_id_list` and, beside it, `kwargs`: one dict of arguments an instruction.

    Raises:
        UserError: as `followed`, or the task has no instructions.
    """
    return float(all(followed(task, answer)))


def instructions_loosely(task: Task, answer: str) -> float:
    """The same, where each instruction may be followed by the answer without its first line, last line or both, or without
    asterisks (IFEval's loose accuracy)."""
    return float(all(any(column) for column in zip(*(followed(task, text) for text in _loosened(answer)), strict=True)))


def followed(task: Task, answer: str) -> list[bool]:
    """Which of the task's instructions an answer follows, in their order.

    Raises:
        UserError: an instruction that is not known, or without an argument that it needs.
    """
    names, arguments = task.data.get("instruction_id_list"), task.data.get("kwargs")
    if not names or not isinstance(arguments, list) or len(names) != len(arguments):
        raise UserError(f"task {task.id or task.prompt!r} needs instruction_id_list and kwargs of equal length in its data.")
    if not answer.strip() or answer.strip() == task.prompt.strip():
        return [False] * len(names)
    return [_one(task, name, each, answer) for name, each in zip(names, arguments, strict=True)]


def is_covered(task: Task) -> bool:
    """Whether every instruction of a task is one of KINDS."""
    return all(name in KINDS for name in task.data["instruction_id_list"])


def _one(task: Task, name: str, arguments: Mapping[str, Any], answer: str) -> bool:
    if name not in KINDS:
        raise UserError(f"task {task.id or task.prompt!r}: there is no instruction {name!r}; known are {', '.join(KINDS)}.")
    try:
        return KINDS[name](answer, arguments)
    except KeyError as missing:
        raise UserError(f"task {task.id or task.prompt!r}: the instruction {name} lacks its argument {missing}.") from None


def _loosened(answer: str) -> Iterator[str]:
    lines = answer.split("\n")
    for some in (lines, lines[1:], lines[:-1], lines[1:-1]):
        text = "\n".join(some).strip()
        yield text
        yield text.replace("*", "")


# Words and sentences


def _related(count: int, relation: str, bound: int) -> bool:
    if relation not in ("at least", "less than"):
        raise UserError(f"a relation is 'at least' or 'less than', not {relation!r}.")
    return count >= bound if relation == "at least" else count < bound


_ABBREVIATIONS = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|No|U\.S|a\.m|p\.m)\.$", re.IGNORECASE)


def sentences(text: str) -> int:
    """Number of sentences: pieces that end in `.`, `!` or `?` before white space and no small letter, or at a paragraph's end."""
    count = 0
    for paragraph in re.split(r"\n\s*\n", text):
        piece_start = 0
        for end in re.finditer(r"[.!?]+[\"')\]*]*(?=\s+[^a-z\s]|\s*$)", paragraph):
            piece = paragraph[piece_start : end.end()]
            if _ABBREVIATIONS.search(piece.strip()) and end.end() < len(paragraph.rstrip()):
                continue
            count += bool(re.search(r"\w", piece))
            piece_start = end.end()
        count += bool(re.search(r"\w", paragraph[piece_start:]))
    return count


def _paragraphs(text: str, number: int) -> bool:
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    # A divider before the first and one behind the last are forgiven, none without text between two of them.
    if not parts[0]:
        parts = parts[1:]
    if parts and not parts[-1]:
        parts = parts[:-1]
    return all(parts) and len(parts) == number


def _first_word(text: str, arguments: Mapping[str, Any]) -> bool:
    paragraphs = [part.strip() for part in re.split(r"\n\n", text) if part.strip()]
    number = arguments["nth_paragraph"]
    if len(paragraphs) != arguments["num_paragraphs"] or number > len(paragraphs):
        return False
    first = paragraphs[number - 1].split()[0].lstrip("\"'(*")
    word = re.match(r"[^.,?!:;'\"]*", first)
    return word is not None and word[0].lower() == str(arguments["first_word"]).lower()


# Form


def _bullets(text: str) -> int:
    return len(re.findall(r"^\s*(?:\*[^*\n].*|-.*)$", text, re.MULTILINE))


def _highlights(text: str) -> int:
    double = re.findall(r"\*\*([^*\n]+)\*\*", text)
    single = re.findall(r"\*([^*\n]+)\*", re.sub(r"\*\*[^*\n]+\*\*", " ", text))
    return sum(bool(part.strip()) for part in (*double, *single))


def _sections(text: str, arguments: Mapping[str, Any]) -> bool:
    heading = re.compile(rf"\s?{re.escape(arguments['section_spliter'])}\s?\d+\s?")
    return len(heading.split(text)) - 1 >= arguments["num_sections"]


def _is_json(text: str) -> bool:
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text.strip(), re.DOTALL | re.IGNORECASE)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    # A bare number is JSON by the letter; "the entire output in JSON format" asks for an object or a list.
    return isinstance(value, dict | list)


def _two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    if any(not part for part in parts[1:-1]):
        return False
    given = [part for part in parts if part]
    return len(given) == 2 and given[0] != given[1]


def _postscript(text: str, marker: str) -> bool:
    # As the authors look for it: anywhere, and P.S. may be written "P. S." and in small letters.
    spaced = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker.strip(), re.escape(marker.strip()))
    return re.search(rf"{spaced}.*$", text, re.MULTILINE | re.IGNORECASE) is not None


KINDS: dict[str, Check] = {
    "keywords:existence": lambda text, a: all(re.search(re.escape(word), text, re.IGNORECASE) for word in a["keywords"]),
    "keywords:frequency": lambda text, a: _related(
        len(re.findall(re.escape(a["keyword"]), text, re.IGNORECASE)), a["relation"], a["frequency"]
    ),
    "keywords:forbidden_words": lambda text, a: (
        not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in a["forbidden_words"])
    ),
    "keywords:letter_frequency": lambda text, a: _related(
        text.lower().count(a["letter"].lower()), a["let_relation"], a["let_frequency"]
    ),
    "length_constraints:number_sentences": lambda text, a: _related(sentences(text), a["relation"], a["num_sentences"]),
    "length_constraints:number_words": lambda text, a: _related(len(re.findall(r"\w+", text)), a["relation"], a["num_words"]),
    "length_constraints:number_paragraphs": lambda text, a: _paragraphs(text, a["num_paragraphs"]),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda text, a: len(re.findall(r"\[.*?\]", text)) >= a["num_placeholders"],
    "detectable_content:postscript": lambda text, a: _postscript(text, a["postscript_marker"]),
    "detectable_format:number_bullet_lists": lambda text, a: _bullets(text) == a["num_bullets"],
    "detectable_format:constrained_response": lambda text, a: any(
        f"My answer is {word}." in text for word in ("yes", "no", "maybe")
    ),
    "detectable_format:number_highlighted_sections": lambda text, a: _highlights(text) >= a["num_highlights"],
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": lambda text, a: _is_json(text),
    "detectable_format:title": lambda text, a: any(part.strip() for part in re.findall(r"<<([^\n]+?)>>", text)),
    "combination:two_responses": lambda text, a: _two_responses(text),
    "combination:repeat_prompt": lambda text, a: text.strip().lower().startswith(a["prompt_to_repeat"].strip().lower()),
    "startend:end_checker": lambda text, a: text.strip().strip('"').lower().endswith(a["end_phrase"].strip().lower()),
    "startend:quotation": lambda text, a: len(text.strip()) > 1 and text.strip().startswith('"') and text.strip().endswith('"'),
    "change_case:english_capital": lambda text, a: text.isupper(),
    "change_case:english_lowercase": lambda text, a: text.islower(),
    "change_case:capital_word_frequency": lambda text, a: _related(
        sum(word.isupper() for word in re.findall(r"[^\W_][\w'-]*", text)), a["capital_relation"], a["capital_frequency"]
    ),
    "punctuation:no_comma": lambda text, a: "," not in text,
}
"""Each instruction's name -> what decides whether a text with its arguments follows it."""
