"""The one exception that means "the user can fix this"."""


class AttuneError(Exception):
    """A user's mistake or a bad input, told in one line: what was found, where, and the remedy.

    The command line prints the message without a traceback and exits with status 1; every other
    exception is a defect of ours and keeps its traceback.
    """

    alone = False
    """One of several processes may meet it by itself, so each one tells it, not the first alone."""


class MetAlone(AttuneError):
    """Of one of several processes, while the others cannot know."""

    alone = True


def one_line(error: object, limit: int = 200) -> str:
    """An error's text, of other libraries mostly, for a message of ours: in one line, shortened."""
    return " ".join(str(error).split())[:limit]
