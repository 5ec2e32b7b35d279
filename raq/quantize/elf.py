"""Which functions a shared library imports, from the dynamic symbol table of its ELF file. Nothing of it is loaded."""

from collections.abc import Iterator
from typing import IO

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

MAGIC = b"\x7fELF"
MACH_O, PE = (b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"), b"MZ"
MAX_SYMBOLS, MAX_NAME = 100_000, 4096
MAX_SECTIONS = 1000


def imported_symbols(file: IO[bytes]) -> set[str] | None:
    """Names of the undefined symbols of a library's .dynsym; None for a library of another system (Mach-O, PE).

    Raises ValueError for what is no library, and for an ELF file that is damaged or has no such table.
    """
    file.seek(0)
    beginning = file.read(4)
    if beginning in MACH_O or beginning[:2] == PE:
        return None
    if beginning != MAGIC:
        raise ValueError("its native code is no library")
    try:
        return set(_undefined(ELFFile(file)))
    except (ELFError, ConstructError, AttributeError, KeyError, TypeError, OverflowError, AssertionError) as error:
        raise ValueError(f"its native code is a damaged ELF file: {type(error).__name__}") from None


def _undefined(library: ELFFile) -> Iterator[str]:
    if library.num_sections() > MAX_SECTIONS:
        raise ValueError("its native code has too many sections")
    table = library.get_section_by_name(".dynsym")
    if not isinstance(table, SymbolTableSection) or table["sh_entsize"] == 0:
        raise ValueError("its native code has no dynamic symbol table")
    if table.num_symbols() > MAX_SYMBOLS:
        raise ValueError("its native code has too many symbols")
    for symbol in table.iter_symbols():
        if symbol["st_shndx"] == "SHN_UNDEF" and 0 < len(symbol.name) <= MAX_NAME:
            yield symbol.name
