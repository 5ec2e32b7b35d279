"""C++ as text: lines of code without comments, and without what stands in strings. Bounded in bytes, lines and time.

Enough of a tokenizer that neither a comment nor a string can pass for a call. The preprocessor is not followed, so code
that `#if` leaves out is read as code: what is read here is what a compiler wrote, or a stranger's claim.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

MAX_SOURCE_BYTES, MAX_LINES, MAX_TOKENS = 12_000_000, 300_000, 500_000
MAX_LINE = 20_000
"""Characters; longer lines hold packed layouts and no calls, and are left out."""
MAX_SECONDS = 10.0
# comments, raw strings, strings, characters: whichever begins first, and, if one has no end, to the end of the line
TOKEN = re.compile(
    r"//[^\n]*|/\*.*?(?:\*/|\Z)"
    r'|R"([^()\\\s"]{0,16})\(.*?(?:\)\1"|\Z)'
    r'|"(?:[^"\\\n]|\\.)*(?:"|$)'
    r"|'(?:[^'\\\n]|\\.)*(?:'|$)",
    re.DOTALL | re.MULTILINE,
)
SEPARATED_NUMBER = re.compile(r"\b\d[\da-fA-FxX]{0,40}(?:'[\da-fA-F]{1,40}){1,20}")


@dataclass(frozen=True)
class CodeLine:
    """A line without comments. text: as written; code: its strings blanked, so that only code can be found in it."""

    text: str
    code: str


class Deadline:
    """ValueError once reading has taken longer than it may."""

    def __init__(self, seconds: float = MAX_SECONDS) -> None:
        self.until = time.monotonic() + seconds

    def check(self) -> None:
        """Raise if it is over."""
        if time.monotonic() > self.until:
            raise ValueError(f"reading it takes longer than {MAX_SECONDS:.0f} s")


def code_lines(source: bytes, deadline: Deadline) -> Iterator[CodeLine]:
    """The lines that hold code, in order. ValueError if it is larger than any compiler's output, or takes too long."""
    if len(source) > MAX_SOURCE_BYTES or source.count(b"\n") > MAX_LINES:
        raise ValueError(f"{len(source) / 1e6:.0f} MB of C++ in {source.count(bytes([10]))} lines")
    text = source.decode(errors="replace").replace("\\\r\n", "").replace("\\\n", "")  # C++ joins these lines first
    text = SEPARATED_NUMBER.sub(lambda number: number[0].replace("'", ""), text)
    kept: list[str] = []
    blanked: list[str] = []
    at = 0
    for number, match in enumerate(TOKEN.finditer(text)):
        if number % 1000 == 0:
            deadline.check()
        if number > MAX_TOKENS:
            raise ValueError("more comments and strings than a compiler writes")
        between, token = text[at : match.start()], match[0]
        kept.append(between)
        blanked.append(between)
        at = match.end()
        if token.startswith(("//", "/*")):
            kept.append("\n" * token.count("\n") or " ")
            blanked.append(kept[-1])
        else:
            lines = token.count("\n")
            kept.append(token if not lines else '""' + "\n" * lines)
            blanked.append('""' + "\n" * lines)
    kept.append(text[at:])
    blanked.append(text[at:])
    written, code = "".join(kept).split("\n"), "".join(blanked).split("\n")
    for number, (line, bare) in enumerate(zip(written, code, strict=True)):
        if number % 1000 == 0:
            deadline.check()
        if len(line) <= MAX_LINE and not line.isspace() and not bare.lstrip().startswith("#"):
            yield CodeLine(line, bare)
