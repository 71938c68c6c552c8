"""The exceptions that a person is meant to read."""

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
