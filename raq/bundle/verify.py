"""Is this the model that was evaluated, and does it compute here what it computed there? Exit code 0: yes to both.

`python verify.py`: first every file by its SHA-256, before any is imported; then the stored examples, bit for bit.
`python verify.py --min-sqnr-db 40`: outputs may differ by noise 40 dB below the signal, as on another kind of CPU.
"""

import argparse
import hashlib
import math
import platform
import runpy
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SUMS = "SHA256SUMS"
NEEDED = ("metadata.json", "examples.npz", "run.py", "loader.py", "verify.py")


def shown(value: object) -> str:
    """As text without what moves a cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def wrong_files() -> list[str]:
    """What is wrong with the files: changed, gone, or not listed in SHA256SUMS."""
    if not (HERE / SUMS).is_file():
        return [f"{SUMS} is gone"]
    lines = (HERE / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    there = {
        path.relative_to(HERE).as_posix()
        for path in HERE.rglob("*")
        if path.is_file() and "__pycache__" not in path.relative_to(HERE).parts
    }
    found = [f"{name} is not listed" for name in sorted(({*NEEDED} | there) - {*listed, SUMS})]
    for name, digest in listed.items():
        path = HERE / name
        if not path.is_file():
            found.append(f"{name} is gone")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            found.append(f"{name} is another")
    return found


def sqnr_db(wanted: Any, found: Any) -> float:
    """10 log10 of signal power over noise power; infinite if the two are equal."""
    import numpy as np

    if not (np.isfinite(wanted).all() and np.isfinite(found).all()):
        return -math.inf
    signal, noise = (float(np.square(each.astype(np.float64)).sum()) for each in (wanted, found - wanted))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def cpu() -> str:
    """This machine's, as Linux names it; elsewhere its architecture."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text(errors="replace").splitlines() if known.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def main() -> int:
    """Print what is found; the exit code: 0 if it is the same, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--min-sqnr-db", type=float, help="least distance of the outputs; without it: bit for bit")
    least = parser.parse_args().min_sqnr_db
    wrong = wrong_files()
    if wrong:
        print(f"NOT the files that were evaluated: {shown(', '.join(wrong))}")
        return 1
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != HERE]  # libraries are elsewhere
    import numpy as np

    own = runpy.run_path(str(HERE / "run.py"))
    kept = own["ABOUT"]["examples"]
    inputs, wanted = own["examples"]()
    found = own["load"](kept["threads"])(*inputs)
    if found.shape != wanted.shape:
        print(f"DIFFERENT: outputs of shape {list(found.shape)}, stored are {list(wanted.shape)}")
        return 1
    if np.array_equal(found, wanted):
        print(f"the same: files by SHA-256, {len(found)} of {len(found)} examples bit for bit")
        return 0
    distance = sqnr_db(wanted, found)
    print(
        f"DIFFERENT outputs, {distance:.1f} dB. Stored were those on {shown(kept['cpu'])} with {kept['threads']} "
        f"threads; this is {shown(cpu())}. Other kinds of CPU use other kernels, which round otherwise."
    )
    if least is None:
        return 1
    print("within" if distance >= least else "NOT within", f"the {least:g} dB asked for")
    return 0 if distance >= least else 1


if __name__ == "__main__":
    sys.exit(main())
