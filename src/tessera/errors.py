"""The exceptions that a person is meant to read."""


class UserError(Exception):
    """What was wrong, where, and what to write instead, in one sentence. The command line prints it and exits with `exit_code`."""

    exit_code = 2


class RunFailed(UserError):
    """The same, where nothing was wrong with what was asked, but the run could not go on."""

    exit_code = 1
