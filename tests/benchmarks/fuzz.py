"""Strangers' files by the thousand: YAML through the loader, records through show, compare, plan and run, artifacts
through check.

    uv run python tests/benchmarks/fuzz.py [--only yaml,records,artifacts] [--counts 3000,1000,300]

One real run of a tiny experiment is made first. Every verb runs in this process; counted are raw exceptions, escape
sequences and other unprintable characters, exit codes that are none of raq's for such input, the longest time and the
most memory of one case. `raq run` is tried where a plan finds nothing stale, else it would do the stale stages. The
record goes to results/reference/fuzz.json.
"""

import argparse
import io
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from mutations import as_json, mutated, mutated_bytes, mutated_text  # noqa: E402
from workplace import make_workplace  # noqa: E402

from raq.environment import environment  # noqa: E402
from raq.errors import UserError  # noqa: E402
from raq.store.files import digest, now, write_json  # noqa: E402

EXPERIMENT = """
name: fuzz
data: {name: digits, train_limit: 256, test_limit: 100}
model: {name: resnet20-cifar}
train: {epochs: 1, progressive: [], batch_size: 32}
ptq: {calibration: {size: 32}}
qat: {epochs: 1, batch_size: 32}
bench: {batch_sizes: [1, 8], rounds: 6, precision: null, round_ms: 5, warmup: 1}
"""
FILE = ROOT / "results" / "reference" / "fuzz.json"
MAX_LINE = 2000


class Found:
    """What the cases of one kind came to."""

    def __init__(self) -> None:
        self.cases, self.longest_s, self.codes = 0, 0.0, Counter[str]()
        self.wrong: Counter[str] = Counter()
        self.before = resident_bytes()
        self.most = self.before

    def case(self, do: Callable[[], str]) -> None:
        """Do one case; it returns the word to count it under."""
        self.cases += 1
        started = time.perf_counter()
        try:
            self.codes[do()] += 1
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            self.wrong[f"{type(error).__name__}: {str(error)[:150]} ({last.filename}:{last.lineno})"] += 1
        took = time.perf_counter() - started
        self.longest_s = max(self.longest_s, took)
        self.most = max(self.most, resident_bytes())

    def as_plain(self) -> dict[str, Any]:
        return {
            "cases": self.cases, "wrong": dict(self.wrong.most_common()), "ended": dict(self.codes),
            "longest_s": round(self.longest_s, 2), "memory_growth_mb": round((self.most - self.before) / 1e6),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        }  # fmt: skip


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def verb(*arguments: str, codes: tuple[int, ...] = (0, 2)) -> str:
    """Run a verb here; AssertionError for what no user should see."""
    from raq.cli.main import main

    output, before, code = io.StringIO(), sys.argv, 0
    sys.argv = ["raq", *arguments]
    try:
        with redirect_stdout(output), redirect_stderr(output):
            main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.argv = before
    text = output.getvalue()
    fault = re.search(r"a fault in raq: (.*)", text)
    assert fault is None, fault and fault[1][:200]
    assert code in codes, f"exit code {code}: {text[-200:]}"
    assert all(c.isprintable() or c == "\n" for c in text), "an unprintable character"
    assert code == 0 or all(len(line) < MAX_LINE for line in text.splitlines()), "a line longer than anyone reads"
    return f"{arguments[0]} {code}"


def many(count: int, strategy: Any, do: Callable[[Any], None]) -> None:
    """Do something with that many values of a strategy."""

    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def run(value: Any) -> None:
        do(value)

    run()


def yaml_files(count: int, folder: Path) -> Found:
    from raq.experiment.load import load_experiment

    found, path = Found(), folder / "strange.yaml"
    texts = [file.read_text() for file in sorted((ROOT / "experiments").glob("*.yaml"))]

    def load() -> str:
        try:
            load_experiment(path)
        except UserError as error:
            assert len(error.message) < MAX_LINE and len(error.hint) < MAX_LINE, "a line longer than anyone reads"
            return "refused"
        return "taken"

    def one(text: str) -> None:
        path.write_bytes(text.encode(errors="surrogatepass"))
        found.case(load)

    many(count, st.sampled_from(texts).flatmap(mutated_text), one)
    return found


def records(count: int, place: Any) -> Found:
    found = Found()
    results = place.folder / "results"
    whole = place.folder / "whole"  # the same results, in which nothing is changed: to compare with
    shutil.copytree(results, whole, dirs_exist_ok=True)
    other = str(max(whole.glob("runs/*")))
    files = sorted([*results.glob("stages/*/record.json"), *results.glob("runs/*/run.json")])
    contents = {str(file): file.read_text() for file in files}

    def one(drawn: tuple[str, Any, bool]) -> None:
        name, record, reseal = drawn
        try:
            seal = digest({key: value for key, value in record.items() if key != "seal"}) if reseal else None
            text = as_json({**record, "seal": seal} if reseal else record)
        except (TypeError, ValueError, AttributeError):
            text = as_json(record)
        Path(name).write_text(text)
        try:
            for arguments in (("show",), ("show", "--json"), ("compare", "latest", other), ("plan", "tiny.yaml")):
                found.case(partial(verb, *arguments))
            found.case(run_if_nothing_is_stale)
        finally:
            Path(name).write_text(contents[name])

    def run_if_nothing_is_stale() -> str:
        from raq.plan.prepare import prepare
        from raq.plan.stale import stale_stages
        from raq.store.opening import open_store

        if stale_stages(prepare(Path("tiny.yaml"), []).plan, open_store("results")):
            return "run: would do the damaged stage again"
        return verb("run", "tiny.yaml", codes=(0, 1, 2))

    strategy = st.sampled_from(sorted(contents)).flatmap(
        lambda name: st.tuples(st.just(name), mutated(json.loads(contents[name])), st.sampled_from((True, True, False)))
    )
    many(count, strategy, one)
    return found


def artifacts(count: int, place: Any, folder: Path) -> Found:
    import zipfile

    found = Found()
    originals = sorted(place.folder.glob("results/stages/lower-*/artifact.*"))
    contents = [file.read_bytes() for file in originals]
    sources = []
    for file in originals:
        if file.suffix == ".pt2":
            with zipfile.ZipFile(file) as package:
                sources += [(file, name) for name in package.namelist()]

    def whole(content: bytes) -> None:
        (folder / "strange").write_bytes(content)
        found.case(lambda: verb("check", str(folder / "strange"), codes=(0, 1, 2)))

    def member(drawn: tuple[tuple[Path, str], bytes]) -> None:
        (file, changed), content = drawn
        with zipfile.ZipFile(file) as old, zipfile.ZipFile(folder / "strange", "w") as new:
            for entry in old.infolist():
                new.writestr(entry, content if entry.filename == changed else old.read(entry.filename))
        found.case(lambda: verb("check", str(folder / "strange"), codes=(0, 1, 2)))

    def read(source: tuple[Path, str]) -> bytes:
        with zipfile.ZipFile(source[0]) as package:
            return package.read(source[1]) or b"\0"

    many(count // 3, st.sampled_from(contents).flatmap(mutated_bytes), whole)
    many(
        count - count // 3 - len(HOSTILE),
        st.sampled_from(sources).flatmap(lambda s: st.tuples(st.just(s), mutated_bytes(read(s)))),
        member,
    )
    for make in HOSTILE:
        make(originals[0], folder / "strange")
        found.case(lambda: verb("check", str(folder / "strange"), codes=(0, 1, 2)))
    return found


def _with_source(original: Path, path: Path, content: bytes, compress: int = 0) -> None:
    import zipfile

    with zipfile.ZipFile(original) as old, zipfile.ZipFile(path, "w", compress) as new:
        for entry in old.infolist():
            changed = entry.filename.endswith(".wrapper.cpp")
            new.writestr(entry.filename, content if changed else old.read(entry.filename))


def _emptied_to(path: Path, size: int) -> None:
    """So many zeros in its place, which take no room."""
    os.truncate(path, 0)
    os.truncate(path, size)


HOSTILE: list[Callable[[Path, Path], None]] = [
    # 42 MB of a pattern that was quadratic, 54 MB of short words, sizes of thousands of digits, a sparse 20 GB file
    lambda o, p: _with_source(o, p, (b"aoti_torch_cpu_addmm_out(x, " * 700 + b"\n") * 1200),
    lambda o, p: _with_source(o, p, (b"aoti_torch_cpu_addmm_out(x, " * 700 + b"\n") * 2100),
    lambda o, p: _with_source(o, p, b"a b c d e f g h\n" * 3_400_000),
    lambda o, p: _with_source(o, p, b'constants_info_[0].data_size = ' + b"9" * 4000 + b";\n"),
    lambda o, p: _with_source(o, p, b"constants_info_[0].shape = {" + b"9" * 4000 + b"};\n"),
    lambda o, p: _with_source(o, p, (b"assert_size_stride(a, {" * 800 + b"\n") * 1000),
    lambda o, p: _with_source(o, p, b"/*" * 10_000_000),
    lambda o, p: _with_source(o, p, b'"' * 20_000_000),
    lambda o, p: _with_source(o, p, b"R\"(" * 7_000_000),
    lambda o, p: _with_source(o, p, b"'a" * 10_000_000),
    lambda o, p: _emptied_to(p, 20_000_000_000),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="yaml,records,artifacts")
    parser.add_argument("--counts", default="3000,1000,300")
    options = parser.parse_args()
    counts = dict(zip(("yaml", "records", "artifacts"), map(int, options.counts.split(",")), strict=True))
    asked = options.only.split(",")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="raq-fuzz-") as scratch:
        folder = Path(scratch)
        os.environ["RAQ_CACHE"] = str(folder / "cache")
        (folder / "place").mkdir()
        place = make_workplace(folder / "place", folder / "cache")
        place.experiment.write_text(EXPERIMENT)  # without a user's code, which every plan would import anew
        if {"records", "artifacts"} & set(asked):
            kept = os.environ.get("RAQ_FUZZ_RESULTS")  # of an earlier run of this benchmark, to save a minute
            if kept:
                shutil.copytree(kept, place.folder / "results")
            else:
                done = place.raq("run", "tiny.yaml")
                assert done.returncode == 0, done.stderr
        os.chdir(place.folder)
        for name, do in (
            ("yaml", partial(yaml_files, counts["yaml"], folder)),
            ("records", partial(records, counts["records"], place)),
            ("artifacts", partial(artifacts, counts["artifacts"], place, folder)),
        ):
            if name in asked:
                started = time.perf_counter()
                found[name] = {**do().as_plain(), "seconds": round(time.perf_counter() - started)}
                print(name, json.dumps(found[name], indent=1), flush=True)
    if set(counts) == set(asked):
        write_json(FILE, {"measured_at": now(), "environment": environment(), **found})


if __name__ == "__main__":
    main()
