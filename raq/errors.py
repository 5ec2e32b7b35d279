"""What can go wrong, as the user sees it: one line that says what, a second that says what to do.

Imports nothing of raq, torch or ray, so that any part may raise these and any process may unpickle them.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

OWN_ERROR = re.compile(r"^raq\.errors\.\w+: (.+)$", re.MULTILINE)  # in a trace, above the error's hint


class RaqError(Exception):
    """An error with a line for what is wrong and a line for what to do next.

    `exit_code` is what `raq` returns: 1 where a stage failed, 2 where the user's input is at fault.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)  # both as args: the error survives pickling between processes
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(hint)  # a traceback shows it

    def __str__(self) -> str:
        return self.message


class UserError(RaqError):
    """The input (experiment, data, weights, options, machine asked for) is at fault; exit code 2."""

    exit_code = 2


class StageError(RaqError):
    """A stage ran and failed; exit code 1."""


class LostError(RaqError):
    """Processes or nodes that a stage needs were lost, by no fault of its own: it may be tried again."""


def first_line(error: object) -> str:
    """The first line of what an error says; its type's name if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def last_message(error: object) -> str:
    """What an error from another process says last, after any trace: raq's own message, without the hint below it; else
    the last line, or the error's type if it says nothing."""
    own = OWN_ERROR.findall(str(error))
    if own:
        return str(own[-1])
    return next((line for line in reversed(str(error).strip().splitlines()) if line.strip()), type(error).__name__)


def first_problem(error: "ValidationError") -> tuple[str, str]:
    """Of what pydantic found wrong, the first: the key, with those that it is under, and what is wrong with it."""
    first = error.errors(include_url=False, include_input=False)[0]
    return ".".join(str(part)[:60] for part in first["loc"]), first["msg"]
