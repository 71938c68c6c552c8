"""What a completion may say: the ids that a constraint leaves at each place, and those it forces.

`Grammars` compiles JSON schemas, regular expressions and grammars with llguidance, over the bytes of a vocabulary's text ids: as
each byte is an id, every text of a grammar can be written. Control tokens are never allowed, but for the end, which is forced
when nothing else may follow. `IdRange` is a stretch of a medium's ids, `PictureGrid` all of a picture, `SoundSteps` a sound.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable
from urllib.parse import unquote, urldefrag, urljoin

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor

from tessera.errors import UserError
from tessera.tokens.vocabulary import END, END_TURN, Vocabulary

MOST_WHITESPACE = 16
"""Characters of white space between two parts of a JSON text. Without a bound a weak model writes nothing else until its tokens
are spent (vLLM #38696, xgrammar #412); 16 are a line break and an indentation of up to 15."""

_JSON_OPTIONS: Any = {"whitespace_pattern": rf"[\x20\x0A\x0D\x09]{{0,{MOST_WHITESPACE}}}"}
_NO_SCHEMA = "the JSON schema is not a JSON object, or is nested too deeply."
# What stands under these keys of a schema is a value, not a schema.
_VALUES = ("const", "enum", "default", "examples")
# And under these schemas by names of any kind, "default" too.
_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")


class Progress(Protocol):
    """A constraint on its way through one completion. All methods may raise UserError: the constraint cannot go on."""

    def allowed(self) -> Tensor | None:
        """(V,) bool, the ids that may come next; None: those that may where there is no constraint."""
        ...

    def forced(self) -> list[int]:
        """The ids that have to come next; none where there is a choice."""
        ...

    def accept(self, token: int) -> bool:
        """The completion goes on with this id; returns whether it ends with it."""
        ...


@runtime_checkable
class Guesses(Progress, Protocol):
    """Progress that knows what is likely to come, and allows the same ids wherever there is a choice."""

    def guess(self, made: Sequence[int], most: int) -> list[int]:
        """The ids that are likely to come next, at most so many; none where there is nothing to go by.

        Args:
            made: all that came so far.
        """
        ...

    def ahead(self, places: int) -> int:
        """The id that has to come so many places after the next one, within what was guessed or right behind it; negative where
        there is a choice."""
        ...


class Constraint(Protocol):
    """Made once, for any number of completions."""

    def begin(self, size: int) -> Progress:
        """At the start of a completion by a model with `size` ids."""
        ...


@dataclass(frozen=True)
class IdRange:
    """`count` ids of `start ... start + size - 1`, the block of a medium, and then the id `end`."""

    start: int
    size: int
    count: int
    end: int

    def begin(self, size: int) -> Progress:
        allowed_V = torch.zeros(size, dtype=torch.bool)
        allowed_V[self.start : self.start + self.size] = True
        return _IdRangeProgress(allowed_V, self.count, self.end)


@dataclass
class _IdRangeProgress:
    allowed_V: Tensor = field(repr=False)
    left: int
    end: int

    def allowed(self) -> Tensor:
        return self.allowed_V

    def forced(self) -> list[int]:
        return [] if self.left else [self.end]

    def accept(self, token: int) -> bool:
        self.left -= 1
        return self.left < 0


@dataclass(frozen=True)
class PictureGrid:
    """The pixels of a picture, ids of `start ... start + size - 1`; behind each row the id `row`, behind all of them `end`.

    Args:
        known: (H, W) int64, which of the medium's own ids each pixel is; -1 where it is to be drawn.
        repeats: a row is likely to be much like the one before it, as the frames of a film are.
    """

    start: int
    size: int
    row: int
    end: int
    known: np.ndarray
    repeats: bool = False

    @property
    def tokens(self) -> int:
        """From the first pixel to the end."""
        return self.known.shape[0] * (self.known.shape[1] + 1) + 1

    def begin(self, size: int) -> Progress:
        allowed_V = torch.zeros(size, dtype=torch.bool)
        allowed_V[self.start : self.start + self.size] = True
        grid = np.full((self.known.shape[0], self.known.shape[1] + 1), self.row)
        grid[:, :-1] = np.where(self.known < 0, -1, self.known + self.start)
        return _PictureProgress(allowed_V, [*grid.ravel().tolist(), self.end], grid.shape[1] if self.repeats else 0)


@dataclass
class _PictureProgress:
    allowed_V: Tensor = field(repr=False)
    wanted: list[int]
    """What has to come at each place; -1: any pixel."""
    period: int = 0
    """Tokens back to what is likely to come again; 0: nothing is."""
    at: int = 0

    def allowed(self) -> Tensor:
        return self.allowed_V

    def guess(self, made: Sequence[int], most: int) -> list[int]:
        found: list[int] = []
        for place in range(self.at, min(self.at + most, len(self.wanted)) if self.at >= self.period > 0 else 0):
            token = self.wanted[place]
            if token < 0:
                if place - self.period >= len(made):
                    break
                token = made[place - self.period]
            found.append(token)
        return found

    def ahead(self, places: int) -> int:
        return self.wanted[self.at + places]

    def forced(self) -> list[int]:
        return list(itertools.takewhile(lambda token: token >= 0, self.wanted[self.at :]))

    def accept(self, token: int) -> bool:
        self.at += 1
        return self.at == len(self.wanted)


@dataclass(frozen=True)
class SoundSteps:
    """The steps of a sound, each an id of each book of `start ... start + size - 1`; behind any of them the id `end` may follow,
    and behind the last one must.

    Args:
        books: into which the ids are divided evenly.
        most: steps.
        known: the medium's own ids of the beginning, whole steps.
    """

    start: int
    size: int
    books: int
    end: int
    most: int
    known: tuple[int, ...] = ()

    def begin(self, size: int) -> Progress:
        each = self.size // self.books
        masks = torch.zeros(self.books, size, dtype=torch.bool)
        for book, mask in enumerate(masks):
            mask[self.start + book * each : self.start + (book + 1) * each] = True
        ending_V = masks[0].clone()
        ending_V[self.end] = True
        return _SoundProgress(self, list(masks), ending_V)


@dataclass
class _SoundProgress:
    steps: SoundSteps
    of_book: list[Tensor] = field(repr=False)
    ending_V: Tensor = field(repr=False)
    """Between two steps."""
    at: int = 0

    def allowed(self) -> Tensor:
        book = self.at % self.steps.books
        return self.of_book[book] if book or not self.at else self.ending_V

    def forced(self) -> list[int]:
        if self.at == self.steps.most * self.steps.books:
            return [self.steps.end]
        return [self.steps.start + known for known in self.steps.known[self.at :]]

    def accept(self, token: int) -> bool:
        self.at += 1
        return token == self.steps.end


class Grammars:
    """Compiles constraints for one vocabulary.

    Args:
        vocabulary: of the model.
        end: id that ends a completion; None: the end of a turn, or of a document where there is none.

    Raises:
        UserError: the vocabulary has no end token.
    """

    def __init__(self, vocabulary: Vocabulary, end: int | None = None) -> None:
        if end is None:
            end = vocabulary.controls.get(END_TURN, vocabulary.controls.get(END))
        if end is None:
            raise UserError("this vocabulary has no token that ends a text, which constrained output needs.")
        self.end = end
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Tokens(vocabulary, end)), n_vocab=vocabulary.size, eos_token=end)
        self._sayable_V = torch.from_numpy(vocabulary.token_bytes > 0)
        self._sayable_V[end] = True

    def json_schema(self, schema: Mapping[str, Any]) -> Constraint:
        """JSON texts that a schema accepts.

        Raises:
            UserError: it is not a schema, refers to itself, or uses what llguidance does not know.
        """
        text = _checked(schema)
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS)
        except ValueError:
            raise UserError(_NO_SCHEMA) from None
        return self._compile("JSON schema", grammar)

    def json_object(self) -> Constraint:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def regex(self, pattern: str) -> Constraint:
        """Texts that match a regular expression as a whole (Rust's syntax, no look-around).

        Raises:
            UserError: it is not one.
        """
        return self._compile("regular expression", LLMatcher.grammar_from_regex(pattern))

    def lark(self, grammar: str, controls: Iterable[int] = ()) -> Constraint:
        """Texts of a context-free grammar in Lark's notation; it begins with the rule `start`.

        Args:
            grammar: may name ids outright, `<[258]>`.
            controls: ids of control tokens that it may name.

        Raises:
            UserError: it is not one.
        """
        return self._compile("grammar", LLMatcher.grammar_from_lark(grammar), controls)

    @staticmethod
    def json_rule(schema: Mapping[str, Any]) -> str:
        """JSON texts that a schema accepts, as a term in a Lark grammar.

        Raises:
            UserError: as `json_schema`, as far as it can be seen without compiling.
        """
        return "%json " + _checked({**schema, "x-guidance": _JSON_OPTIONS})

    def _compile(self, kind: str, grammar: str, controls: Iterable[int] = ()) -> Constraint:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise UserError(f"the {kind} cannot be used: {_one_line(matcher.get_error())}.")
        sayable_V = self._sayable_V.clone()
        sayable_V[list(controls)] = True
        return _Grammar(matcher, sayable_V, self.end)


class _Tokens:
    """A vocabulary as llguidance's `TokenizerWrapper` wants to see it."""

    def __init__(self, vocabulary: Vocabulary, end: int) -> None:
        self.eos_token_id = end
        self.bos_token_id = None
        # 0xFF is in no text; without a name of its own a control token that a grammar names takes others along.
        self.tokens = [vocabulary.bytes_of([token]) or b"\xff<%d>" % token for token in range(vocabulary.size)]
        self.special_token_ids = sorted(vocabulary.control_ids)
        self._vocabulary = vocabulary

    def __call__(self, text: str | bytes) -> list[int]:
        return self._vocabulary.encode_text(text if isinstance(text, str) else text.decode())


@dataclass(frozen=True)
class _Grammar:
    matcher: LLMatcher
    sayable_V: Tensor = field(repr=False)
    end: int

    def begin(self, size: int) -> Progress:
        return _GrammarProgress(self.matcher.deep_copy(), self.sayable_V, self.end, size)


@dataclass
class _GrammarProgress:
    matcher: LLMatcher
    sayable_V: Tensor = field(repr=False)
    end: int
    size: int

    def allowed(self) -> Tensor:
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed_V = torch.zeros(self.size, dtype=torch.bool)
        known = len(self.sayable_V)
        # A grammar can name ids outright, control tokens among them.
        torch.logical_and(
            torch.from_numpy(np.unpackbits(bits, count=known, bitorder="little")), self.sayable_V, out=allowed_V[:known]
        )
        if not allowed_V.any():
            raise UserError("the grammar leaves nothing to say.")
        return allowed_V

    def forced(self) -> list[int]:
        if self.matcher.is_stopped():
            self._check()
            return [self.end]
        tokens = self.matcher.compute_ff_tokens()
        if not all(self.sayable_V[token] for token in tokens):
            raise UserError("the grammar asks for a control token.")
        return tokens

    def accept(self, token: int) -> bool:
        if token == self.end:
            return True
        if not self.matcher.consume_token(token):
            self._check()
        return False

    def _check(self) -> None:
        if self.matcher.is_error():
            raise UserError(f"the grammar cannot go on: {_one_line(self.matcher.get_error())}.")


def _checked(schema: Mapping[str, Any]) -> str:
    """The JSON of a schema that can be followed to its ends."""
    try:
        if _refers_to_itself(schema):
            raise UserError("the JSON schema refers to itself; write the levels out that you need.")
        return json.dumps(schema)
    except (RecursionError, TypeError, ValueError):
        raise UserError(_NO_SCHEMA) from None


def _refers_to_itself(schema: Mapping[str, Any]) -> bool:
    """Whether following `$ref` within the document leads round in a circle."""
    done: set[str] = set()
    name = _target(schema, "#/$id")
    base = urldefrag(name if isinstance(name, str) else "").url

    def circular(pointer: str, above: frozenset[str]) -> bool:
        if pointer in above:
            return True
        if pointer in done:
            return False
        found = any(circular(inner, above | {pointer}) for inner in _references(_target(schema, pointer), base))
        done.add(pointer)
        return found

    return circular("#", frozenset())


def _references(schema: Any, base: str) -> Iterator[str]:
    """The local pointers that stand in a schema of a document whose name (`$id`) is `base`."""
    if isinstance(schema, Mapping):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            url, fragment = urldefrag(urljoin(base, reference))
            if url == base:
                yield "#" if fragment == "/" else f"#{unquote(fragment)}"
        for key, value in schema.items():
            if key in _BY_NAME and isinstance(value, Mapping):
                yield from _references([*value.values()], base)
            elif key not in _VALUES:
                yield from _references(value, base)
    elif isinstance(schema, list | tuple):
        for value in schema:
            yield from _references(value, base)


def _target(schema: Any, pointer: str) -> Any:
    """What a JSON pointer (RFC 6901) leads to; None where it leads nowhere, which llguidance will say."""
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, Mapping):
            schema = schema.get(part)
        elif isinstance(schema, list) and part.isdigit() and int(part) < len(schema):
            schema = schema[int(part)]
        else:
            return None
    return schema


def _one_line(message: str) -> str:
    """The sentence of an error: no state or back trace behind it, no full stop."""
    return " ".join(re.split(r"<(?:state|backtrace)>", message)[0].split())[:200].rstrip(". ")
