"""What this CPU's integer and float units can do at most: loops over registers alone, compiled for this machine.

No network comes to more; a share of it says how much of a kernel's time is arithmetic. Imports neither torch nor ray.
"""

import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from raq.environment import Machine, compiler_command, machine

SECONDS, TIMEOUT_S = 0.4, 60.0
# Ten independent chains hide the latency of an instruction (4 or 5 cycles on two ports). Operations per instruction are
# twice the multiply-accumulates: 64 of int8 and 16 of float in 512 bits, half of that in 256.
CHAINS = 10
LOOPS = {  # type of a chain, its beginning, the two factors a and b, the step of a chain {x}, operations
    "avx512_vnni": (
        "__m512i", "_mm512_setzero_si512()", "_mm512_set1_epi8(1)", "_mm512_set1_epi8(1)",
        "_mm512_dpbusd_epi32({x}, a, b)", 128,
    ),
    "avx512f": (
        "__m512", "_mm512_setzero_ps()", "_mm512_set1_ps(1)", "_mm512_set1_ps(1e-9)", "_mm512_fmadd_ps(a, b, {x})", 32,
    ),
    "avx2": (
        "__m256", "_mm256_setzero_ps()", "_mm256_set1_ps(1)", "_mm256_set1_ps(1e-9)", "_mm256_fmadd_ps(a, b, {x})", 16,
    ),
}  # fmt: skip
SOURCE = """
#include <immintrin.h>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>
volatile char sink;
static double one(double seconds) {
  %(type)s a = %(one)s, b = %(other)s;
  %(chains)s
  long loops = 0;
  auto started = std::chrono::steady_clock::now();
  double passed = 0;
  while (passed < seconds) {
    for (int n = 0; n < 100000; ++n) {
      %(steps)s
    }
    loops += 100000;
    passed = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  }
  %(ends)s
  return loops * double(%(count)d) * %(operations)d / passed / 1e9;
}
int main(int count, char** given) {
  int threads = std::atoi(given[1]);
  std::vector<double> found(threads);
  std::vector<std::thread> own;
  for (int n = 0; n < threads; ++n) own.emplace_back([&, n] { found[n] = one(std::atof(given[2])); });
  for (auto& each : own) each.join();
  double total = 0;
  for (double value : found) total += value;
  std::printf("%%f\\n", total);
}
"""


@dataclass(frozen=True)
class Peak:
    """Giga-operations a second (a multiply-accumulate is two) on so many threads; None where it could not be measured.

    int8: by the instruction for products of bytes added in 32 bits; None where the CPU has none (no VNNI).
    """

    threads: int
    int8_gops: float | None
    fp32_gops: float | None

    def as_record(self) -> dict[str, float | int | None]:
        """As plain values."""
        return asdict(self)


def measure_peak(threads: int, here: Machine | None = None) -> Peak:
    """Measure this CPU, for a second or two; None where there is no compiler, or no such instruction."""
    features = (here or machine()).features
    floats = next((name for name in ("avx512f", "avx2") if name in features), None)
    int8 = _gops("avx512_vnni", threads) if "avx512_vnni" in features else None
    return Peak(threads, int8, _gops(floats, threads) if floats is not None else None)


def _parts(loop: str) -> dict[str, str | int]:
    """What the source of a loop is made of. Each chain is a variable: elements of an array would live in memory."""
    kind, zero, one, other, step, operations = LOOPS[loop]
    names = [f"s{n}" for n in range(CHAINS)]
    steps = [f"{name} = {step.format(x=name)};" for name in names]
    barriers = [f'asm volatile("" : "+x"({name}));' for name in names]  # else the compiler computes many steps at once
    return {
        "type": kind, "one": one, "other": other, "operations": operations, "count": CHAINS,
        "chains": f"{kind} {', '.join(f'{name} = {zero}' for name in names)};",
        "steps": " ".join(f"{one_step} {barrier}" for one_step, barrier in zip(steps, barriers, strict=True)),
        "ends": " ".join(f"sink = ((char*)&{name})[0];" for name in names),
    }  # fmt: skip


def _gops(loop: str, threads: int) -> float | None:
    with tempfile.TemporaryDirectory(prefix="raq-peak-") as scratch:
        source, program = Path(scratch) / "peak.cpp", Path(scratch) / "peak"
        source.write_text(SOURCE % _parts(loop))
        compile_it = [*compiler_command(), "-O2", "-march=native", "-pthread", str(source), "-o", str(program)]
        try:
            subprocess.run(compile_it, check=True, capture_output=True, timeout=TIMEOUT_S)
            run = subprocess.run([str(program), str(threads), str(SECONDS)], check=True, capture_output=True, text=True,
                                 timeout=TIMEOUT_S)  # fmt: skip
            return float(run.stdout)
        except (OSError, ValueError, subprocess.SubprocessError):
            return None
