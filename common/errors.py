"""The one exception that means "the user can fix this"."""


class AttuneError(Exception):
    """A user's mistake or a bad input, reported in one line: what was found, where, what to do.

    The command line prints the message without a traceback and exits with status 1. Every other
    exception is a defect of Attune and keeps its traceback.
    """

    every_rank_reports = False
    """Whether each process reports it, and not only rank 0, because it may happen in only one."""


class MetAlone(AttuneError):
    """An error of one process that the other processes cannot know about."""

    every_rank_reports = True


def one_line(error: object, limit: int = 200) -> str:
    """The text of another library's error in one line, shortened, for a message of ours."""
    return " ".join(str(error).split())[:limit]
