"""What can go wrong, as the user sees it: one line that says what, a second that says what to do.

Imports nothing of raq, torch or ray, so that any part may raise these and any process may unpickle them.
"""


class RaqError(Exception):
    """An error with a line for what is wrong and a line for what to do next.

    `exit_code` is what `raq` returns: 1 where a stage failed, 2 where the user's input is at fault.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)  # both as args: the error survives pickling between processes
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UserError(RaqError):
    """The input (experiment, data, weights, options, machine asked for) is at fault; exit code 2."""

    exit_code = 2


class StageError(RaqError):
    """A stage ran and failed; exit code 1."""


class LostError(RaqError):
    """Processes or nodes that a stage needs were lost, by no fault of its own: it may be tried again."""
