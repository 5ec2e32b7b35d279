"""The table of a sweep's trials: hostile texts are text, numbers are numbers."""

from pathlib import Path

import pandas as pd

from raq.stages.trials import write_table

HOSTILE = '=cmd|"/C calc"!A1'
ERROR = "ValueError: \x1b[31mred\x1b[0m,\n\u202e[bold]<script>"


def test_hostile_texts(tmp_path: Path) -> None:
    trials = [
        {"config": {"optimizer": HOSTILE, "lr": 0.1}, "value": 0.5},
        {"config": {"optimizer": "sgd", "lr": -0.2}, "value": None, "error": ERROR},
    ]
    write_table(tmp_path, trials, ["value", "error"])
    written = (tmp_path / "trials.csv").read_text()
    assert "\x1b" not in written
    assert "\u202e" not in written
    assert len(written.splitlines()) == 3, "a text made no line"
    read = pd.read_csv(tmp_path / "trials.csv")
    assert read["config/optimizer"].tolist() == [f"'{HOSTILE}", "sgd"]
    assert read["config/lr"].tolist() == [0.1, -0.2]
    assert "[bold]<script>" in read["error"][1]
    assert pd.read_parquet(tmp_path / "trials.parquet")["config/optimizer"][0] == HOSTILE
