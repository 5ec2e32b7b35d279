"""How a command fails: two lines on standard error, what is wrong and what to do next, and an exit code.

0 done, 1 a stage failed or the machine did, 2 the input is at fault, 130 interrupted.
"""

import errno
import sys
from pathlib import Path

NO_SUCH_PATH = (errno.ENOENT, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.E2BIG)
INTERRUPTED = 130


def system_error(error: OSError, *, debug: bool) -> int:
    """What the system refuses: a path that is none is the user's mistake, a full disk or a permission is not."""
    place = f"{str(error.filename)[:200]}: " if error.filename else ""
    if error.errno in NO_SUCH_PATH:
        hint = "give the path of something that is there"
        return say_error(f"{place}{error.strerror or error}", hint, 2, error if debug else None)
    hint = "free some space or correct permissions there"
    return say_error(f"{place}{error.strerror or error}", hint, 1, error if debug else None)


def unforeseen(error: Exception) -> int:
    """What is said of an error that is none of raq's: a wrong option, a file that hides a library, a fault in raq."""
    usage = getattr(error, "format_message", None)  # typer's errors about options and arguments
    what = f"{type(error).__name__}: {error}"
    if usage is not None:
        return say_error(usage(), "see 'raq --help'", 2)
    if isinstance(error, RuntimeError) and "Symlink loop" in str(error):
        return say_error(str(error), "give a path that leads somewhere", 2)
    if hidden := _hidden_libraries():
        named = ", ".join(hidden)
        return say_error(f"{named} in the working folder hides a library of that name ({what})", "rename it", 2)
    return say_error(f"a fault in raq: {what}", "run it with --debug and report what it shows", 1)


def _hidden_libraries() -> list[str]:
    """Files of the working folder that were imported in place of the library whose name they have."""
    from raq.model.user_code import shadowing

    here = Path.cwd()
    loaded = {str(Path(file)) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    return [name for name in shadowing(here) if {str(here / name), str(here / name / "__init__.py")} & loaded]


def interrupted() -> int:
    """What is said when a command was interrupted: of a run, that what it has finished is not lost."""
    runs = sys.argv[1:2] in (["run"], ["submit"])
    hint = "finished stages are kept; the same command goes on from there" if runs else ""
    return say_error("interrupted", hint, INTERRUPTED)


def say_error(message: str, hint: str, code: int, error: BaseException | None = None) -> int:
    """Two lines on standard error; with an error, its traceback before them."""
    if error is not None:
        import traceback

        traceback.print_exception(error)
    message, hint = ("".join(c if c.isprintable() else " " for c in text) for text in (message, hint))
    sys.stderr.write(f"raq: {' '.join(message.split())}\n" + (f"     {' '.join(hint.split())}\n" if hint else ""))
    sys.stderr.flush()
    return code
