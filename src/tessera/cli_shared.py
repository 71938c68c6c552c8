"""What the pages of the command line share: arguments that several commands take, and how a command is stopped."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Annotated

import typer

from tessera.device import is_first
from tessera.errors import Interrupted

RecipeArgument = Annotated[str, typer.Argument(help="Name of a shipped recipe (see `tessera recipes`) or path of a .yaml page.")]
BudgetOption = Annotated[str | None, typer.Option(help="90s, 6m, 2h; 1e17 (FLOPs); 50Mtok; $20. Instead of the recipe's.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Sets a field of the recipe; repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ForecastOption = Annotated[
    bool | None,
    typer.Option(
        "--forecast/--no-forecast",
        help="Train a ladder of small runs first and seal what it foretells; by default where a law can be expected to hold.",
        show_default=False,
    ),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the run's folder.")]
ModelArgument = Annotated[str, typer.Argument(help="A run's folder, a Hugging Face folder, or starter, the model in the box.")]


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Imports within take a sixth less time: what they make is here to stay, and is never looked through for garbage."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def stop_in_words() -> None:
    """From here on Ctrl-C and SIGTERM end the command in a sentence; what it was writing aside is cleared away."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    def again(ignored: sys.UnraisableHookArgs) -> None:
        # Raised within a finaliser, as an import has many, it would be printed and forgotten.
        if isinstance(ignored.exc_value, Interrupted):
            threading.Timer(0.05, os.kill, (os.getpid(), ignored.exc_value.number)).start()
        else:
            sys.__unraisablehook__(ignored)

    # The others of several processes wait for the first inside a C call, where no handler runs; they simply end.
    if is_first():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        sys.unraisablehook = again
