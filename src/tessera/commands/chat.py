"""`tessera chat`: a dialogue with a model at the terminal; a model that does not know its turns continues the text instead."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field, replace

from tessera.commands import terminal
from tessera.commands.generate import open_engine
from tessera.engine.engine import Engine
from tessera.engine.request import Request
from tessera.engine.sampling import SamplingParams
from tessera.engine.thinking import Thought, budgets_of, refusal, speaks_dialogue, thought
from tessera.errors import UserError
from tessera.tokens import chat as chats
from tessera.tokens.vocabulary import Vocabulary


@dataclass
class Dialogue:
    """The ids of a conversation so far, turn by turn. Answers stay as they were sampled and are never tokenised again.

    Args:
        vocabulary: of the model.
        tuned: turns are marked as in `tokens.chat`; False: all is one running text.
        room: ids that a prompt may have.
        effort: with which answers are thought about; none: they come at once.
    """

    vocabulary: Vocabulary
    tuned: bool
    room: int
    effort: str = ""
    turns: list[list[int]] = field(default_factory=list)

    def ask(self, text: str) -> list[int]:
        """Adds what the person says and returns the prompt: the latest turns that fit, at least this one."""
        if self.tuned:
            question = chats.render([chats.Message("user", text)], add_generation_prompt=True, effort=self.effort)
            self.turns.append(self.vocabulary.encode(question).ids.tolist())
        else:
            self.turns.append(self.vocabulary.encode_text(text))
        while len(self.turns) > 1 and sum(map(len, self.turns)) > self.room:
            # A question leaves together with its answer, so that the oldest turn left is a question.
            del self.turns[: 2 if len(self.turns) > 2 else 1]
        begin = [] if self.tuned else self.vocabulary.begin_ids
        return [*begin, *(token for turn in self.turns for token in turn)]

    def answer(self, ids: list[int]) -> None:
        """Adds what the model said."""
        if self.tuned and ids[-1:] != [self.vocabulary.end_turn_id]:
            ids = [*ids, self.vocabulary.end_turn_id]
        self.turns.append(ids)


def chat(
    model: str,
    max_tokens: int = 256,
    temperature: float = 0.8,
    top_p: float = 1.0,
    seed: int | None = None,
    effort: str | None = None,
) -> None:
    """Reads lines from standard input and prints an answer to each, until the input ends or Ctrl-C.

    Ctrl-C while the model speaks stops its answer only.

    Args:
        model: a run's folder or a Hugging Face folder.
        max_tokens: of an answer, beside its thought, which is not printed.
        effort: how long to think before each answer, or `none`; None: a middle effort where the model has some.

    Raises:
        UserError: no model, an effort that it does not have, or settings out of range.
    """
    budgets = budgets_of(model)
    effort = ("medium" if "medium" in budgets else next(iter(budgets), "none")) if effort is None else effort
    if effort != "none" and effort not in budgets:
        raise UserError(f"--effort {effort}: {refusal(budgets, effort)}")
    params = SamplingParams(max_tokens, temperature, top_p=top_p, seed=seed)
    engine = open_engine(model)
    tuned = speaks_dialogue(model, engine.vocabulary)
    context = engine.decoder.config.context
    think = None if effort == "none" else thought(engine.vocabulary, budgets, effort)
    params = replace(params, max_tokens=max_tokens + (think.tokens if think else 0))
    room = context - min(params.max_tokens, context // 2)
    dialogue = Dialogue(engine.vocabulary, tuned, room, "" if think is None else effort)
    asks = sys.stdin.isatty()
    if asks:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() its line editing and history
    if not tuned:
        print("This model knows no dialogue in Tessera's turns: it continues your text. Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            line = input("> ") if asks else terminal.read_standard_input(line=True)
        except (EOFError, KeyboardInterrupt):
            if asks:
                print()
            return
        if line.strip():
            _turn(engine, dialogue, line, params, think)


def _turn(engine: Engine, dialogue: Dialogue, line: str, params: SamplingParams, think: Thought | None) -> None:
    said: list[int] = []

    def show(index: int, token: int, text: str) -> None:
        said.append(token)
        terminal.write(text)

    prompt = dialogue.ask(line)
    # Only a running text may be empty of ids: a line that the vocabulary has no bytes for.
    cut = 0
    with contextlib.suppress(KeyboardInterrupt):
        cut = engine.complete([Request(tuple(prompt or [engine.vocabulary.end_id]), params, think)], show)[0].cut_tokens
    print()
    if cut:
        print(
            f"(Your line was longer than what this model reads at once; its first {cut:,} tokens were left out.)", file=sys.stderr
        )
    dialogue.answer(said)
