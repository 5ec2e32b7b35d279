"""What disturbs a measurement: classified from known clocks, and seen on a real neighbour."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from raq.bench import nearest
from raq.bench.clocks import CpuTimes, cpu_times, own_times, pinned
from raq.bench.messages import Timed
from raq.bench.noise import classify, is_far, summary
from raq.bench.rows import Round, mark_far
from raq.environment import available_cpus, machine


def reply(waited_s: float | None = 0.0, cpu_s: float = 0.2, handover_us: float | None = None) -> Timed:
    return Timed([1.0], 0.1, waited_s, cpu_s, handover_us)


@pytest.mark.parametrize(
    ("given", "busy_s", "stolen_s", "disturbed"),
    [
        (reply(), 0.2, 0.0, False),
        (reply(waited_s=0.006), 0.2, 0.0, False),  # 6% of the time: a pool that wakes its threads
        (reply(waited_s=0.04), 0.2, 0.0, True),  # a thread shared its CPU with somebody
        (reply(cpu_s=0.1), 0.2, 0.0, True),  # others kept a whole CPU busy
        (reply(cpu_s=0.18), 0.2, 0.0, False),  # two ticks: it may be the count's own error
        (reply(), 0.2, 0.08, True),
        (reply(waited_s=None), None, None, False),  # a system that tells nothing
        (reply(cpu_s=1.5), 1.6, 0.0, True),  # on sixteen CPUs as on two
    ],
)
def test_what_is_disturbed(given, busy_s, stolen_s, disturbed) -> None:
    before = CpuTimes(0.0, None if busy_s is None else 0.0, None if stolen_s is None else 0.0)
    assert classify(given, before, CpuTimes(0.1, busy_s, stolen_s), 0).disturbed is disturbed


def test_what_is_not_known_is_none() -> None:
    sample = classify(reply(waited_s=None), CpuTimes(0.0, None, None), CpuTimes(0.1, None, None), 0)
    assert (sample.waited, sample.foreign_cpus, sample.stolen_cpus, sample.known) == (None, None, None, False)
    found = summary([sample])
    assert (found["waited"], found["foreign_cpus"], found["slots"]) == (None, None, 1)
    assert cpu_times([10_000]).busy_s is None, "a CPU that the system does not list"


def test_threads_that_ran_far_apart_are_seen_against_the_nearest() -> None:
    """It is known only when other rounds are: the shortest handover may come last."""
    before, after = CpuTimes(0.0, 0.0, 0.0), CpuTimes(0.1, 0.2, 0.0)
    times = (20.0, 21.0, 6.0, 6.5, 10.0, 12.0, None)
    rounds = [Round(0, {"one": [classify(reply(handover_us=us), before, after, 0)]}, n) for n, us in enumerate(times)]
    assert not any(r.sample("one").excluded for r in rounds)
    mark_far(rounds[:2])
    assert not any(r.sample("one").excluded for r in rounds), "of two alike neither is far"
    mark_far(rounds)
    assert [r.sample("one").excluded for r in rounds] == [True, True, False, False, False, True, False]
    found = summary([r.sample("one") for r in rounds])
    assert found["far_apart_slots"] == 3
    assert found["handover_us"] == {"near": 6.0, "median": 12.0, "most": 21.0, "remembered": None}
    assert summary([])["handover_us"] is None
    mark_far(rounds, 2.0)
    assert [r.sample("one").excluded for r in rounds] == [True, False, True, True, True, True, False], (
        "all are far from what was seen before, but for one that is longer than any distance"
    )
    found = summary([r.sample("one") for r in rounds], 2.0)
    assert (found["far_apart_slots"], found["handover_us"]["near"], found["handover_us"]["remembered"]) == (
        5,
        6.0,
        2.0,
    )
    mark_far(rounds, 8.0)
    assert [r.sample("one").excluded for r in rounds][2:4] == [False, False], "what is seen now may be nearer"


def test_a_disturbed_turn_is_not_far() -> None:
    """A thread that waits for its CPU hands over late wherever it is."""
    before, after = CpuTimes(0.0, 0.0, 0.0), CpuTimes(0.1, 0.2, 0.0)
    late = classify(reply(waited_s=0.04, handover_us=3.5), before, after, 0)
    assert late.disturbed and not is_far(late, 1.0)
    assert is_far(classify(reply(handover_us=3.5), before, after, 0), 1.0)
    assert not is_far(classify(reply(handover_us=8000.0), before, after, 0), 1.0), "a slice of the scheduler"


def samples_of(*handovers: float):
    before, after = CpuTimes(0.0, 0.0, 0.0), CpuTimes(0.1, 0.2, 0.0)
    return [classify(reply(handover_us=us), before, after, 0) for us in handovers]


def test_the_shortest_handover_is_remembered(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAQ_CACHE", str(tmp_path))
    assert nearest.remembered([0, 1], 2) is None
    nearest.remember([0, 1], 2, [])
    nearest.remember([0, 1], 2, samples_of(*[1.0] * 19))
    assert nearest.remembered([0, 1], 2) is None and not list(tmp_path.iterdir()), "too few to rely on"
    for seen, kept in ((1.2, 1.2), (1.0, 1.0), (1.1, 1.0), (3.5, 1.0)):
        nearest.remember([0, 1], 2, samples_of(0.1, *[seen] * 30))
        assert nearest.remembered([0, 1], 2) == kept
    assert nearest.remembered([0, 2], 2) is None, "other CPUs have a handover of their own"
    assert nearest.remembered([0, 1], 3) is None, "and other numbers of threads"
    file = nearest.file_of([0, 1], 2)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    machine.cache_clear()
    assert nearest.remembered([0, 1], 2) is None, "and other settings"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    machine.cache_clear()
    old = datetime.now(UTC) - timedelta(days=8)
    huge = json.dumps({"near_us": 10**400, "seen": datetime.now(UTC).isoformat()})
    for text in (json.dumps({"near_us": 1.0, "seen": old.isoformat()}), "{", "[]", '{"near_us": NaN, "seen": 3}', huge):
        file.write_text(text)
        assert nearest.remembered([0, 1], 2) is None, text[:40]
    nearest.remember([0, 1], 2, samples_of(*[3.5] * 20))
    assert nearest.remembered([0, 1], 2) == 3.5, "after a week without it, what is seen counts anew"


def busy(seconds: float) -> None:
    end = own_times().wall_s + seconds
    while own_times().wall_s < end:
        pass


def burning(cpus: list[int]):
    """A sample of this process burning a CPU for a third of a second."""
    before, own = cpu_times(cpus), own_times()
    busy(0.33)
    timed = own_times().since(own)
    return classify(Timed([], timed.wall_s, timed.waited_s, timed.cpu_s, None), before, cpu_times(cpus), 0)


def test_a_real_neighbour_on_the_same_cpu_is_noticed() -> None:
    cpus = available_cpus()[:1]
    with pinned(cpus):
        neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            busy(0.5)  # it has started
            beside = burning(cpus)
        finally:
            neighbour.kill()
            neighbour.wait()
    assert beside.disturbed
    assert beside.waited > 0.3, "the scheduler gives each of the two about half"
    assert beside.foreign_cpus > 0.3


def test_a_handover_that_is_not_positive_is_not_known() -> None:
    """A difference of two medians, negative where the smaller one was disturbed: all others would seem far."""
    quiet = CpuTimes(0.0, None, None), CpuTimes(0.1, None, None)
    samples = [classify(reply(handover_us=us), *quiet, 0) for us in (-12.0, 0.0, None, 1.0, 1.1)]
    assert [sample.handover_us for sample in samples] == [None, None, None, 1.0, 1.1]
    found = summary(samples)
    assert found["handover_us"]["near"] == 1.0
    assert found["far_apart_slots"] == 0
