"""What nvidia-smi prints, read; where there is no GPU this is all that can be tested."""

from raq.environment import read_gpu_state

LISTED = """0, GPU-aaa, 1980, 41, 0x0000000000000001
1, GPU-bbb, [N/A], [N/A], [N/A]
"""


def test_gpus_as_nvidia_smi_lists_them() -> None:
    first, second = read_gpu_state(LISTED, "GPU-aaa, 4242\nGPU-aaa, 4243\n")
    assert first == {
        "index": 0, "mhz": 1980.0, "celsius": 41.0, "throttle_reasons": "0x0000000000000001", "processes": 2,
    }  # fmt: skip
    assert second == {"index": 1, "mhz": None, "celsius": None, "throttle_reasons": None, "processes": 0}


def test_processes_that_were_not_listed_are_unknown() -> None:
    assert [gpu["processes"] for gpu in read_gpu_state(LISTED, None)] == [None, None]
