"""The page of a run: what is on it is what the records say, nothing is loaded from elsewhere, every text is escaped."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs_to_show import PICTURES, changed_section, hostile, kept

from raq.errors import UserError
from raq.page import plots
from raq.page.parts import Figure, Page, name_of
from raq.page.pictures import read_thumbnails
from raq.page.render import render
from raq.page.run_page import page_of
from raq.page.sections import sections

KEPT = ("cifar10", "calibration-sweep", "qat-sweep", "mixed-precision", "minilm")


class Read(HTMLParser):
    """Elements with their attributes, and the text of tables."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self.inside or "style" in self.inside:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.inside):
            self.rows[-1][-1] += data


def figures_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    figures: dict[str, Any] = json.loads(found[1])
    return figures


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_run(name: str) -> None:
    """The verdict, a row a contender, and plots whose points are the records' numbers; small enough for a mail."""
    run = kept(name)
    text = render(page_of(run))
    assert len(text.encode()) < 2_500_000
    page = Read(text)
    assert run.summary["verdict"]["why"] in "".join(page.words)
    rows = {(row[0], row[1], row[2]): row for row in page.rows if len(row) == 15}
    figures = figures_of(text)
    for candidate in run.summary["candidates"]:
        for latency in candidate["latency"]:
            row = rows[candidate["name"], latency["runtime"], str(latency["batch_size"])]
            assert row[7] == f"{latency['p50_ms']:.3f}"
            assert row[8] == f"{latency['speedup']:.2f}"
            drawn = figures[f"rounds-{latency['device']}-{latency['batch_size']}"]["data"]
            own = next(one for one in drawn if one["name"] == f"{candidate['name']}/{latency['runtime']}")
            assert own["y"] == latency["round_p50_ms"]
            assert [mark.endswith("-open") for mark in own["marker"]["symbol"]] == latency["round_disturbed"]
            points = figures[f"decision-{latency['device']}-{latency['batch_size']}"]["data"]
            point = next(one for one in points if one["name"] == f"{candidate['name']}/{latency['runtime']}")
            assert point["x"] == [latency["p50_ms"]]
            assert candidate["metric"] is not None
            scale = 100 if candidate["metric"]["unit"] == "points" else 1
            assert point["y"] == [scale * candidate["metric"]["value"]]


@pytest.mark.parametrize("name", KEPT)
def test_nothing_is_loaded_from_elsewhere(name: str) -> None:
    page = Read(render(page_of(kept(name))))
    for tag, attributes in page.elements:
        assert not attributes.get("src"), tag
        assert (attributes.get("href") or "#").startswith("#"), tag
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "connect-src" not in policy


@pytest.mark.parametrize("name", ["mixed-precision", "minilm"])
def test_a_hostile_record_is_text(name: str) -> None:
    """No element, attribute or escape comes out of a text, in tables, captions, figures and hover texts."""
    plain, text = render(page_of(kept(name))), render(page_of(hostile(name)))
    allowed = {tag for tag, _ in Read(plain).elements}
    page = Read(text)
    assert {tag for tag, _ in page.elements} <= allowed
    assert sum(tag == "script" for tag, _ in page.elements) == 3
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert "alert(1)" in "".join(page.words)
    body = text[text.index("<body>") :]
    assert "\x1b" not in body
    assert "\u202e" not in body
    hovers = json.dumps(figures_of(text))
    assert "<img" not in hovers
    assert "&lt;img" in hovers, "Plotly reads a little HTML: it is escaped for that too"


def test_changed_answers_are_shown_by_name() -> None:
    """From class to class, and the pictures of those that were kept, with their classes' names."""
    section = changed_section()
    by_class, confusion, gallery, samples = section.parts
    assert [[cell.text for cell in row] for row in samples.rows] == [
        ["1", "dog", "dog", "frog"], ["3", "<b>cat</b>", "<b>cat</b>", "dog"], ["5", "frog", "<b>cat</b>", "frog"]
    ]  # fmt: skip
    assert confusion.layout["xaxis"]["ticktext"] == ["&lt;b&gt;cat&lt;/b&gt;", "dog", "frog"]
    assert confusion.data[0]["z"] == [[None, 1, 1], [None, None, 1], [None, None, None]]
    assert [says for _, says in gallery.pictures] == [
        "1: dog; fp32 dog, ptq frog",
        "5: frog; fp32 <b>cat</b>, ptq frog",
    ]
    assert [png for png, _ in gallery.pictures] == [PICTURES.png(1), PICTURES.png(5)]
    assert [(row[0].text, row[4].sort, row[5].sort) for row in by_class.rows] == [
        ("<b>cat</b>", 1, 0), ("dog", 1, 0), ("frog", 0, 1)
    ]  # fmt: skip
    text = render(Page("t", "h", "", "", False, [section]))
    assert "<b>cat" not in text
    assert text.count('src="data:image/png;base64,') == 2


def test_two_names_are_two_figures() -> None:
    """What stands for letters that an address has not must not make one of two."""
    assert len({name_of("metrics", name) for name in ("a-b", "a_b", "a b", "a.b", "a", "\u202eb", "a/b")}) == 7
    assert name_of("rounds", "cpu", 1) == "rounds-cpu-1"


def test_kernels_that_compute_in_int8_are_blue() -> None:
    types = ["u8", "s8", "int8", "f32", "bf16"]  # as oneDNN and raq call them
    layers = [{"name": f"conv{at}", "kernel": "brg", "dtype": dtype, "ms": 1.0 + at} for at, dtype in enumerate(types)]
    profile: Any = {"candidate": "ptq", "runtime": "inductor", "batch_size": 1, "total_ms": 20.0, "layers": layers}
    assert plots.kernels(profile).data[0]["marker"]["color"] == ["#2f7ed8"] * 3 + ["#7f8ea3"] * 2


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", {"places": 5}, {"places": np.arange(3)},
     {"places": np.arange(3), "images": np.zeros((3, 3, 0, 0))},
     {"places": np.arange(2), "images": np.zeros((3, 3, 8, 8), dtype=np.uint8)},
     {"places": np.arange(1), "images": np.zeros((1, 3, 999, 999), dtype=np.uint8)},
     {"places": np.arange(1), "images": np.zeros((900, 3, 200, 200), dtype=np.uint8)}],
)  # fmt: skip
def test_damaged_thumbnails_are_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "thumbnails.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez_compressed(path, **content)

    class One:
        def file(self, record: Any, name: str) -> Path:
            return path

    with pytest.raises(UserError, match=r"thumbnails\.npz"):
        read_thumbnails(One(), {"results": {"thumbnails": 3}})  # type: ignore[arg-type]


def test_figures_have_words_for_those_who_do_not_see_them() -> None:
    for section in sections(kept("qat-sweep")):
        for part in section.parts:
            if isinstance(part, Figure):
                assert len(part.says) > 20


def test_parallel_coordinates_have_each_training_once() -> None:
    run = kept("qat-sweep")
    found = run.stages["sweep/qat"]["results"]
    run.summary["qat_sweep"] = found
    drawn = figures_of(render(page_of(run)))["trainings"]["data"]
    lines = sum(trace["x"].count(None) for trace in drawn)
    assert lines == sum(trial["top1"] is not None for trial in found["trials"])
    assert len(drawn[0]["x"]) % (len(found["trials"][0]["config"]) + 2) == 0
