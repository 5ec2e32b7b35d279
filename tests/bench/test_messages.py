"""What a contender's process answers, as its parent reads it: an artifact runs there, so it may be anything."""

import json

import pytest

from raq.bench.messages import Load, Timed, decode, encode
from raq.experiment.inputs import image_input


def test_a_message_comes_back_as_it_was_sent() -> None:
    load = Load("ptq", "inductor", "cpu", "a.pt2", (image_input((3, 32, 32)),), 2, "", 10, None, [0, 1], "m:f", None)
    timed = Timed([1.0, 2.5], 0.1, None, 0.2, 1.5)
    assert [decode(encode(message)) for message in (load, timed)] == [load, timed]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff", b"null", b"[]", b"[[1], {}]", b'[{"a": 1}, {}]', b'["Nothing", {}]', b'["Timed", {}]',
        b'["Timed", {"samples_ms": "x", "wall_s": 1, "waited_s": 1, "cpu_s": 1, "handover_us": 1}]',
        b"[" * 200_000, json.dumps(["Timed", None]).encode(),
    ],
)  # fmt: skip
def test_what_is_no_message_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError):
        decode(content)
