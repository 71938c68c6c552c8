"""Who is computed next: a queue in front, the running requests behind it, and how many tokens of each go into a step.

Every step takes one token of each request that is generating and fills a budget of tokens with pieces of prompts, so that a long
prompt delays the others by no more than the budget. A request leaves the queue when a slot is free and its prompt and all it may
sample have room in the cache: once running, it is never thrown out.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

import numpy as np

from tessera.engine.cache import BLOCK
from tessera.engine.constraints import Progress
from tessera.engine.request import Busy, Completion, FinishReason, Request, Top
from tessera.engine.sampling import History
from tessera.engine.stream import TextStream
from tessera.errors import UserError
from tessera.tokens.document import TokenRecord

OVERTAKEN = 256
"""A request of the next priority waits for at most so many that came later: priorities order the queue and starve nobody."""

_LONGEST_WAIT_SECONDS = 60.0
_LONGEST_PAUSE = 64
"""Tokens without a guess."""


@dataclass(frozen=True)
class Limits:
    """How much an engine takes on.

    Args:
        rows: requests that run together.
        step_tokens: tokens of one step; more make prompts faster and the pauses of running streams longer.
        step_seconds: that a step with prompts is to take at most, by fewer tokens; None: it takes its time, so that what steps
            compute depends on no clock.
        queued_requests: that wait at most.
        queued_tokens: their prompts and what they may sample, together.
        cache_tokens: keys and values held for running requests, counted as rows times the longest; None: a full context for
            each row, or as many as 2 GiB hold.
        prefix_tokens: of finished prompts and completions, kept in case they come again; None: a quarter of the above.
        guess_tokens: that are likely to come, as far as a request's constraint knows of such, and are computed beside a running
            stream's last token, by the native step; 0: none are.

    Raises:
        UserError: a value that is out of range.
    """

    rows: int = 16
    step_tokens: int = 256
    step_seconds: float | None = None
    queued_requests: int = 256
    queued_tokens: int = 1 << 20
    cache_tokens: int | None = None
    prefix_tokens: int | None = None
    guess_tokens: int = 8

    def __post_init__(self) -> None:
        for holds, rule in (
            (self.rows >= 1, f"rows must be at least 1, not {self.rows}"),
            (self.step_tokens > self.rows, f"step_tokens must be more than rows ({self.rows}), not {self.step_tokens}"),
            (self.step_seconds is None or self.step_seconds > 0, f"step_seconds must be more than 0, not {self.step_seconds}"),
            (self.queued_requests >= 1, f"queued_requests must be at least 1, not {self.queued_requests}"),
            (self.queued_tokens >= 1, f"queued_tokens must be at least 1, not {self.queued_tokens}"),
            (self.cache_tokens is None or self.cache_tokens >= 1, f"cache_tokens must be at least 1, not {self.cache_tokens}"),
            (self.prefix_tokens is None or self.prefix_tokens >= 0, f"prefix_tokens must be 0 or more, not {self.prefix_tokens}"),
            (self.guess_tokens >= 0, f"guess_tokens must be 0 or more, not {self.guess_tokens}"),
        ):
            if not holds:
                raise UserError(f"{rule}.")


@dataclass(eq=False)
class Row:
    """A request on its way.

    Args:
        id: given out in the order of arrival.
        request: as it was submitted.
        ids: its prompt, as far as it fits the context, and what was sampled since.
        prompt_tokens, cut_tokens: as in `Completion`.
        room: tokens that may be sampled.
        seed: of its random numbers.
        stop_ids: that end it.
        stream: of its text.
        keys: hashes of the whole blocks of its prompt.
        aside: it is within a call or a thought, see `stream.ASIDES`.
        history, progress: of its penalties and its constraint, if it has any.
        computed: how many of `ids` are in the cache.
        cached: how many of these were found there.
        held: blocks of the prefix cache that it uses.
        version: of the weights that its keys and values come from.
        follower: of a guided request, the row of the prompt that says less; `leader` is the way back. Both are computed to the
            same token in each step, and the leader alone is sampled from.
    """

    id: int
    request: Request
    ids: list[int]
    prompt_tokens: int
    cut_tokens: int
    room: int
    seed: int
    stop_ids: frozenset[int]
    stream: TextStream
    keys: list[bytes]
    aside: bool = False
    history: History | None = None
    progress: Progress | None = None
    computed: int = 0
    cached: int = 0
    held: list[int] = field(default_factory=list)
    version: int = 0
    follower: Row | None = None
    leader: Row | None = None
    draws: int = 0
    guesses: int = 1
    """That are made at a time."""
    guesses_from: int = 0
    """How many tokens are made when guesses begin again."""
    misses: int = 0
    """Times in a row that not even the first guess came true."""
    learn: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[Top] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
    prompt_top: list[Top] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Tokens that the next token depends on and that are not computed yet."""
        return len(self.ids) - self.computed

    @property
    def past_prompt(self) -> bool:
        """Whether all of the prompt is computed."""
        return self.computed >= self.prompt_tokens

    @property
    def prompt_is_scored(self) -> bool:
        """Whether what is computed next is a prompt whose own log-probabilities are wanted."""
        return self.request.prompt_logprobs and not self.past_prompt

    @property
    def made(self) -> int:
        """Tokens that came behind the prompt."""
        return len(self.ids) - self.prompt_tokens

    @property
    def due(self) -> int:
        """How many of the pending tokens may be computed now: of a pair the last one only beside the other's."""
        other = self.follower or self.leader
        if other is None or (self.pending == 1 == other.pending):
            return self.pending
        return self.pending - 1

    def judge_guesses(self, tried: int, right: int) -> None:
        """Settles what is guessed next, as a guess costs as much as any token where a model is small: if all came true twice as
        many, else as many as did, and where not even the first did, none for a while, which grows.
        """
        self.guesses = 2 * tried if right == tried else max(1, right)
        self.misses = 0 if right else self.misses + 1
        self.guesses_from = self.made + (0 if right else min(2**self.misses, _LONGEST_PAUSE))

    @property
    def rows(self) -> tuple[Row, ...]:
        """All that a request takes of the batch: itself, and its follower if it has one."""
        return (self,) if self.follower is None else (self, self.follower)

    @property
    def reserved(self) -> int:
        """Tokens it may come to, of a pair the longer of both."""
        return max(row.prompt_tokens + row.room for row in self.rows)

    @property
    def findable(self) -> list[bytes]:
        """Of its prompt's blocks those that it may take from the cache; at least one token must be computed."""
        return [] if self.request.prompt_logprobs else self.keys[: (self.prompt_tokens - 1) // BLOCK]

    def completion(self, reason: FinishReason, version: int) -> Completion:
        """What was made of it, where it ended for that reason under weights of that version."""
        given = self.prompt_tokens
        record = TokenRecord(
            ids=np.array(self.ids, dtype=np.int32),
            learn=np.array([False] * given + self.learn, dtype=bool),
            logprobs=np.array([0.0] * given + self.logprobs, dtype=np.float32),
        )
        return Completion(
            record=record,
            prompt_tokens=given,
            cached_tokens=self.cached,
            cut_tokens=self.cut_tokens,
            finish_reason=reason,
            text=self.stream.text,
            seed=self.seed,
            version=version,
            top=tuple(self.top) if self.request.params.top_logprobs else (),
            prompt_logprobs=np.array(self.prompt_logprobs, dtype=np.float32) if self.request.prompt_logprobs else None,
            prompt_top=tuple(self.prompt_top),
        )


class Scheduler:
    """Holds all rows. `submit` and `abort` may be called from any thread, all else from the one that steps.

    Args:
        limits: of queue and batch.
        cache_tokens: resolved from the limits.
    """

    def __init__(self, limits: Limits, cache_tokens: int) -> None:
        self.limits = limits
        self.cache_tokens = cache_tokens
        self.running: list[Row] = []
        """A row's index is its slot."""
        self.tokens_per_second = 1000.0
        """How fast steps have gone lately."""
        self._prompts_per_second = math.inf
        """The same of steps with prompts."""
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, int, Row]] = []
        self._waiting_tokens = 0
        self._aborted: set[int] = set()

    def took(self, tokens: int, seconds: float) -> None:
        """That a step of so many tokens is done."""
        self.tokens_per_second += 0.1 * (tokens / seconds - self.tokens_per_second)
        if tokens > 2 * self.limits.rows:
            before = self._prompts_per_second if math.isfinite(self._prompts_per_second) else tokens / seconds
            self._prompts_per_second = 0.7 * before + 0.3 * tokens / seconds

    @property
    def step_tokens(self) -> int:
        """How many tokens the next step may have, at least one for each row and some of a prompt."""
        if self.limits.step_seconds is None or math.isinf(self._prompts_per_second):
            return self.limits.step_tokens
        fit = round(self._prompts_per_second * self.limits.step_seconds)
        return min(self.limits.step_tokens, max(fit, 2 * self.limits.rows + 32))

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.running or self._waiting)

    def ids(self) -> list[int]:
        """Of all rows."""
        with self._lock:
            return [row.id for _, _, row in self._waiting] + [row.id for row in self.running if row.leader is None]

    def submit(self, row: Row) -> None:
        """Puts a row into the queue.

        Raises:
            Busy: there is no room in it.
        """
        with self._lock:
            tokens = self._waiting_tokens + row.reserved
            # A single request is let in whatever its size: alone it delays nobody.
            if self._waiting and (len(self._waiting) >= self.limits.queued_requests or tokens > self.limits.queued_tokens):
                raise Busy(min(max(self._waiting_tokens / self.tokens_per_second, 1.0), _LONGEST_WAIT_SECONDS))
            self._waiting_tokens = tokens
            heapq.heappush(self._waiting, (row.id + row.request.priority * OVERTAKEN, row.id, row))

    def abort(self, id: int) -> None:
        """Marks a request; `aborted` takes it out."""
        with self._lock:
            self._aborted.add(id)

    def aborted(self) -> tuple[list[Row], list[int]]:
        """The rows that were waiting and the slots of those running that were marked since the last call; last slot first."""
        with self._lock:
            if not self._aborted:
                return [], []
            marked, self._aborted = self._aborted, set()
            dropped = [entry for entry in self._waiting if entry[1] in marked]
            self._waiting = [entry for entry in self._waiting if entry[1] not in marked]
            heapq.heapify(self._waiting)
            self._waiting_tokens -= sum(row.reserved for _, _, row in dropped)
        slots = [slot for slot, row in enumerate(self.running) if row.id in marked and row.leader is None]
        return [row for _, _, row in dropped], slots[::-1]

    def admit(self, known: Container[bytes]) -> Row | None:
        """Takes the next row out of the queue, if it has one that may run now. The caller adds it to `running`.

        A row whose prefix is just being computed by another is passed over until it can be copied.

        Args:
            known: hashes of the prefixes in the cache.
        """
        if not self._waiting or len(self.running) == self.limits.rows:
            return None
        coming = {key for row in self.running if row.computed < row.prompt_tokens for key in row.keys}
        with self._lock:
            passed = []
            found: Row | None = None
            while self._waiting:
                entry = heapq.heappop(self._waiting)
                missing = next((key for key in entry[2].findable if key not in known), None)
                if missing is not None and missing in coming:
                    passed.append(entry)
                    continue
                longest = max([entry[2].reserved, *(row.reserved for row in self.running)])
                together = len(self.running) + len(entry[2].rows)
                if together > self.limits.rows or longest * together > self.cache_tokens:
                    # It is not passed: smaller ones could go on taking the room that it waits for.
                    passed.append(entry)
                    break
                found = entry[2]
                self._waiting_tokens -= found.reserved
                break
            for entry in passed:
                heapq.heappush(self._waiting, entry)
            return found


def plan(rows: Sequence[Row], budget: int) -> list[int]:
    """How many pending tokens of each row go into the next step; at least one somewhere, at most `budget` in all.

    Rows with one pending token all get it. What is left goes to the long ones: half to the oldest, which so always moves on, the
    rest to the shortest, which so need not wait for it.
    """
    counts = [int(row.pending == row.due == 1) for row in rows]
    budget -= sum(counts)
    due = [row.due for row in rows]
    long = sorted(
        (slot for slot, row in enumerate(rows) if row.pending > 1), key=lambda slot: (rows[slot].pending, rows[slot].id)
    )
    if not long:
        return counts
    oldest = min(long, key=lambda slot: rows[slot].id)
    counts[oldest] = min(due[oldest], budget if len(long) == 1 else -(-budget // 2))
    budget -= counts[oldest]
    for slot in long:
        more = min(due[slot] - counts[slot], budget)
        counts[slot] += more
        budget -= more
    return counts
