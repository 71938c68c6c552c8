"""Cached generation: prompts of ids in, tokens out as they come, many requests at once, each token computed once.

`submit` puts a request into the queue, `step` moves all running requests on by one token and the prompts of others by a piece,
`generate` does both until its prompts are complete. One step is one forward pass of the decoder's own code over a flat row of
tokens (`cache`), one call of `sample`, and the book-keeping between. A completion does not depend, up to rounding, on the others
that run beside it. Whoever steps the engine owns its tensors; `service` does it in a thread.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tessera.engine import native
from tessera.engine.cache import BLOCK, Prefixes, SlotCache
from tessera.engine.compiled import BUCKETS, CompiledDecode, decode
from tessera.engine.constraints import Guesses
from tessera.engine.guesses import Guessed, draw_all, guess
from tessera.engine.request import Busy, Completion, Event, Failed, Finished, FinishReason, Request, Stats, Token, Top, ignore
from tessera.engine.sampling import Draw, History, SamplingParams, most_likely, refuse_nothing, sample, uniform
from tessera.engine.scheduler import Limits, Row, Scheduler, plan
from tessera.engine.stream import ASIDES, TextStream
from tessera.engine.thinking import ThoughtProgress
from tessera.errors import UserError
from tessera.model.decoder import Decoder, rotary_table
from tessera.tokens.vocabulary import END, END_TURN, PAD, Vocabulary

DEFAULT_PARAMS = SamplingParams()
DEFAULT_LIMITS = Limits()
OnToken = Callable[[int, int, str], None]
"""Called with the index of a prompt, its new id, and the text that became certain by it."""

_CACHE_BYTES = 2 << 30
_LOGIT_ROWS = 64
"""Logits of a prompt are computed for so many of its tokens at a time: with a large vocabulary they are large."""


class Engine:
    """Generates with one decoder.

    Args:
        decoder: computes in its `dtype`; parameters already in that dtype save a conversion in each pass.
        vocabulary: says which ids are text and how they read.
        limits: how many requests are taken on.
    """

    def __init__(self, decoder: Decoder, vocabulary: Vocabulary, limits: Limits = DEFAULT_LIMITS) -> None:
        config = decoder.config
        if vocabulary.size > config.vocab_size:
            raise UserError(f"the vocabulary has {vocabulary.size} ids, the model only {config.vocab_size} rows for them.")
        self.decoder = decoder
        self.vocabulary = vocabulary
        self.limits = limits
        self.version = 0
        """Of the weights: counts the calls of `load_weights`."""
        self._device = decoder.head_weight.device
        bytes_per_token = 2 * config.layers * config.kv_heads * config.head_size * decoder.dtype.itemsize
        cache_tokens = limits.cache_tokens or max(
            config.context, min(limits.rows * config.context, _CACHE_BYTES // bytes_per_token)
        )
        prefix_tokens = cache_tokens // 4 if limits.prefix_tokens is None else limits.prefix_tokens
        self._cache = SlotCache(config, decoder.dtype, self._device, limits.rows, cache_tokens, prefix_tokens)
        self._scheduler = Scheduler(limits, cache_tokens)
        self._rotary = rotary_table(config, torch.arange(config.context, device=self._device))
        self._compiled = CompiledDecode(decoder)
        self._native: native.NativeStep | None = None
        self._packed, self._asked_native = 0, False
        self._ids = itertools.count()
        counted = "steps prompt_tokens cached_tokens prefill_tokens tokens guessed_tokens finished aborted failed"
        self._counts = dict.fromkeys(counted.split(), 0)
        controls = vocabulary.controls
        self._asides = {controls[name]: begins for name, begins in ASIDES.items() if name in controls}
        self._ends = frozenset(controls[name] for name in (END, END_TURN) if name in controls)
        # Ids beyond the vocabulary (Qwen3 pads its matrix), ids without a token, media ids and padding never come out as text.
        allowed_V = torch.zeros(config.vocab_size, dtype=torch.bool)
        allowed_V[: vocabulary.size] = torch.from_numpy(vocabulary.token_bytes > 0)
        allowed_V[list(vocabulary.control_ids - {controls.get(PAD)} | self._ends)] = True
        self._blocked = (~allowed_V).nonzero()[:, 0].to(self._device)

    @property
    def context(self) -> int:
        """Tokens that the model can look at."""
        return self.decoder.config.context

    @property
    def blocked(self) -> Tensor:
        """Ids, int64, that are never sampled where no constraint allows them: padding, and what has no text."""
        return self._blocked

    def submit(self, request: Request) -> int:
        """Puts a request into the queue and returns its id. May be called from any thread.

        A prompt that fills the context (`decoder.config.context` tokens) keeps its last tokens, so that `max_tokens`, or else
        half of the context, fits behind it; how many it lost is said in `Completion.cut_tokens`.

        Raises:
            UserError: the prompt is empty, has an id that the model does not know or does not fit the cache; nothing to do.
            Busy: the queue is full.
        """
        row = self._row(request)
        self._scheduler.submit(row)
        return row.id

    def abort(self, id: int) -> None:
        """Ends a request at the next step, with the reason `abort`; one that has ended stays as it is. From any thread."""
        self._scheduler.abort(id)

    def abort_all(self) -> None:
        """Ends every request, waiting or running, at once; only for the thread that steps."""
        for id in self._scheduler.ids():
            self._scheduler.abort(id)
        self._drop_aborted()

    @torch.inference_mode()
    def step(self) -> bool:
        """Moves every running request on; returns whether anything is left to do."""
        began = time.perf_counter()
        self._drop_aborted()
        self._admit()
        rows = self._scheduler.running
        if rows:
            counts = plan(rows, self._scheduler.step_tokens)
            logits_BV, sampling, guessed = self._forward(rows, counts)
            ended = self._sample(logits_BV, sampling) if sampling else {}
            if guessed:
                ended |= self._check_guesses(guessed)
                sampling = [*sampling, *guessed]
            # From the last slot on: closing one moves the last into its place.
            for row in sorted(ended, key=rows.index, reverse=True):
                end = ended[row]
                if isinstance(end, UserError):
                    self._fail(row, end)
                else:
                    self._finish(row, end)
            self._let_go(sampling)
            self._scheduler.took(sum(counts), time.perf_counter() - began)
        return self._scheduler.busy

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] = DEFAULT_PARAMS,
        on_token: OnToken | None = None,
    ) -> list[Completion]:
        """Completes every prompt, stepping the engine until all are done; not beside a `Service`.

        Args:
            prompts: ids, at least one each; as in `submit`.
            params: for all, or one each. With a seed, equal prompts have equal completions.
            on_token: is told about each token as it comes.

        Raises:
            UserError: a prompt is empty or has an id that the model does not know; a constraint failed.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        return self.complete([Request(tuple(map(int, ids)), p) for ids, p in zip(prompts, each, strict=True)], on_token)

    def complete(self, requests: Sequence[Request], on_token: OnToken | None = None) -> list[Completion]:
        """`generate` for requests with constraints, guidance or logprobs of their prompts; their own listeners hear nothing.

        Raises:
            UserError: a request that cannot be taken on; a constraint failed.
        """
        done: dict[int, Completion] = {}
        failures: list[str] = []

        def listener(index: int) -> Callable[[Event], None]:
            def hear(event: Event) -> None:
                if isinstance(event, Token):
                    if on_token is not None:
                        on_token(index, event.id, event.text)
                elif isinstance(event, Finished):
                    done[index] = event.completion
                else:
                    failures.append(f"prompt {index}: {event.message}")

            return hear

        requests = [replace(request, on_event=listener(index)) for index, request in enumerate(requests)]
        for index, request in enumerate(requests):
            request.check(self.decoder.config.vocab_size, self.limits.rows, f"prompt {index}")
        submitted: list[int] = []
        try:
            for request in requests:
                submitted.append(self._submit_patiently(request))
            while len(done) < len(requests):
                self.step()
                if failures:
                    raise UserError(failures[0])
        except BaseException:
            # Ctrl-C in the middle, or a listener that fails: nothing of this call stays behind.
            for id in submitted:
                self.abort(id)
            self._drop_aborted()
            raise
        return [done[index] for index in range(len(requests))]

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Takes new weights in place and forgets all prefixes; running requests go on with the keys and values they have.

        Args:
            tensors: by the names of the decoder's parameters; those that do not come stay.

        Raises:
            UserError: an unknown name or another shape; the weights before it are taken already.
        """
        parameters = dict(self.decoder.named_parameters())
        self.version += 1
        self._cache.prefixes.forget()
        with torch.no_grad():
            for name, tensor in tensors:
                if name not in parameters:
                    raise UserError(f"the model has no tensor {name}.")
                if tensor.shape != parameters[name].shape:
                    raise UserError(f"{name} has shape {list(tensor.shape)}, the model's has {list(parameters[name].shape)}.")
                parameters[name].copy_(tensor)

    @torch.inference_mode()
    def compile(self, buckets: Sequence[int] = BUCKETS) -> threading.Thread | None:
        """Compiles the step of running streams in the background; to be called by the thread that steps, or before it starts.

        On a CPU in float32 that is `native`, ready in seconds, or at once where it was compiled before; without this call the
        first step waits for it. Else it is torch's compiler: the cache takes all its memory at once, as a graph knows one shape.

        Args:
            buckets: numbers of streams for torch's compiler, as far as `limits.rows` goes.

        Returns:
            The thread, which ends when all is compiled; None where `limits.cache_tokens` is less than all rows may come to.
        """
        if native.fits(self.decoder):
            self._asked_native = True
            thread = threading.Thread(target=self._compile_native, name="compile", daemon=True)
            thread.start()
            return thread
        if not self._cache.reserve():
            return None
        wanted = [size for size in buckets if size <= self.limits.rows]
        return self._compiled.start(self._cache.slots, self._cache.shape, wanted)

    @torch.inference_mode()
    def _compile_native(self) -> None:
        self._packed = self.version
        if (code := native.library()) is not None:
            self._native = native.NativeStep(code, self.decoder, self._rotary)

    def fail(self, message: str) -> None:
        """Ends every running request with `Failed` and frees its slot: what to do when `step` raised.

        Where none runs, the next one that waits is ended, or the same step would be tried for ever.
        """
        if not self._scheduler.running:
            self._drop_aborted()
            for id in self._scheduler.ids()[:1]:
                self._scheduler.abort(id)
            for row in self._scheduler.aborted()[0]:
                self._fail(row, message)
        while self._scheduler.running:
            last = self._scheduler.running[-1]
            self._fail(last.leader or last, message)

    def stats(self) -> Stats:
        """For metrics; from any thread."""
        scheduler = self._scheduler
        return Stats(
            running=sum(row.leader is None for row in scheduler.running),
            waiting=scheduler.waiting,
            cache_tokens=self._cache.tokens,
            cache_limit=scheduler.cache_tokens,
            tokens_per_second=scheduler.tokens_per_second,
            version=self.version,
            **self._counts,
        )

    def _row(self, request: Request) -> Row:
        request.check(self.decoder.config.vocab_size, self.limits.rows)
        config, params, cut = self.decoder.config, request.params, 0
        if len(request.prompt) + (params.max_tokens > 0) > config.context:
            cut = len(request.prompt) - (config.context - min(params.max_tokens, config.context // 2))
        ids = list(request.prompt[cut:])
        row = Row(
            id=next(self._ids),
            request=request,
            ids=ids,
            prompt_tokens=len(ids),
            cut_tokens=cut,
            room=min(params.max_tokens, config.context - len(ids)),
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            stop_ids=self._ends if params.stop_ids is None else frozenset(params.stop_ids),
            stream=TextStream(params.stop),
            keys=Prefixes.keys(ids, request.salt) if self._cache.prefixes.blocks else [],
        )
        if request.guidance is not None:
            bare = replace(request, prompt=request.guidance.prompt, guidance=None, prompt_logprobs=False, on_event=ignore)
            row.follower = self._row(bare)
            row.follower.leader = row
            row.room = min(row.room, row.follower.room)
        if (needed := row.reserved * len(row.rows)) > self._scheduler.cache_tokens:
            raise UserError(f"prompt and max_tokens come to {needed} tokens, but the cache holds {self._scheduler.cache_tokens}.")
        return row

    def _submit_patiently(self, request: Request) -> int:
        while True:
            try:
                return self.submit(request)
            except Busy:
                self.step()

    @torch.inference_mode()
    def _drop_aborted(self) -> None:
        waiting, slots = self._scheduler.aborted()
        for row in [*waiting, *(self._scheduler.running[slot] for slot in slots)]:
            self._finish(row, "abort")

    def _admit(self) -> None:
        while (row := self._scheduler.admit(self._cache.prefixes)) is not None:
            request = row.request
            try:
                if request.params.penalised:
                    row.history = History(row.ids, self.decoder.config.vocab_size, self._device)
                if request.constraint is not None:
                    row.progress = request.constraint.begin(self.decoder.config.vocab_size)
                for one in row.rows:
                    one.held = self._cache.open(one.findable)
                    one.version = self.version
                    one.computed = one.cached = self._cache.lengths[-1]
                    self._scheduler.running.append(one)
            except Exception as error:
                # It may be in neither list now, so nobody else would tell.
                self._fail(row, error if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
                if not isinstance(error, UserError):
                    raise
                continue
            self._counts["prompt_tokens"] += row.prompt_tokens
            self._counts["cached_tokens"] += row.cached

    def _forward(self, rows: Sequence[Row], counts: Sequence[int]) -> tuple[Tensor, list[Row], dict[Row, Guessed]]:
        """Feeds `counts` pending ids of each row to the model.

        Returns:
            the logits of the rows that have none left, these rows, and those into which guesses were fed too.
        """
        fit = [slot for slot, (row, count) in enumerate(zip(rows, counts, strict=True)) if count and not row.prompt_is_scored]
        step = self._native_step() if fit else None
        if step is None:
            running = all(n == row.pending == 1 and row.past_prompt for row, n in zip(rows, counts, strict=True))
            return *((self._decode(rows), list(rows)) if running else self._flat(rows, counts)), {}
        guesses = {slot: ids for slot in fit if (ids := guess(rows[slot], self.limits.guess_tokens, self.decoder.config.context))}
        fed = {slot: rows[slot].ids[rows[slot].computed :][: counts[slot]] + guesses.get(slot, []) for slot in fit}
        # Scores are wanted after all tokens of a row with guesses, else after the last if none are left.
        wanted, places = list[int](), dict[int, slice]()
        for slot, end in zip(fed, itertools.accumulate(map(len, fed.values())), strict=True):
            scored = len(fed[slot]) if slot in guesses else int(counts[slot] == rows[slot].pending)
            places[slot] = slice(len(wanted), len(wanted) + scored)
            wanted += range(end - scored, end)
        flat = [(id, slot) for slot, ids in fed.items() for id in ids]
        logits_WV = step([id for id, _ in flat], [slot for _, slot in flat], self._cache, wanted)
        guessed = {rows[slot]: Guessed(ids, logits_WV[places[slot]]) for slot, ids in guesses.items()}
        # Of a row with guesses it is not known yet how much of this counts.
        taken = [counts[slot] if slot in fed and slot not in guesses else 0 for slot in range(len(rows))]
        self._cache.end(taken)
        for slot in fed:
            self._advance(rows[slot], taken[slot])
        self._counts["steps"] += 1
        going_on = [slot for slot in fed if slot not in guesses and not rows[slot].pending]
        logits_BV = logits_WV[[places[slot].start for slot in going_on]] if guesses else logits_WV
        sampling = [rows[slot] for slot in going_on]
        if any(rest := [0 if slot in fed else count for slot, count in enumerate(counts)]):
            rest_BV, others = self._flat(rows, rest)
            logits_BV, sampling = torch.cat((logits_BV, rest_BV)), sampling + others
        return logits_BV, sampling, guessed

    def _check_guesses(self, guessed: dict[Row, Guessed]) -> dict[Row, FinishReason | UserError]:
        """Keeps what comes up to the first guess that is not it; returns the rows that ended by it, and how."""
        ended: dict[Row, FinishReason | UserError] = {}
        found = draw_all(guessed, self._blocked)
        for row in (row for row in guessed if row.leader is None):
            ids, taken = guessed[row].ids, 0
            with _caught(row, ended):
                for place in range(len(ids) + 1):
                    assert isinstance(row.progress, Guesses)
                    # What has to come here was known before any of these tokens was taken.
                    forced = (row, place) not in found
                    token, logprob, top = (row.progress.ahead(0), 0.0, ()) if forced else found[row, place]
                    row.draws += not forced
                    taken += 1
                    if self._take(row, token, logprob, top, not forced, ended) or place == len(ids) or token != ids[place]:
                        break
                if row not in ended:
                    self._force(row, ended)
            for one in row.rows:
                one.computed += taken
            self._counts["guessed_tokens"] += taken - 1
            row.judge_guesses(len(ids), taken - 1)
        self._cache.end([row.computed - length for row, length in zip(self._scheduler.running, self._cache.lengths, strict=True)])
        return ended

    def _flat(self, rows: Sequence[Row], counts: Sequence[int]) -> tuple[Tensor, list[Row]]:
        """`_forward` as one pass of the decoder's own code over a flat row of tokens."""
        new = [row.ids[row.computed : row.computed + count] for row, count in zip(rows, counts, strict=True)]
        ids_1N = torch.tensor([list(itertools.chain.from_iterable(new))], device=self._device)
        positions_N = self._cache.begin(counts)
        rotary = (self._rotary[0][positions_N], self._rotary[1][positions_N])
        hidden_ND = self.decoder(ids_1N, positions=positions_N, cache=self._cache, rotary=rotary)[0]
        self._cache.end(counts)
        ends = list(itertools.accumulate(counts))
        sampling, last = [], []
        for row, count, end in zip(rows, counts, ends, strict=True):
            if count and row.prompt_is_scored:
                self._read_prompt(row, hidden_ND[end - count : end])
            self._advance(row, count)
            if count and not row.pending:
                sampling.append(row)
                last.append(end - 1)
        self._counts["steps"] += 1
        if len(last) < len(hidden_ND):
            hidden_ND = hidden_ND[torch.tensor(last, dtype=torch.long, device=self._device)]
        return self.decoder.logits(hidden_ND), sampling

    def _advance(self, row: Row, count: int) -> None:
        """`count` more ids of a row are in the cache, which remembers its prompt when that is whole."""
        self._counts["prefill_tokens"] += count if row.pending > 1 or not row.past_prompt else 0
        row.computed += count
        if count and row.past_prompt and row.computed - count < row.prompt_tokens:
            self._remember(row)

    def _decode(self, rows: Sequence[Row]) -> Tensor:
        """`_forward` where every row has one token to go on from: compiled by torch, if there is a step for so many rows."""
        n = len(rows)
        size = self._compiled.bucket(n, self._cache.shape)
        positions_B, places, mask = self._cache.begin_decode(size or n)
        step = decode if size is None or mask.shape[-1] >= self._cache.shape[1] else self._compiled.ready[size]
        ids_1B = torch.tensor([[row.ids[-1] for row in rows] + [0] * len(positions_B[n:])], device=self._device)
        rotary = (self._rotary[0][positions_B], self._rotary[1][positions_B])
        logits_BV = step(self.decoder, ids_1B, rotary, self._cache.slots, places, mask, self._cache.shape[1])
        self._cache.end([1] * n)
        for row in rows:
            row.computed += 1
        self._counts["steps"] += 1
        return logits_BV[:n]

    def _native_step(self) -> native.NativeStep | None:
        """The step in C++ with the present weights, if there is one; compiled now unless that goes on in the background."""
        if not self._asked_native and native.fits(self.decoder):
            self._asked_native = True
            self._compile_native()
        if self._native is not None and self._packed != self.version:
            self._packed = self.version
            self._native.pack()
        return self._native

    def _read_prompt(self, row: Row, hidden_TD: Tensor) -> None:
        """Log-probabilities of the tokens of a prompt that follow those in `hidden_TD`."""
        if row.computed == 0:
            row.prompt_logprobs.append(math.nan)
            row.prompt_top += [()] if row.request.params.top_logprobs else []
        follow = torch.tensor(row.ids[row.computed + 1 : row.prompt_tokens][: len(hidden_TD)], device=self._device)
        for part_TD, part_T in zip(hidden_TD[: len(follow)].split(_LOGIT_ROWS), follow.split(_LOGIT_ROWS), strict=True):
            logprobs_TV = self.decoder.logits(part_TD).log_softmax(-1)
            row.prompt_logprobs += logprobs_TV.gather(1, part_T[:, None])[:, 0].tolist()
            if row.request.params.top_logprobs:
                row.prompt_top += [most_likely(logprobs_V, row.request.params.top_logprobs) for logprobs_V in logprobs_TV]

    def _sample(self, logits_BV: Tensor, rows: Sequence[Row]) -> dict[Row, FinishReason | UserError]:
        """The next token of each row; returns those that ended by it, and how. A constraint that fails ends its own row only."""
        if any(row.leader for row in rows):
            logits_BV, rows = _guided(logits_BV, rows)
        ended: dict[Row, FinishReason | UserError] = {}
        draws: list[Draw] = []
        drawn: list[int] = []
        for index, row in enumerate(rows):
            if not row.room:
                ended[row] = "length"
                continue
            with _caught(row, ended):
                if not self._force(row, ended):
                    allowed_V = None if row.progress is None else row.progress.allowed()
                    if allowed_V is not None:
                        allowed_V = allowed_V.to(self._device)
                    draws.append(Draw(row.request.params, uniform(row.seed, row.draws), row.history, allowed_V))
                    drawn.append(index)
        if not draws:
            return ended
        if len(drawn) < len(rows):
            logits_BV, rows = logits_BV[drawn], [rows[index] for index in drawn]
        sampled = sample(logits_BV, draws, self._blocked)
        for row, token, logprob, top in zip(rows, sampled.ids, sampled.logprobs, sampled.top, strict=True):
            row.draws += 1
            with _caught(row, ended):
                if not self._take(row, token, logprob, top, True, ended):
                    self._force(row, ended)
        return ended

    def _force(self, row: Row, ended: dict[Row, FinishReason | UserError]) -> bool:
        """Appends what the constraint leaves no choice about, to be computed with the next step; whether that is anything."""
        forced = [] if row.progress is None else row.progress.forced()
        for token in forced:
            if self._take(row, token, 0.0, (), False, ended):
                break
        return bool(forced)

    def _take(
        self, row: Row, token: int, logprob: float, top: Top, chosen: bool, ended: dict[Row, FinishReason | UserError]
    ) -> bool:
        """Adds a token, tells the listener, and returns whether it was the last; UserError where there is none."""
        refuse_nothing(token)
        for one in row.rows:
            one.ids.append(token)
        row.logprobs.append(logprob)
        row.learn.append(chosen)
        row.top.append(top)
        self._counts["tokens"] += 1
        if row.history is not None:
            row.history.add(token)
        stops = token in row.stop_ids
        # No stop string counts in a call or a thought; a thought that was asked for is no part of the text either.
        row.aside = row.progress is not None and self._asides.get(token, row.aside)
        hidden = isinstance(row.progress, ThoughtProgress) and row.progress.thinking
        text = "" if stops or hidden else row.stream.feed(self.vocabulary.bytes_of([token]), row.aside)
        complete = row.progress is not None and not stops and row.progress.accept(token)
        if stops or complete or row.stream.stopped:
            ended[row] = "stop"
        elif row.made >= row.room:
            ended[row] = "length"
        if row in ended:
            text += row.stream.finish()
        row.request.on_event(Token(token, logprob, top, text))
        return row in ended

    def _remember(self, row: Row) -> None:
        """Keeps the computed blocks of a row for others, unless the weights have changed since it began."""
        if row.version == self.version:
            self._cache.keep(self._scheduler.running.index(row), row.keys[: row.computed // BLOCK], row.held)

    def _finish(self, row: Row, reason: FinishReason) -> None:
        if row in self._scheduler.running:
            if reason != "abort" and self._cache.prefixes.blocks:
                row.keys = Prefixes.keys(row.ids[: row.computed], row.request.salt)
                self._remember(row)
            self._close(row)
        self._counts["aborted" if reason == "abort" else "finished"] += 1
        row.request.on_event(Finished(reason, row.completion(reason, self.version)))

    def _fail(self, row: Row, why: str | UserError) -> None:
        if row in self._scheduler.running:
            self._close(row)
        self._counts["failed"] += 1
        row.request.on_event(Failed(str(why), asked=isinstance(why, UserError)))

    def _let_go(self, rows: Sequence[Row]) -> None:
        """Ends the second rows of those whose guidance is over; they go on alone."""
        for row in rows:
            follower, guidance = row.follower, row.request.guidance
            if follower is None or guidance is None or guidance.last is None or row.made < guidance.last:
                continue
            row.follower = follower.leader = None
            self._close(follower)

    def _close(self, row: Row) -> None:
        """Takes a row out of the batch, and its follower; the last one moves into its slot."""
        rows = self._scheduler.running
        for one in row.rows:
            if one not in rows:
                continue
            slot = rows.index(one)
            self._cache.close(slot, one.held)
            last = rows.pop()
            if last is not one:
                rows[slot] = last


def _guided(logits_BV: Tensor, rows: Sequence[Row]) -> tuple[Tensor, list[Row]]:
    """The logits to sample from, without the rows of followers: they only say what their leaders' logits are measured against."""
    place = {row: index for index, row in enumerate(rows)}
    leaders = [row for row in rows if row.leader is None]
    logits_LV = logits_BV[[place[row] for row in leaders]]
    for index, row in enumerate(leaders):
        if row.follower is not None and row.request.guidance is not None and row.request.guidance.holds(row.made):
            bare_V = logits_BV[place[row.follower]]
            logits_LV[index] = row.request.guidance.mixed(logits_LV[index], bare_V)
    return logits_LV, leaders


@contextlib.contextmanager
def _caught(row: Row, ended: dict[Row, FinishReason | UserError]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        ended[row] = error
