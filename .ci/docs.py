"""The documents as a site: README, experiments, results, the commands' help, the Python interface.

    uv run --with mkdocs-material python .ci/docs.py      # into results/site, which git ignores; nothing is published

Pages are the Markdown that stands in the repository; commands and Python are written from the code.
"""

import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "results" / "site"
FOLDERS = ("experiments", "results")
NAVIGATION = [
    {"Start": "index.md"},
    {"Your own model": "experiments/tutorial.md"},
    {"Experiments": "experiments/README.md"},
    {"Reading a report": "experiments/reading.md"},
    {"Clusters": "experiments/cluster.md"},
    {"Results": "results/README.md"},
    {"Reference": [{"Commands": "commands.md"}, {"Python": "python.md"}, {"Glossary": "experiments/glossary.md"}]},
    {"Working on raq": [{"Contributing": "CONTRIBUTING.md"}, {"What did not work": "results/log.md"}]},
]


def main() -> int:
    """Gather, build; the exit code of mkdocs."""
    with tempfile.TemporaryDirectory() as scratch:
        docs = Path(scratch) / "docs"
        gather(docs)
        settings = {
            "site_name": "raq", "docs_dir": str(docs), "site_dir": str(SITE), "nav": NAVIGATION,
            "theme": {"name": "material", "font": False, "features": ["navigation.sections", "content.code.copy"]},
            "markdown_extensions": ["tables", "fenced_code", "toc", "attr_list"], "use_directory_urls": False,
            "plugins": ["search"], "validation": {"links": {"anchors": "warn"}},
        }  # fmt: skip
        config = Path(scratch) / "mkdocs.yml"
        config.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", str(config)]
        return subprocess.run(command, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}).returncode


def gather(docs: Path) -> None:
    """Everything that the site is made of, as a folder of Markdown."""
    docs.mkdir()
    shutil.copy(ROOT / "README.md", docs / "index.md")
    shutil.copy(ROOT / "CONTRIBUTING.md", docs)
    shutil.copy(ROOT / "LICENSE", docs)
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder, docs / folder,
            ignore=lambda place, names: [name for name in names if Path(place) == ROOT / "results" and
                                         name not in ("README.md", "log.md", "reference")],
        )  # fmt: skip
    (docs / "commands.md").write_text(commands())
    (docs / "python.md").write_text(python())
    for page in docs.rglob("*.md"):
        page.write_text(linked(page.read_text(), page, docs))


def linked(text: str, page: Path, docs: Path) -> str:
    """Links to the README lead to the first page; those to folders and to files that are no pages, to nothing here."""

    def changed(match: re.Match[str]) -> str:
        words, target = match[1], match[2]
        place, _, anchor = target.partition("#")
        if "://" in target or not place:
            return match[0]
        at = (page.parent / place).resolve()
        if at == docs / "README.md":
            return f"[{words}]({os.path.relpath(docs / 'index.md', page.parent)}{'#' + anchor if anchor else ''})"
        return match[0] if at.is_file() else words

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", changed, text)


def commands() -> str:
    """Every command's own help."""
    from typer.main import get_command

    from raq.cli.main import app

    group = get_command(app)
    lines = ["# Commands", "", "What `raq COMMAND --help` says.", ""]
    for name in group.commands:  # type: ignore[attr-defined]
        shown = subprocess.run(
            [sys.executable, "-m", "raq", name, "--help"], capture_output=True, text=True, check=True,
            env={**os.environ, "COLUMNS": "100", "TERM": "dumb"},
        ).stdout  # fmt: skip
        lines += [f"## raq {name}", "", "```text", *shown.strip().splitlines(), "```", ""]
    return "\n".join(lines)


def python() -> str:
    """What `import raq` offers, by its docstrings."""
    import raq

    lines = ["# Python", ""]
    for name in raq.__all__:
        found = getattr(raq, name)
        lines += [f"## raq.{name}", "", *_documented(f"raq.{name}", found)]
        if inspect.isclass(found):
            for own, member in vars(found).items():
                is_public = not own.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
                if is_public and inspect.getdoc(member):
                    lines += [f"### {own}", "", *_documented(own, member)]
    return "\n".join(lines)


def _documented(name: str, found: object) -> list[str]:
    callable_ = callable(found) and not isinstance(found, property)
    signature = f"{name}{inspect.signature(found)}" if callable_ else name  # type: ignore[arg-type]
    return ["```python", signature, "```", "", inspect.getdoc(found) or "", ""]


if __name__ == "__main__":
    sys.exit(main())
