"""`POST /v1/completions`: a text or ids in, what follows out; with `suffix`, what belongs between the two.

Evaluation harnesses read here what a model thinks of a given text: `echo` with `logprobs`.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.responses import Response

from tessera.engine.request import Finished, Token
from tessera.engine.stream import TextStream
from tessera.errors import UserError
from tessera.serve import bodies
from tessera.serve.chat import StreamOptions, checked_bias, system_fingerprint
from tessera.serve.context import Here, in_thread
from tessera.serve.dialogue import refuse_endless, room_for
from tessera.serve.errors import invalid
from tessera.serve.generation import Generation, Order, unless_left
from tessera.serve.models import Served, now
from tessera.serve.store import new_id
from tessera.serve.streams import DONE, MAY_STREAM, EventStream, event
from tessera.tokens.prompts import fill_prompt

router = APIRouter(tags=["completions"])

TokenId = Annotated[int, Field(ge=0)]
Prompt = str | list[str] | list[TokenId] | list[list[TokenId]]
_MOST_PROMPTS = 2048


class CompletionRequest(bodies.Sampled):
    """The body of `POST /v1/completions`."""

    model: str
    prompt: Prompt | None = None  # the beginning of a document
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None
    echo: bool = False
    frequency_penalty: bodies.Penalty = 0.0
    presence_penalty: bodies.Penalty = 0.0
    logit_bias: bodies.LogitBias = {}
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] = 16
    n: Annotated[int, Field(ge=1, le=128)] = 1
    stop: bodies.Stop | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    suffix: str | None = None
    user: str | None = None


@router.post("/v1/completions", responses=MAY_STREAM)
async def create(body: CompletionRequest, here: Here) -> Response:
    """Continues one or many texts."""
    served = await here.model(body.model)
    orders = await in_thread(_orders, served, body)
    run = _Run(body, served, orders, Generation.start(served, orders, here.caller, body.best_of or body.n))
    if body.stream:
        return EventStream(_stream(run))
    async with run.generation:
        return JSONResponse(await unless_left(here.request, run.whole()))


def prompts_of(
    served: Served, prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], param: str
) -> list[list[int]]:
    """The ids of each prompt.

    Raises:
        ApiError: 400, an id that the model does not have; no or too many prompts; a text that cannot fit.
    """
    several: Sequence[Any] = [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else prompt
    if not 1 <= len(several) <= _MOST_PROMPTS:
        raise invalid(f"There must be 1 to {_MOST_PROMPTS} prompts, not {len(several)}.", param)
    prompts = []
    for one in several:
        if isinstance(one, str):
            refuse_endless(served, [one], param)
        ids = served.vocabulary.encode_prompt(one) if isinstance(one, str) else list(one)
        if ids and not 0 <= max(ids) < served.vocabulary.size:
            raise invalid(f"This model has the token ids 0 to {served.vocabulary.size - 1}.", param)
        prompts.append(ids or [served.vocabulary.end_id])
    return prompts


def _orders(served: Served, body: CompletionRequest) -> list[Order]:
    """`best_of` completions of each prompt, one prompt after the other."""
    best_of = body.best_of or body.n
    if best_of < body.n:
        raise invalid(f"'best_of' must be at least 'n', {body.n}.", "best_of")
    if body.stream and best_of > body.n:
        raise invalid("'best_of' cannot be streamed.", "best_of")
    if body.stream and body.echo and body.logprobs is not None:
        raise invalid("'echo' with 'logprobs' cannot be streamed.", "stream")
    if body.max_tokens == 0 and not body.echo:
        raise invalid("'max_tokens' must be at least 1 without 'echo'.", "max_tokens")
    if body.suffix is not None:
        if body.echo:
            raise invalid("'suffix' and 'echo' do not go together.", "suffix")
        if not isinstance(body.prompt, str):
            raise invalid("'suffix' needs a prompt that is one text.", "suffix")
        try:
            prompts = [
                fill_prompt(
                    served.vocabulary, body.prompt, body.suffix, served.context - min(body.max_tokens, served.context // 2)
                )
            ]
        except UserError:
            message = "This model was not trained to fill in the middle; `data.fill_in_the_middle` in a recipe brings it."
            raise invalid(message, "suffix", "unsupported_parameter") from None
    elif body.prompt is None:
        prompts = [[served.vocabulary.end_id]]
    else:
        prompts = prompts_of(served, body.prompt, "prompt")
    bias = checked_bias(served, body.logit_bias)
    orders = []
    for prompt in prompts:
        params = body.sampling(
            best_of,
            max_tokens=room_for(served, prompt, body.max_tokens, "prompt"),
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            bias=bias,
            stop=bodies.stop_strings(body.stop),
            top_logprobs=body.logprobs,
        )
        reads = body.echo and (body.logprobs is not None or body.max_tokens == 0)
        orders += [Order(prompt, one, prompt_logprobs=reads) for one in params]
    return orders


class _Text:
    """One completion while it comes: its text, and its tokens with their places in the text."""

    def __init__(self, run: _Run, prompt: Sequence[int]) -> None:
        self.text = ""
        self.finish_reason = "length"
        self.sampled: list[Token] = []
        self._run = run
        self._stream = TextStream(run.stop)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._placed = 0
        self.prompt = prompt
        self.prompt_tokens: Sequence[Token | None] = ()

    def feed(self, token: Token) -> str:
        """The text that became certain."""
        self.sampled.append(token)
        new = self._stream.feed(self._run.served.vocabulary.bytes_of([token.id]))
        self.text += new
        return new

    def finish(self, finished: Finished) -> str:
        """What was held back."""
        self.finish_reason = finished.reason
        done = finished.completion
        if done.prompt_logprobs is not None:
            tops = done.prompt_top or [()] * len(self.prompt)  # logprobs=0 asks for none beside each token's own
            triples = zip(self.prompt, done.prompt_logprobs.tolist(), tops, strict=True)
            told = [Token(id, logprob, top, "") for id, logprob, top in triples]
            self.prompt_tokens = [None, *told[1:]]  # nothing foretells the first
        new = self._stream.finish()
        self.text += new
        return new

    @property
    def mean_logprob(self) -> float:
        """For `best_of`."""
        return sum(token.logprob for token in self.sampled) / max(len(self.sampled), 1)

    def logprobs(self, tokens: Sequence[Token | None], ids: Sequence[int]) -> dict[str, Any]:
        """In the form of the API, of the tokens behind those of the last call; one without a prediction before it has None."""
        served = self._run.served
        texts = [served.token_text(id) for id in ids]
        offsets = []
        for id in ids:
            # The place of the character that it begins or goes on with: one may take several tokens, a control token none.
            offsets.append(self._placed)
            self._placed += len(self._characters.decode(served.vocabulary.bytes_of([id])))
        tops = [
            None if token is None else {served.token_text(id): logprob for id, logprob in (*token.top, (token.id, token.logprob))}
            for token in tokens
        ]
        values = [None if token is None else token.logprob for token in tokens]
        return {"tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


class _Run:
    """The completions of one request."""

    def __init__(self, body: CompletionRequest, served: Served, orders: Sequence[Order], generation: Generation) -> None:
        self.body = body
        self.served = served
        self.generation = generation
        self.best_of = body.best_of or body.n
        self.stop = bodies.stop_strings(body.stop)
        generation.usage.prompt = sum(len(order.prompt) for order in orders[:: self.best_of])
        self.texts = [_Text(self, order.prompt) for order in orders]
        self.head = {"id": new_id("cmpl-"), "object": "text_completion", "created": now(), "model": served.name}
        self.tail = {"system_fingerprint": system_fingerprint(served)}

    async def whole(self) -> dict[str, Any]:
        """All completions."""
        async for index, happened in self.generation.events():
            if isinstance(happened, Finished):
                self.texts[index].finish(happened)
            else:
                self.texts[index].feed(happened)
        choices: list[dict[str, Any]] = []
        for start in range(0, len(self.texts), self.best_of):
            group = sorted(self.texts[start : start + self.best_of], key=lambda text: -text.mean_logprob)
            chosen = group[: self.body.n] if self.best_of > self.body.n else self.texts[start : start + self.best_of]
            choices += [self._choice(text, len(choices) + i) for i, text in enumerate(chosen)]
        return self.head | {"choices": choices, "usage": self.generation.usage.of_chat()} | self.tail

    def _choice(self, text: _Text, index: int) -> dict[str, Any]:
        given = self.served.vocabulary.decode_text(text.prompt) if self.body.echo else ""
        logprobs = None
        if self.body.logprobs is not None:
            ids = [token.id for token in text.sampled]
            tokens: list[Token | None] = list(text.sampled)
            if self.body.echo:
                ids, tokens = [*text.prompt, *ids], [*text.prompt_tokens, *tokens]
            logprobs = text.logprobs(tokens, ids)
        return {"index": index, "text": given + text.text, "logprobs": logprobs, "finish_reason": text.finish_reason}


async def _stream(run: _Run) -> AsyncGenerator[bytes]:
    options = run.body.stream_options or StreamOptions()
    usage = {"usage": None} if options.include_usage else {}
    waiting: list[list[Token]] = [[] for _ in run.texts]  # tokens that have made no text yet

    def chunk(index: int, text: str, tokens: Sequence[Token], reason: str | None = None) -> bytes:
        logprobs = None
        if run.body.logprobs is not None and tokens:
            logprobs = run.texts[index].logprobs(tokens, [token.id for token in tokens])
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return event(run.head | {"choices": [choice]} | run.tail | usage)

    async with run.generation:
        if run.body.echo:
            for index, text in enumerate(run.texts):
                yield chunk(index, run.served.vocabulary.decode_text(text.prompt), ())
        async for index, happened in run.generation.events():
            if isinstance(happened, Finished):
                left = run.texts[index].finish(happened)
                yield chunk(index, left, waiting[index], run.texts[index].finish_reason)
                continue
            waiting[index].append(happened)
            if new := run.texts[index].feed(happened):
                yield chunk(index, new, waiting[index])
                waiting[index].clear()
        if options.include_usage:
            yield event(run.head | {"choices": [], "usage": run.generation.usage.of_chat()} | run.tail)
    yield DONE
