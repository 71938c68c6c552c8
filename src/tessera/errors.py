"""The exceptions that a person is meant to read, and how a full disk is known."""

from __future__ import annotations

import errno
import os
import re
import signal


class UserError(Exception):
    """What was wrong, where, and what to write instead, in one sentence. It is printed, and the process ends with `exit_code`."""

    exit_code = 2


class RunFailed(UserError):
    """The same, where nothing was wrong with what was asked, but the run could not go on."""

    exit_code = 1


class Interrupted(BaseException):
    """A signal asked to stop. Not an `Exception`: what is made to survive a bad file must not survive this.

    Args:
        number: of the signal.
        step: after which a checkpoint was written; None where training had not begun or had ended.
        resumable: whether the run's folder is prepared, so that `--resume` goes on.
    """

    def __init__(self, number: int, step: int | None = None, resumable: bool = False) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}" + ("" if step is None else f" after step {step:,}"))
        self.number = number
        self.step = step
        self.resumable = resumable

    @property
    def exit_code(self) -> int:
        """As shells give it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


def disk_full(error: Exception) -> str | None:
    """The system's words where a write failed for want of room (full disk, quota, limit on the size of files), else None."""
    # safetensors wraps the system's error in a type of its own; its number stands in the text.
    found = re.search(r"os error (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    # numpy's `tofile`, by which it saves arrays and gguf its tensors, keeps no number at all.
    if isinstance(error, OSError) and re.fullmatch(r"\d+ requested and \d+ written", str(error)):
        number = errno.ENOSPC
    return os.strerror(number) if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None
