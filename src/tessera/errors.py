"""The one exception a person is meant to read."""


class UserError(Exception):
    """What was wrong, where, and what to write instead, in one sentence. The command line prints it and exits with 2."""
