"""What this machine and installation are: versions, commit, CPU features, GPU. Neither torch nor ray is imported."""

import getpass
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

NUMERIC_SETTINGS = (
    "ONEDNN_", "DNNL_", "TORCH_MKLDNN_", "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE", "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG",
)  # fmt: skip
"""Environment variables that decide which kernels compute, and so what comes out: in the fingerprint of every stage."""
COMPILER_SETTINGS = ("CXX", "TORCHINDUCTOR_", "AOT_INDUCTOR_", "CPATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH")
"""Those that decide what is compiled (names that end in _: all that begin so): with lower's fingerprint."""
TIMING_SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_DYNAMIC", "MKL_DOMAIN_NUM_THREADS", "LD_PRELOAD",
                   "LD_LIBRARY_PATH", "MALLOC_", "GLIBC_TUNABLES")  # fmt: skip
"""Those that decide how fast it is: with bench's fingerprint. Numbers of threads are set by raq itself, so they do not
count."""
SET_BY_RAQ = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
SET_BY_LIBRARIES = ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
"""scikit-learn sets them when it is imported, before or after this is read; neither changes how fast a kernel is."""
TELL_ONLY = (
    "TORCHINDUCTOR_CACHE_DIR",
    "ONEDNN_VERBOSE",
    "ONEDNN_VERBOSE_TIMESTAMP",
    "DNNL_VERBOSE",
    "DNNL_VERBOSE_TIMESTAMP",
)
# What oneDNN may use of a CPU when restricted, in rising order; an ISA allows the features up to its own.
VNNI = ("avx2", "avx512f", "avx512_vnni")
HALF = (*VNNI, "avx512_bf16", "avx512_fp16")
ISA_FEATURES = (
    ("SSE41", ()), ("AVX", ()), ("AVX2", ("avx2",)), ("AVX2_VNNI", ("avx2", "avx_vnni")),
    ("AVX2_VNNI_2", ("avx2", "avx_vnni")), ("AVX512_CORE", ("avx2", "avx512f")), ("AVX512_CORE_VNNI", VNNI),
    ("AVX512_CORE_BF16", (*VNNI, "avx512_bf16")), ("AVX512_CORE_FP16", HALF), ("AVX10_1_512", HALF),
    ("AVX512_CORE_AMX", (*HALF, "amx_int8", "amx_bf16")), ("AVX10_1_512_AMX", (*HALF, "amx_int8", "amx_bf16")),
)  # fmt: skip
LIBRARIES = ("torch", "torchvision", "torchao", "ray", "numpy")
EXTRAS = {
    "executorch": "the xnnpack backend", "openvino": "the runtime of that name", "nncf": "ptq.others: [nncf]",
    "onnxruntime": "the runtime of that name", "tensorrt": "the runtime of that name",
    "timm": "model.name: timm:NAME", "transformers": "transformers:NAME",
}  # fmt: skip
FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16",
    "asimd", "asimddp", "i8mm", "bf16", "asimdhp",
)  # fmt: skip


def inductor_cache() -> Path:
    """Where torch keeps what Inductor has compiled: its own rule, for processes that have another TMPDIR.

    Without it each of them compiles anew, for some seconds, the probes of what the CPU can do.
    """
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    try:
        user = getpass.getuser()
    except (KeyError, ModuleNotFoundError, OSError):
        user = f"uid_{os.getuid()}" if hasattr(os, "getuid") else "unknown_user"
    name = re.sub(r'[\\/:*?"<>|]', "_", user)
    return Path(given or Path(tempfile.gettempdir()) / f"torchinductor_{name}").absolute()


def versions(names: tuple[str, ...] = LIBRARIES) -> dict[str, str | None]:
    """Installed versions, None for what is not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


@cache
def torch_version() -> str:
    """The version of torch that is installed, without the name of its build."""
    return metadata.version("torch").partition("+")[0]


@cache
def commit() -> str | None:
    """The commit of the checkout that this package runs from, "-dirty" if changed; None outside a checkout."""
    folder = Path(__file__).resolve().parent
    if not (folder.parent / ".git").exists():
        return None
    revision = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    changed = _output("git", "-C", str(folder), "status", "--porcelain", "--", str(folder))
    return None if revision is None else revision + ("-dirty" if changed else "")


@dataclass(frozen=True)
class Machine:
    """What measured times and compiled code depend on.

    cpus: those that a process may use, None if unknown; features: of the CPU, those that matter; gpus: their names;
    settings: environment variables that can change an outcome; compiler: the C++ compiler's own words, None without.
    """

    cpu: str
    architecture: str
    features: list[str]
    cpus: int | None
    gpus: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    compiler: str | None = None

    def as_record(self, *keys: str) -> dict[str, Any]:
        """As plain values, for a record: these keys, or all."""
        values = asdict(self)
        return {key: values[key] for key in keys or values}


@cache
def machine() -> Machine:
    """The machine that this process runs on."""
    cpu: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else []:
        key, _, value = line.partition(":")
        cpu.setdefault(key.strip(), value.strip())
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    return Machine(
        cpu=cpu.get("model name") or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        features=[feature for feature in FEATURES if feature in flags],
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        gpus=gpus(),
        settings=settings_of(os.environ),
        compiler=compiler_version(),
    )


@contextmanager
def environment_kept(**meanwhile: str) -> Iterator[None]:
    """Undo what is done to environment variables meanwhile, and these: later processes would inherit it."""
    before = dict(os.environ)
    os.environ.update(meanwhile)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name not in before]:
            del os.environ[name]
        os.environ.update(before)


def settings_of(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment variables, of those that can change an outcome, that are set; sorted."""
    wanted = (*NUMERIC_SETTINGS, *COMPILER_SETTINGS, *TIMING_SETTINGS)
    return {name: variables[name] for name in sorted(variables) if _is_one_of(name, wanted)}


def chosen_settings(settings: Mapping[str, str], *kinds: tuple[str, ...]) -> dict[str, str]:
    """Those of a machine's settings that are of these kinds (NUMERIC_SETTINGS, ...)."""
    return {name: value for name, value in settings.items() if any(_is_one_of(name, kind) for kind in kinds)}


def _is_one_of(name: str, wanted: tuple[str, ...]) -> bool:
    named = name in wanted or any(name.startswith(beginning) for beginning in wanted if beginning.endswith("_"))
    return named and name not in (*SET_BY_RAQ, *SET_BY_LIBRARIES, *TELL_ONLY)


@cache
def compiler_version() -> str | None:
    """The first line of what the C++ compiler that Inductor calls says of itself; None without one."""
    command = compiler_command()
    return next(iter((_output(*command, "--version") or "").splitlines()), None) if command else None


def compiler_command() -> list[str]:
    """The C++ compiler that Inductor calls, as a command."""
    return shlex.split(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"))


@cache
def gpus() -> list[str]:
    """Names of the NVIDIA GPUs that the driver shows; empty without a driver."""
    listed = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return [line.strip() for line in (listed or "").splitlines() if line.strip()]


@cache
def _slowdown_field() -> str:
    """What nvidia-smi calls the reasons for lower clocks: newer drivers have another name for them."""
    newer = "clocks_event_reasons.active"
    known = _output("nvidia-smi", f"--query-gpu={newer}", "--format=csv,noheader")
    return "clocks_throttle_reasons.active" if known is None else newer


def gpu_state() -> list[dict[str, Any]] | None:
    """Each GPU now: its index, clock in MHz, temperature in degrees Celsius, throttle reasons (a bit mask in
    hexadecimal), and how many processes compute on it. None without a driver, or if it does not answer."""
    if not gpus():
        return None
    asked = f"index,uuid,clocks.sm,temperature.gpu,{_slowdown_field()}"
    listed = _output("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits")
    computing = _output("nvidia-smi", "--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader")
    return None if listed is None else read_gpu_state(listed, computing)


def read_gpu_state(listed: str, computing: str | None) -> list[dict[str, Any]]:
    """`gpu_state` from what nvidia-smi printed; processes are None if it did not list them."""
    found = []
    for line in listed.splitlines():
        index, uuid, clock, temperature, reasons = (field.strip() for field in line.split(","))
        found.append(
            {
                "index": int(index),
                "mhz": _number(clock),
                "celsius": _number(temperature),
                "throttle_reasons": reasons if reasons.startswith("0x") else None,
                "processes": None if computing is None else computing.count(uuid),
            }
        )
    return found


def _number(text: str) -> float | None:
    """A number, or None for what nvidia-smi prints instead of one ("[N/A]")."""
    try:
        return float(text)
    except ValueError:
        return None


def has_vnni(machine: Machine) -> bool:
    """Whether int8 products are added in 32 bits, so that 8-bit activations cannot saturate.

    What oneDNN is forbidden to use does not count.
    """
    usable = usable_features(machine.features, machine.settings)
    return any(feature in usable for feature in ("avx512_vnni", "avx_vnni", "amx_int8"))


def usable_features(features: list[str], settings: Mapping[str, str]) -> list[str]:
    """The CPU's features that oneDNN may use: all, or those up to the instruction set that it is restricted to."""
    limit = (settings.get("ONEDNN_MAX_CPU_ISA") or settings.get("DNNL_MAX_CPU_ISA") or "").upper()
    allowed = dict(ISA_FEATURES).get(limit)
    return features if allowed is None else [feature for feature in features if feature in allowed]


def environment() -> dict[str, Any]:
    """All of it, for a record."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "versions": versions((*LIBRARIES, *EXTRAS, "raq")),
        "commit": commit(),
        "machine": machine().as_record(),
    }


def _output(*command: str) -> str | None:
    """What a command printed; None if it is not there, failed, or took longer than ten seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def cache_folder() -> Path:
    """The per-user cache: `RAQ_CACHE`, else ~/.cache/raq."""
    return Path(os.environ.get("RAQ_CACHE") or Path.home() / ".cache" / "raq")


def available_cpus() -> list[int]:
    """The CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
