"""A model that uses a tool of yours: writes examples to learn from, and then asks the served model and runs the tool for it.

    python docs/tools.py write tools.jsonl
    tessera posttrain sft --model starter --data tools.jsonl --out runs/clerk
    tessera serve runs/clerk
    python docs/tools.py ask --model clerk

`stock` is what you would replace; the loop around it is the one of any OpenAI client.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openai import OpenAI

GOODS = (
    "apples",
    "bikes",
    "books",
    "chairs",
    "cups",
    "hats",
    "keys",
    "lamps",
    "pens",
    "pots",
    "shirts",
    "shoes",
    "spoons",
    "tents",
)
ASKED = ("How many {} are there?", "Do we have {}?", "Count the {}, please.", "Are {} in stock?", "What is left of the {}?")
PLAIN = {
    "Hello!": "Hello! I look after the stock.",
    "Who are you?": "I look after the stock.",
    "Thank you.": "You are welcome.",
    "Thanks!": "You are welcome.",
    "What can you do?": "I count what is in stock.",
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "stock",
            "description": "Counts goods.",
            "parameters": {"type": "object", "properties": {"goods": {"type": "string"}}, "required": ["goods"]},
        },
    }
]


def stock(goods: str) -> str:
    """The tool. Yours would ask a data base; this one counts letters, so that whoever checks knows the answer."""
    return str(7 * len(goods) + len(goods) % 3)


def examples(count: int, seed: int) -> list[dict[str, Any]]:
    """Conversations as OpenAI's fine-tuning files have them; a quarter of them needs no tool, and no two count alike.

    A tool's result is drawn at random, so that it has to be read and cannot be learned by heart.
    """
    drawn = random.Random(seed)
    made: list[dict[str, Any]] = []
    while len(made) < count:
        if drawn.random() < 0.25:
            asked, answer = drawn.choice(list(PLAIN.items()))
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        else:
            goods, number = drawn.choice(GOODS), str(drawn.randrange(1, 100))
            call = {"id": "call_1", "type": "function", "function": {"name": "stock", "arguments": json.dumps({"goods": goods})}}
            turns = [
                {"role": "user", "content": drawn.choice(ASKED).format(goods)},
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": number},
                {"role": "assistant", "content": f"There are {number} {goods}."},
            ]
        made.append({"messages": turns, "tools": TOOLS})
    return made


def answered(client: OpenAI, model: str, question: str, run: Callable[[str], str], most: int = 3) -> tuple[str, list[str]]:
    """What the model says in the end, and what it asked the tool for on the way.

    Args:
        client: of a server.
        model: id.
        question: of the user.
        run: the tool.
        most: rounds; a model that goes on calling is not asked again, nor one whose call was cut off.
    """
    turns: list[Any] = [{"role": "user", "content": question}]
    called: list[str] = []
    for _ in range(most):
        kwargs: Any = {"tools": TOOLS, "temperature": 0, "max_completion_tokens": 60}
        said = client.chat.completions.create(model=model, messages=turns, **kwargs).choices[0].message
        if not said.tool_calls:
            return said.content or "", called
        turns.append(said.model_dump(exclude_none=True))
        for call in said.tool_calls:
            try:
                goods = str(json.loads(call.function.arguments)["goods"])
            except (ValueError, KeyError):  # cut off by max_completion_tokens: no server takes that back
                return "", [*called, call.function.arguments]
            called.append(goods)
            turns.append({"role": "tool", "tool_call_id": call.id, "content": run(goods)})
    return "", called


def ask(client: OpenAI, model: str) -> tuple[int, int]:
    """Asks each question of each thing, and the plain ones; how many ended rightly, and of how many."""
    right = total = 0
    for question, goods in [(words.format(goods), goods) for goods in GOODS for words in ASKED] + [
        (plain, "") for plain in PLAIN
    ]:
        answer, called = answered(client, model, question, stock)
        meant = f"There are {stock(goods)} {goods}." if goods else PLAIN[question]
        fine = answer == meant and called == ([goods] if goods else [])
        right, total = right + fine, total + 1
        if total % 15 == 1 or not fine:
            print(f"{question} {called} {answer!r}: {'right' if fine else 'wrong'}", flush=True)
    return right, total


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    does = parser.add_subparsers(dest="does", required=True)
    write = does.add_parser("write", help="examples, a line each")
    write.add_argument("path", type=Path)
    write.add_argument("--count", type=int, default=2000)
    write.add_argument("--seed", type=int, default=0)
    asks = does.add_parser("ask", help="a served model")
    asks.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    asks.add_argument("--model", default="clerk")
    asks.add_argument("--api-key", default="none")
    given = parser.parse_args(arguments)
    if given.does == "write":
        lines = (json.dumps(example) for example in examples(given.count, given.seed))
        given.path.write_text("".join(f"{line}\n" for line in lines))
        return 0
    with OpenAI(base_url=given.base_url, api_key=given.api_key) as client:
        right, total = ask(client, given.model)
    print(f"{right} of {total} right")
    return 0 if right == total else 1


if __name__ == "__main__":
    sys.exit(main())
