"""The code that a fingerprint covers: what counts, what does not, and that nothing that is imported is left out."""

from pathlib import Path

import pytest

from raq.plan import fingerprints
from raq.plan.fingerprints import EXEMPT, ROOT, closure, code_digest, modules_of_kind, modules_of_trial
from raq.plan.kinds import KINDS

FIRST = """\"\"\"What it does.\"\"\"
from raq.low import value
import torch

def double(x):
    \"\"\"Twice.\"\"\"
    from raq.low import other
    return other(torch.add(x, value))
"""


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A package of its own in place of raq: writes files, gives the digest of a module and what it imports."""
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)

    def digest(files: dict[str, str], root: str = "raq.high.first") -> str:
        for path in tmp_path.rglob("*.py"):
            path.unlink()
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        for cached in (fingerprints.imported_by, fingerprints.closure, fingerprints._digest_of_module, code_digest):
            cached.cache_clear()
        return code_digest(closure((root,)))

    yield digest
    monkeypatch.undo()
    for cached in (fingerprints.imported_by, fingerprints.closure, fingerprints._digest_of_module, code_digest):
        cached.cache_clear()


LOW = "value = 1\ndef other(x):\n    return x\n"


@pytest.mark.parametrize(
    ("files", "same"),
    [
        ({"high/first.py": FIRST.replace("Twice.", "Two times.").replace("it does", "else"), "low.py": LOW}, True),
        ({"high/first.py": f"# why\n{FIRST}\n\n", "low.py": f"\n{LOW}"}, True),
        ({"high/first.py": FIRST.replace("raq.low", "raq.deep.lower"), "deep/lower.py": LOW}, True),
        ({"high/first.py": FIRST, "low.py": LOW, "unused.py": "nothing = 1\n"}, True),
        ({"high/first.py": FIRST, "low.py": LOW.replace("1", "2")}, False),
        ({"high/first.py": FIRST, "low.py": LOW.replace("return x", "return -x")}, False),
        ({"high/first.py": FIRST.replace("import torch", "import numpy as torch"), "low.py": LOW}, False),
        ({"high/first.py": FIRST.replace("import value", "import other as value"), "low.py": LOW}, False),
        ({"high/first.py": FIRST.replace("double", "twice"), "low.py": LOW}, False),
    ],
    ids=["docstrings", "comments and layout", "a file moved", "a file that nobody imports", "a constant", "a function",
         "another library", "another name of ours", "a name"],
)  # fmt: skip
def test_what_counts_as_code(house, files: dict[str, str], same: bool) -> None:
    assert (house({"high/first.py": FIRST, "low.py": LOW}) == house(files)) is same


def test_a_module_that_another_process_runs_counts(house) -> None:
    """Named in a string, as in `python -m raq.child`, or as "raq.child:function" in a table."""
    for text in ('COMMAND = ["python", "-m", "raq.child"]\n', 'TABLE = {"x": "raq.child:run"}\n'):
        first = house({"high/first.py": text, "child.py": "x = 1\n"})
        assert first != house({"high/first.py": text, "child.py": "x = 2\n"})


def test_what_only_a_type_checker_reads_does_not_count(house) -> None:
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from raq.low import value\n"
    assert house({"high/first.py": guarded, "low.py": LOW}) == house({"high/first.py": guarded, "low.py": "x = 2\n"})


def test_exemptions_name_what_is_there_and_say_why() -> None:
    for name, why in EXEMPT.items():
        path = ROOT.joinpath(*name.split(".")[1:])
        assert path.with_suffix(".py").is_file() or path.is_dir(), name
        assert len(why) > 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_depends_on_its_own_work_and_on_no_other_kind(kind: str) -> None:
    """A change of how a candidate is measured makes nothing stale but the measurement; and so on."""
    covered = {module.removeprefix("raq.") for module in modules_of_kind(kind)}
    room = {"train": "model.training", "ptq": "quantize.ptq", "qat": "quantize.qat", "lower": "artifact.audit",
            "evaluate": "artifact.isolated", "bench": "bench.contender", "ptq_sweep": "artifact.parametric",
            "layer_sweep": "sweep.layers", "qat_sweep": "sweep.qat", "weights": "model.zoo",
            "half": "quantize.folding", "dynamic": "quantize.dynamic",
            "weight_only": "quantize.weight_only"}  # fmt: skip
    assert room[kind] in covered
    for others, only in (
        (("bench.latency", "bench.contender"), {"bench"}),
        (("artifact.audit",), {"lower", "evaluate"}),
        (("quantize.dynamic", "quantize.weight_only", "stages.modes"), {"dynamic", "weight_only"}),
        (("quantize.qat", "quantize.qat_ranges"), {"qat", "qat_sweep"}),
        (("stages.layer_sweep", "sweep.layers"), {"layer_sweep"}),
        (("stages.ptq_sweep", "sweep.ptq"), {"ptq_sweep"}),
        (("stages.qat_sweep", "sweep.qat"), {"qat_sweep"}),
        (("quantize.ptq",), {"ptq", "ptq_sweep", "layer_sweep", "qat", "qat_sweep"}),  # QAT starts from PTQ
        (("quantize.learned_scales",), {"qat", "qat_sweep"}),
    ):
        assert kind in only or not covered & set(others), f"{kind} would be stale after a change of {others}"


def test_trials_stay_when_the_choice_among_them_changes() -> None:
    for kind in ("ptq_sweep", "qat_sweep", "layer_sweep"):
        trial = set(modules_of_trial(kind))
        assert trial < set(modules_of_kind(kind))
        assert not {module for module in trial if module.startswith(("raq.sweep", "raq.statistics", "raq.cluster"))}
