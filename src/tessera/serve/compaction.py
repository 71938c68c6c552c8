"""`/v1/responses/compact`: a long conversation becomes a short one that a small model can go on from.

Nothing is summarised: a small model's summary would be worth less than the words themselves. What is kept is chosen: all of
the system's and developer's messages, then from the newest turn back whole turns, or only the user's words of a turn, as far as
half of the model's context holds them. The user's messages are shown; the whole, in its order, is in one compaction item, which
only this server can read. Given back as input, the item stands for all of it, whether the shown messages come along or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tessera.serve.dialogue import prompt_ids
from tessera.serve.errors import invalid
from tessera.serve.items import conversation_of
from tessera.serve.models import Served
from tessera.serve.store import new_id
from tessera.serve.vault import Vault

_BEFORE_TURNS = ("system", "developer")


def expanded(vault: Vault, owner: str, items: Sequence[dict[str, Any]], param: str = "input") -> list[dict[str, Any]]:
    """Items with what each compaction stands for in its place; those before it that it holds itself are taken out.

    Raises:
        ApiError: 400, a compaction that was not made here for this owner.
    """
    whole: list[dict[str, Any]] = []
    for item in items:
        if item["type"] != "compaction":
            whole.append(item)
            continue
        try:
            held = vault.open(owner, item["encrypted_content"])
        except ValueError:
            raise invalid(
                "The encrypted content of a compaction could not be verified.", param, "invalid_encrypted_content"
            ) from None
        ids = {one["id"] for one in held}
        whole = [one for one in whole if one["id"] not in ids] + held
    return whole


def compacted(served: Served, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of `items`, in their order, that half of the model's context holds; of the last turn at least the user's words.

    Raises:
        ApiError: 400, the items are no conversation.
    """
    items = [item for item in items if item["type"] != "reasoning"]
    first = [item for item in items if item.get("role") in _BEFORE_TURNS]
    turns = _turns([item for item in items if item.get("role") not in _BEFORE_TURNS])
    room = served.context // 2 - _tokens(served, first)
    kept: list[dict[str, Any]] = []
    for age, turn in enumerate(reversed(turns)):
        words = [item for item in turn if item.get("role") == "user"]
        whole_tokens = _tokens(served, turn)
        if whole_tokens <= room:
            kept, room = turn + kept, room - whole_tokens
        elif words and (age == 0 or _tokens(served, words) <= room):
            kept, room = words + kept, room - _tokens(served, words)
        else:
            break
    return first + kept


def output_of(vault: Vault, owner: str, held: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is shown: the user's messages, then the compaction that holds everything."""
    sealed = {"id": new_id("cmp_"), "type": "compaction", "encrypted_content": vault.seal(owner, list(held))}
    return [*(item for item in held if item.get("role") == "user"), sealed]


def _turns(items: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Each from a user's message up to the next; a call and its result are in one, as nobody else may speak between them."""
    turns: list[list[dict[str, Any]]] = []
    for item in items:
        if not turns or item.get("role") == "user":
            turns.append([])
        turns[-1].append(item)
    return turns


def _tokens(served: Served, items: Sequence[dict[str, Any]]) -> int:
    return len(prompt_ids(served, conversation_of(items, None), param="input")) if items else 0
