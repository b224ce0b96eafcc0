"""What goes wrong on a page: a status, and a sentence from the catalogues that says what to do."""

from __future__ import annotations

from pydantic import BaseModel


class ErrorBody(BaseModel):
    """What went wrong, as JSON."""

    error: str
    """For people, in the language that was asked for."""
    key: str
    """For programs: the text's name in the catalogues."""
    reference: str
    """Under which the station's log knows more."""


class PageError(Exception):
    """Ends a request with a page, or a JSON object, that says why and what to do.

    `key` names a text of the catalogues, `values` fill it in. `retry_s` becomes Retry-After.
    """

    def __init__(
        self, status: int, key: str, *, retry_s: int | None = None, **values: object
    ) -> None:
        super().__init__(f"{status} {key} {values}")
        self.status, self.key, self.values, self.retry_s = status, key, values, retry_s


class SignInNeeded(PageError):
    """Nobody is signed in: a page leads to the sign-in, JSON says 401."""

    def __init__(self) -> None:
        super().__init__(401, "errors.sign_in")


def not_found(key: str = "errors.not_found", **values: object) -> PageError:
    """404 with a text of the part that looked."""
    return PageError(404, key, retry_s=None, **values)


def conflict(key: str, **values: object) -> PageError:
    """409: what was sent was true of something that has changed meanwhile."""
    return PageError(409, key, retry_s=None, **values)
