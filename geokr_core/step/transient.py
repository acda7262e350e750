"""Whether an error may be gone by itself: a network or a server that is away for a while, and not a file that is wrong.

What is wrong with a file, a parameter or a scene is the same in a minute: to try it again costs time and tells nothing new.
"""

import errno
from collections.abc import Iterator
from typing import Final

_ERRNOS: Final = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
        errno.ESTALE,
        errno.EPIPE,
    }
)
"""Network file systems that are away, and connections that broke."""

_KINDS: Final = frozenset({"ConnectionError", "Timeout", "TimeoutError", "NewConnectionError", "MaxRetryError"})
"""Names of classes of errors of the standard library, requests and urllib3; by name, so that none of these is loaded."""

_NOT_NOW: Final = (429, 502, 503, 504)
"""Answers of HTTP servers that are overloaded or starting."""

_BUSY: Final = (
    "database is locked",
    "connection refused",
    "could not connect",
    "server closed the connection",
    "timeout expired",
)
"""What databases say that are busy or away, within errors that stand for anything else, too."""


def is_transient(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, is that of a network or a server that is away.

    Args:
        error: as it was caught.
    """
    return any(_is(cause) for cause in _causes(error))


def _is(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & _KINDS:
        return True
    if "HTTPError" in names:  # the server answers: only that it cannot do so now passes by itself
        return getattr(getattr(error, "response", None), "status_code", 0) in _NOT_NOW
    return "OperationalError" in names and any(word in str(error).lower() for word in _BUSY)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
