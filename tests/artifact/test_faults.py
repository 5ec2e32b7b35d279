"""Planted faults: each is caught, in the right words, by the part whose duty that is."""

import dataclasses
import json
import resource
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated_bytes
from networks import EXAMPLE, quantized, small
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

from raq.artifact import audit, check, inductor, sizes
from raq.artifact.checked import Checked
from raq.artifact.cpp import Deadline
from raq.artifact.elf import imported_symbols
from raq.artifact.executed import Executed
from raq.artifact.generated_code import read_metadata, read_package
from raq.artifact.metadata import METADATA_KEY, Metadata
from raq.errors import StageError
from raq.experiment.execution import Resources
from raq.experiment.measurement import Require
from raq.experiment.ptq import Calibration
from raq.model.parity import compare
from raq.plan.requirements import check_results
from raq.plan.stages import Stage
from raq.quantize import convert, ptq, quantizers
from raq.quantize.export import export_program
from raq.store.local import Store

NOWHERE = Path("no-results")
IMAGES = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LABELS = np.zeros(64, dtype=int)


def stage(kind: str, candidate: str = "ptq") -> Stage:
    return Stage(
        f"{kind}/{candidate}", kind, "quantize", {"candidate": candidate, "kind": candidate}, {}, "f", Resources()
    )


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return small()


@pytest.fixture(scope="module")
def program(network, digits):
    return quantized(network, digits)


@pytest.fixture(scope="module")
def package(program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "a.pt2"
    inductor.lower(program, path, {"candidate": "ptq", "input": [3, 32, 32]})
    return path


@pytest.fixture(scope="module")
def float_package(network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The FP32 network, offered as int8."""
    path = tmp_path_factory.mktemp("float") / "a.pt2"
    inductor.lower(export_program(network, EXAMPLE), path, {"candidate": "ptq"})
    return path


def outputs(network) -> np.ndarray:
    with torch.no_grad():
        return network(IMAGES).numpy()


def test_the_honest_artifact_has_no_problem(program, package: Path) -> None:
    found = check.check(package, NOWHERE, run=True, require=0.95)
    assert found["problems"] == []
    assert found["int8_mac_share"] == 1.0
    assert [(layer["macs"], layer["int8"]) for layer in found["layers"]] == [
        (32 * 32 * 16 * 27, True), (16 * 16 * 32 * 144, True), (320, True),
    ]  # fmt: skip
    assert found["ledger"]["by_dtype"]["int8"] == 432 + 4608 + 320
    assert found["ran"]["batches_sqnr_db"] is None or found["ran"]["batches_sqnr_db"] > 60
    row = row_of("lowered", outputs(inductor.load(package)), "converted", outputs(program.module()))
    check_results(stage("lower"), {"parity": [row]}, Require())


def row_of(step: str, found: Any, before: str, expected: Any) -> dict[str, Any]:
    return compare(step, found, float((found.argmax(1) == LABELS).mean()), len(LABELS), before, expected)


def test_an_fp32_program_offered_as_int8(network, float_package: Path) -> None:
    program = export_program(network, EXAMPLE)
    (problem,) = check.check(float_package, NOWHERE, run=False, require=0.95)["problems"]
    assert problem.startswith("not quantized: offered as ptq, and 0.000 of its MACs is int8, required is 0.95")
    results = {"audit": audit.audit(program, read_package(float_package)).as_record()}
    with pytest.raises(StageError, match=r"not quantized: 0\.000 of its MACs .* 3 \(weights are float"):
        check_results(stage("lower"), results, Require())


@pytest.mark.parametrize(
    ("launches", "share", "problems", "notes"),
    [
        (None, None, [], "only running it there shows"),
        (0, None, ["no int8 kernel of raq's was seen running"], ""),
        (3, None, [], "3 launches of raq's int8 kernels were seen"),
        (3, 0.5, ["0.500 of its MACs ran in int8 kernels"], ""),
        (3, 1.0, [], ""),
    ],
)
def test_a_package_for_a_gpu_is_judged_by_what_ran(
    launches: int | None, share: float | None, problems: list[str], notes: str
) -> None:
    """Its code says nothing: what is unknown is said, and a package without an int8 kernel is refused."""
    metadata = Metadata({METADATA_KEY: {"device": "cuda", "kind": "ptq", "candidate": "ptq", "runtime": "inductor"}})
    found = Checked("a.pt2", None, 1, metadata=metadata, int8_launches=launches, float_weight_share=0.0)
    found.ledger, found.executed = sizes.Ledger(1, 0, 0, 0, 0, 0, 0, {}, [], []), Executed(share)
    check._judge(found, 0.95, 0.5, native=True)
    assert len(found.problems) == len(problems)
    assert all(said in text for said, text in zip(problems, found.problems, strict=True))
    assert notes in " ".join(found.notes)
    assert found.int8_mac_share == share


def test_freezing_off(program, tmp_path: Path) -> None:
    path = tmp_path / "unfrozen.pt2"
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs={"freezing": False})
    found = audit.audit(program, read_package(path))
    assert {layer.reason for layer in found.layers} == {audit.NOT_FOUND}
    with pytest.raises(StageError, match=r"calls no integer kernel; the graph has 3 int8 layers"):
        check_results(stage("lower"), {"audit": found.as_record()}, Require())
    assert "not quantized" in check.check(path, NOWHERE, run=False, require=0.95)["problems"][0]


def test_a_quantizer_that_annotates_nothing(network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quantizers.QUANTIZERS, "x86", lambda **settings: X86InductorQuantizer())
    monkeypatch.setattr(ptq, "QUANTIZERS", quantizers.QUANTIZERS)
    with pytest.raises(StageError, match="the x86 quantizer has annotated none of the model's 3 layers"):
        ptq.prepare(network, EXAMPLE, "x86", Calibration(), reduce_range=False)


def test_float_weights_left_in(network, digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "drop_unused_tensors", lambda module: None)
    copies = sizes.float_copies(quantized(network, digits))
    assert len(copies) == 3
    with pytest.raises(StageError, match="float weights are kept beside the int8 ones"):
        check_results(stage("lower"), {"float_copies": copies}, Require())


def test_an_artifact_compiled_from_other_weights(program, digits, tmp_path: Path) -> None:
    torch.manual_seed(5)
    inductor.lower(quantized(small(), digits), tmp_path / "other.pt2", {"candidate": "ptq"})
    given = outputs(inductor.load(tmp_path / "other.pt2"))
    row = row_of("lowered", given, "converted", outputs(program.module()))
    with pytest.raises(StageError, match=r"parity is lost at the step converted -> lowered: -?\d"):
        check_results(stage("lower"), {"parity": [row]}, Require())


def test_scales_off_by_one_layer(network, digits) -> None:
    """Every activation is quantized with the scale that was measured one layer further on."""
    prepared = ptq.prepare(network, EXAMPLE, "x86", Calibration(), reduce_range=False)
    ptq.calibrate(prepared, digits, Calibration(size=64), seed=0)
    with ptq.simulated(prepared) as as_integers:
        expected = outputs(as_integers)
    module = convert.convert(prepared, EXAMPLE).module()
    honest = row_of("converted", outputs(module), "simulated", expected)
    nodes = [n for n in module.graph.nodes if "quantize_per_tensor" in str(n.target)]
    pairs = list(dict.fromkeys((n.args[1], n.args[2]) for n in nodes))
    following = dict(zip(pairs, [*pairs[1:], pairs[0]], strict=True))
    for node in nodes:
        node.args = (node.args[0], *following[node.args[1], node.args[2]], *node.args[3:])
    module.recompile()
    row = row_of("converted", outputs(module), "simulated", expected)
    print(honest, row)
    check_results(stage("ptq"), {"parity": [honest]}, Require())
    with pytest.raises(StageError, match="parity is lost at the step simulated -> converted"):
        check_results(stage("ptq"), {"parity": [row]}, Require())


def test_a_test_set_shuffled_against_its_labels() -> None:
    known = {"classes": 10, "correct": 1034, "test_images": 10_000, "train_correct": 220, "train_images": 256}
    with pytest.raises(StageError, match=r"10\.3% on the test split, which is chance, and 85\.9% on 256"):
        check_results(stage("evaluate", "fp32"), known, Require())
    check_results(stage("evaluate", "fp32"), {**known, "correct": 1500}, Require())
    check_results(stage("evaluate", "fp32"), {**known, "train_correct": 30}, Require())  # an untrained network


@pytest.mark.parametrize("lost", [1, 1000])
def test_an_artifact_truncated(package: Path, tmp_path: Path, lost: int) -> None:
    path = tmp_path / "short.pt2"
    path.write_bytes(package.read_bytes()[:-lost])
    (problem,) = check.check(path, NOWHERE, run=True, require=0.95)["problems"]
    assert "not a readable package" in problem


def test_an_artifact_with_a_byte_changed(package: Path, tmp_path: Path) -> None:
    content = bytearray(package.read_bytes())
    with zipfile.ZipFile(package) as archive:
        native = next(entry for entry in archive.infolist() if entry.filename.endswith(".so"))
    content[native.header_offset + 5000] ^= 1
    (tmp_path / "a.pt2").write_bytes(content)
    with pytest.raises(StageError, match="not a readable package"):
        read_package(tmp_path / "a.pt2")


def test_an_artifact_of_another_torch(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (inductor, check):
        monkeypatch.setattr(module, "torch_version", lambda: "9.9.9")
    with pytest.raises(StageError, match=r"made by torch 2\..*, this is torch 9\.9\.9"):
        inductor.load(package)
    (problem,) = check.check(package, NOWHERE, run=True, require=0.95)["problems"]
    assert "made by torch 2." in problem
    assert "here is torch 9.9.9" in problem


def test_generated_code_that_is_not_the_binarys(float_package: Path, package: Path, tmp_path: Path) -> None:
    """A float binary under the C++ of an int8 one: its import table tells."""
    with zipfile.ZipFile(package) as archive:
        source = next(archive.read(n) for n in archive.namelist() if n.endswith(".wrapper.cpp"))
    fake = with_member(float_package, tmp_path / "fake.pt2", ".wrapper.cpp", source)
    with pytest.raises(
        StageError,
        match=r"compiled from: only the C\+\+ calls aoti_torch_cpu__q",
    ):
        read_package(fake)


def test_a_record_beside_it_is_no_voucher_outside_the_results_folder(package: Path, tmp_path: Path) -> None:
    """Whoever can write the artifact can write a record beside it."""
    record = {"kind": "lower", "fingerprint": "f", "files": {}, "results": {"sha256": check.file_digest(package)}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    shutil.copy(package, tmp_path / "artifact.pt2")
    found = check.check(tmp_path / "artifact.pt2", tmp_path / "results", run=False, require=0.95)
    assert (found["vouched"], found["ran"]) == (None, None)


def test_another_file_in_the_results_folder(package: Path, tmp_path: Path) -> None:
    folder = Store(tmp_path).stage_folder("lower", "f" * 64)
    folder.mkdir(parents=True)
    shutil.copy(package, folder / "artifact.pt2")
    files = {"artifact.pt2": package.stat().st_size}
    record = {"kind": "lower", "fingerprint": "f" * 64, "files": files, "results": {"sha256": "0" * 64}}
    (folder / "record.json").write_text(json.dumps(record))
    found = check.check(folder / "artifact.pt2", tmp_path, run=False, require=0.95)
    assert found["vouched"] is False
    assert "not the file that was evaluated" in found["problems"][0]
    assert found["ran"] is None, "nobody vouches for it"


def with_member(package: Path, path: Path, ending: str, content: bytes) -> Path:
    """A copy of the package with the content of one of its files replaced."""
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, content if entry.filename.endswith(ending) else old.read(entry.filename))
    return path


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".wrapper_metadata.json", b"[]"), (".wrapper_metadata.json", b'{"raq": "5"}'),
        (".wrapper_metadata.json", b'{"raq": "{}", "x": NaN}'), (".wrapper_metadata.json", b"[" * 100_000),
        (".wrapper.cpp", b"constants_info_[0].name = \"a\";"), (".wrapper.cpp", b"aoti_torch_cpu_addmm_out());"),
        (".wrapper.cpp", b"// F(aoti_torch_cpu__qlinear_pointwise_tensor(x, w, &b_handle));"),
        (".wrapper.cpp", b"assert_size_stride(a, {" * 20_000), (".wrapper.so", b""),
    ],
)  # fmt: skip
def test_what_a_stranger_may_write_is_one_problem(package: Path, tmp_path: Path, ending: str, content: bytes) -> None:
    path = with_member(package, tmp_path / "a.pt2", ending, content)
    problems = check.check(path, NOWHERE, run=False, require=0.95)["problems"]
    assert "not a readable package" in problems[0]


FEW = settings(
    max_examples=30, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@FEW
@given(st.data())
def test_any_artifact_is_checked_or_has_one_problem(package: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Bytes of the file or of one file inside it changed: no exception, and nothing is loaded."""
    path = tmp_path / "strange.pt2"
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(mutated_bytes(package.read_bytes())))
    else:
        with zipfile.ZipFile(package) as archive:
            name = data.draw(st.sampled_from([n for n in archive.namelist() if archive.read(n)]))
            with_member(package, path, name, data.draw(mutated_bytes(archive.read(name))))
    found = check.check(path, NOWHERE, run=False, require=0.95)
    assert found["ran"] is None


@pytest.mark.parametrize(
    "content",
    [
        (b"aoti_torch_cpu_addmm_out(x, " * 700 + b"\n") * 500,
        b"a b c d e f g h\n" * 200_000,
        b"constants_info_[0].data_size = " + b"9" * 4000 + b";\n",
        b"/*" * 5_000_000,
        b'"' * 10_000_000,
        b"'a" * 5_000_000,
        b'R"(' * 3_000_000,
        bytes(13_000_000),
    ],
    ids=["quadratic", "words", "digits", "comments", "strings", "characters", "raw strings", "large"],
)
def test_generated_code_that_is_made_to_be_slow(package: Path, tmp_path: Path, content: bytes) -> None:
    """Some 10 MB each: read or refused within the time and the memory that reading may take."""
    path = with_member(package, tmp_path / "a.pt2", ".wrapper.cpp", content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "not a readable package" in check.check(path, NOWHERE, run=False, require=0.95)["problems"][0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000, "kB"


def test_a_file_that_is_no_artifact_is_not_copied_first(tmp_path: Path) -> None:
    path = tmp_path / "sparse.pt2"
    with path.open("wb") as file:
        file.truncate(20_000_000_000)
    (problem,) = check.check(path, NOWHERE, run=True, require=0.95)["problems"]
    assert "begins neither as a .pt2 nor as a .pte" in problem
    with path.open("r+b") as file:
        file.write(b"PK\x03\x04")
    (problem,) = check.check(path, NOWHERE, run=True, require=0.95)["problems"]
    assert "20.0 GB is more than any artifact has" in problem


def test_a_comment_or_a_string_is_no_call(package: Path, tmp_path: Path) -> None:
    """The calls of a float binary, and those of an int8 one in comments and strings."""
    with zipfile.ZipFile(package) as archive:
        source = next(archive.read(n) for n in archive.namelist() if n.endswith(".wrapper.cpp"))
    call = b"AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__qlinear_pointwise_tensor(buf0, w, &buf1_handle));"
    hidden = [b"// " + call, b"/* " + call + b" */", b"/*\n" + call + b"\n*/", b'const char* s = "' + call + b'";',
              b'auto r = R"x(\n' + call + b'\n)x";']  # fmt: skip
    kept = len(read_package(package).calls)
    for text in hidden:
        path = with_member(package, tmp_path / "a.pt2", ".wrapper.cpp", source + b"\n" + text + b"\n")
        assert len(read_package(path).calls) == kept


@pytest.mark.parametrize(
    "text",
    [
        b"// not code \\\n" + b"F(aoti_torch_cpu__qlinear_pointwise_tensor(a, w, &buf_handle));",
        b"auto c = u8'a'; auto s = \"' F(aoti_torch_cpu__qlinear_pointwise_tensor(a, w, &b_handle)); //\";",
        b"#define NEVER(a) F(aoti_torch_cpu__qlinear_pointwise_tensor(a, w, &b_handle));",
    ],
    ids=["continued comment", "character", "macro"],
)
def test_what_only_looks_like_a_call(package: Path, tmp_path: Path, text: bytes) -> None:
    with zipfile.ZipFile(package) as archive:
        source = next(archive.read(n) for n in archive.namelist() if n.endswith(".wrapper.cpp"))
    path = with_member(package, tmp_path / "a.pt2", ".wrapper.cpp", source + b"\n" + text + b"\n")
    assert len(read_package(path).calls) == len(read_package(package).calls)


@pytest.mark.parametrize(
    "text",
    [
        b"F(aoti_torch_cpu_addmm_out(a, b));  next();",
        b"F(aoti_torch_cpu_addmm_out(a, b)); F(aoti_torch_cpu_addmm_out(a, b));",
        b"F(aoti_torch_cpu_addmm_out(a,\n b));",
    ],
)
def test_calls_in_a_form_that_no_compiler_writes_are_refused(package: Path, tmp_path: Path, text: bytes) -> None:
    """One could hide behind another."""
    path = with_member(package, tmp_path / "a.pt2", ".wrapper.cpp", text)
    with pytest.raises(StageError, match=r"in a form that the compiler does not write|only the C\+\+ calls"):
        read_package(path)


def test_a_strangers_word_excuses_nothing(package: Path, tmp_path: Path) -> None:
    """Metadata that claims a tiny total, and layers in float by choice, for a package with an LSTM in it."""
    with zipfile.ZipFile(package) as archive:
        source = next(archive.read(n) for n in archive.namelist() if n.endswith(".wrapper.cpp"))
        metadata = next(n for n in archive.namelist() if n.endswith("wrapper_metadata.json"))
    lstm = source + b"\nF(aoti_torch_cpu_mkldnn_rnn_layer(a, w));\n"
    path = with_member(package, tmp_path / "a.pt2", ".wrapper.cpp", lstm)
    reported = {"candidate": "ptq", "macs": 1, "float_by_choice": ["0", "3", "8"]}
    path = with_member(path, tmp_path / "b.pt2", metadata, json.dumps({"raq": json.dumps(reported)}).encode())
    found = check.check(path, NOWHERE, run=False, require=0.95)
    assert "an unknown share of its MACs is int8, required is 0.95" in found["problems"][0]
    assert any("float by choice: no record vouches" in note for note in found["notes"])


def test_names_without_an_end_do_not_stall_the_reader(tmp_path: Path) -> None:
    """12,000 symbols that all begin in one string of a megabyte."""
    names = b"\0.dynsym\0.dynstr\0" + b"a" * 1_000_000
    symbols = struct.pack("<IBBHQQ", 17, 0x12, 0, 0, 0, 0) * 12_000
    start = 64 + len(symbols) + len(names)
    sections = struct.pack("<IIQQQQIIQQ", *[0] * 10)
    sections += struct.pack("<IIQQQQIIQQ", 1, 11, 0, 0, 64, len(symbols), 2, 0, 8, 24)
    sections += struct.pack("<IIQQQQIIQQ", 9, 3, 0, 0, 64 + len(symbols), len(names), 0, 0, 1, 0)
    header = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, start, 0, 64, 0, 0, 64, 3, 2)
    path = tmp_path / "a.so"
    path.write_bytes(header + symbols + names + sections)
    with path.open("rb") as file:
        assert imported_symbols(file, Deadline(1.0)) == set()


def test_an_opaque_call_makes_the_share_unknown(package: Path, tmp_path: Path) -> None:
    """Of a stranger's package: what a library call computes that has no shapes in the code could be anything."""
    with zipfile.ZipFile(package) as archive:
        source = next(archive.read(n) for n in archive.namelist() if n.endswith(".wrapper.cpp"))
        reported = next(n for n in archive.namelist() if n.endswith("wrapper_metadata.json"))
    for call in (
        b"aoti_torch_proxy_executor_call_function(p, 0, 0, a, 1, t);",
        b"F(aoti_torch_cpu_mkldnn_rnn_layer(a, w));",
    ):
        path = with_member(package, tmp_path / "a.pt2", ".wrapper.cpp", source + b"\n" + call + b"\n")
        path = with_member(path, tmp_path / "b.pt2", reported, b"{}")
        found = check.check(path, NOWHERE, run=False, require=0.95)
        assert found["int8_mac_share"] is None
        assert "an unknown share of its MACs is int8" in found["problems"][0]


def test_weights_that_are_hardly_smaller(program) -> None:
    """All multiply-accumulates in int8, and most of the weights floats that multiply nothing."""
    honest = {"layers": [], "others": [], "int8_mac_share": 1.0, "total_macs": 10, "problem": ""}
    check_results(stage("lower"), {"audit": honest, "float_weight_share": 0.1}, Require())
    with pytest.raises(StageError, match=r"0\.900 of its weights are floats, at most 0\.5 may be"):
        check_results(stage("lower"), {"audit": honest, "float_weight_share": 0.9}, Require())
    assert audit.float_weight_share(program) == 0.0


def test_a_strangers_artifact_is_read_and_not_run(network, tmp_path: Path) -> None:
    """Made by torch alone, without raq's metadata."""
    path = tmp_path / "stranger.pt2"
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(export_program(network, EXAMPLE), package_path=str(path))
    found = check.check(path, NOWHERE, run=False, require=0.95)
    assert found["ran"] is None
    says_sizes = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 14)
    assert found["int8_mac_share"] == (0.0 if says_sizes else None), "older packages do not say what is multiplied"
    if says_sizes:
        assert sum(layer["macs"] for layer in found["layers"]) == 32 * 32 * 16 * 27 + 16 * 16 * 32 * 144 + 320
    assert "raq" not in read_metadata(path)


def test_layers_are_dataclasses_of_plain_values(program, package: Path) -> None:
    json.dumps(audit.audit(program, read_package(package)).as_record())
    json.dumps(sizes.ledger(read_package(package)).as_record())
    assert dataclasses.is_dataclass(audit.ElementwiseAudit)
