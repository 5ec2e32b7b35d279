"""Which symbols a shared library imports, from the dynamic symbol table of its ELF file. The library is not loaded."""

import struct
from collections.abc import Iterator
from typing import IO

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from raq.artifact.cpp import Deadline

MAGIC = b"\x7fELF"
MACH_O, PE = (b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"), b"MZ"
MAX_SYMBOLS, MAX_NAME, MAX_TABLE_BYTES, MAX_SECTIONS = (
    100_000,
    1000,
    20_000_000,
    1000,
)  # far beyond what the compiler makes
SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, info, other, section, value, size
UNDEFINED = 0


def imported_symbols(file: IO[bytes], deadline: Deadline) -> set[str] | None:
    """Names of the undefined symbols of a library's .dynsym; None for a library of macOS or Windows (Mach-O, PE).

    Raises ValueError if the file is no library, or an ELF file that is damaged, has no .dynsym, or is not 64-bit
    little-endian.
    """
    file.seek(0)
    beginning = file.read(4)
    if beginning in MACH_O or beginning[:2] == PE:
        return None
    if beginning != MAGIC:
        raise ValueError("its native code is no library")
    try:
        return set(_undefined(ELFFile(file), deadline))
    except (ELFError, ConstructError, AttributeError, KeyError, TypeError, OverflowError, AssertionError) as error:
        raise ValueError(f"its native code is a damaged ELF file: {type(error).__name__}") from None


def _undefined(library: ELFFile, deadline: Deadline) -> Iterator[str]:
    if library.elfclass != 64 or not library.little_endian or library.num_sections() > MAX_SECTIONS:
        raise ValueError("its native code is not a library as the compiler makes it")
    table = library.get_section_by_name(".dynsym")
    if not isinstance(table, SymbolTableSection):
        raise ValueError("its native code has no dynamic symbol table")
    strings = table.stringtable
    if max(table["sh_size"], strings["sh_size"]) > MAX_TABLE_BYTES or table["sh_size"] > MAX_SYMBOLS * SYMBOL.size:
        raise ValueError("its native code has too many symbols")
    names, symbols = strings.data(), table.data()
    for number, (at, _, _, section, _, _) in enumerate(
        SYMBOL.iter_unpack(symbols[: len(symbols) // SYMBOL.size * SYMBOL.size])
    ):
        if number % 1000 == 0:
            deadline.check()
        end = names.find(b"\0", at, at + MAX_NAME)
        if section == UNDEFINED and end > at:
            yield names[at:end].decode(errors="replace")
