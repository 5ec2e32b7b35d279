"""The tables of the pages are those of the records and of the schema."""

import json
import re

import pages
import pytest
from kept_records import REFERENCE, RUNS

from raq.experiment.json_schema import json_schema


@pytest.mark.parametrize("page", pages.PAGES)
def test_every_table_is_that_of_the_records(page: str) -> None:
    text = (pages.ROOT / page).read_text()
    found = pages.PLACE.findall(text)
    assert len(found) == text.count("<!-- table:"), "a table without its end"
    assert pages.with_tables(text) == text, "run: uv run python tests/pages.py --write"


def test_every_table_stands_on_a_page() -> None:
    text = "".join((pages.ROOT / page).read_text() for page in pages.PAGES)
    assert set(pages.PLACE.findall(text)) == set(pages.TABLES)


@pytest.mark.parametrize("name", RUNS)
def test_the_table_beside_a_record_is_that_of_the_record(name: str) -> None:
    assert (REFERENCE / name / "table.txt").read_text() == pages.table_text(name)


def test_the_schema_for_editors_is_that_of_the_models() -> None:
    kept = json.loads((pages.ROOT / "experiments" / "schema.json").read_text())
    assert kept == json_schema(), "run: uv run python tests/pages.py --write"


def test_a_changed_record_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (pages.ROOT / "results" / "README.md").read_text()
    read = pages.read

    def changed(name: str):
        found = read(name)
        if name == "executed.json":
            found["cases"][0]["executed_int8_mac_share"] = 0.5
        return found

    monkeypatch.setattr(pages, "read", changed)
    assert pages.with_tables(text) != text


def test_no_table_is_written_by_hand() -> None:
    """A table of figures outside of the marks would not be held to a record."""
    for page in pages.PAGES:
        rest = pages.PLACE.sub("", (pages.ROOT / page).read_text())
        rows = [line for line in rest.splitlines() if line.startswith("|") and re.search(r"\d\.\d", line)]
        assert rows == []
