"""What the documentation names exists: links, commands, options, experiment keys, files."""

import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from espan.cli.commands import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
PAGES += [ROOT / "examples/README.md", ROOT / "espan/weights/README.md"]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.M)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links(page):
    """Every relative link and picture exists, and so does the heading that it names."""
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", prose(page))
    for target in ("".join(pair) for pair in targets):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(file), f"{target} names no heading of that page"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 150


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `espan` command in the shell examples of a page."""
    for line in "\n".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["espan"]:
            yield words[1:]
        elif "espan" in words and words[words.index("espan") - 1] == "-m":
            yield words[words.index("espan") + 1 :]


@each_page
def test_commands(page):
    """Every command and option in an example exists."""
    known = typer.main.get_command(app).commands
    for name, *arguments in commands(page):
        options = {option for parameter in known[name].params for option in parameter.opts}
        unknown = [a for a in arguments if a.startswith("-") and a not in options]
        assert not unknown, f"espan {name} has no {unknown}"


def test_commands_are_found():
    assert ["train", "--list"] in list(commands(ROOT / "README.md"))


def test_experiment():
    experiment = pytest.importorskip("espan.training.experiment")
    stages = pytest.importorskip("espan.training.stages")
    text, degrade = blocks(ROOT / "docs/training.md", "toml")
    parsed = experiment.parse(text + degrade, "docs/training.md")
    assert parsed.degrade == experiment.read("espan_x2_photo").degrade
    assert len(stages.plan(parsed, None)) == 2


def test_the_import_at_every_start_does_nothing_without_espan(tmp_path, monkeypatch):
    """Python prints an error for a line that fails."""
    (code,) = (b for b in blocks(ROOT / "docs/integrations.md", "python") if "purelib" in b)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    exec(code, {})
    start = f"import site; site.addpackage({str(tmp_path)!r}, 'espan_spandrel.pth', set())"
    command = [sys.executable, "-I", "-S", "-c", start]  # without espan
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    (tmp_path / "espan").mkdir()
    (tmp_path / "espan" / "spandrel.py").write_text("print('imported')")
    start = f"import sys; sys.path.append({str(tmp_path)!r}); {start}"
    with_espan = [sys.executable, "-I", "-S", "-c", start]
    result = subprocess.run(with_espan, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("imported\n", "")


@each_page
def test_paths(page):
    """Every path of the source tree that is named exists."""
    folders = "benchmarks|csrc|docs|espan|espan_kernels|examples|tests"
    paths = re.findall(rf"`((?:{folders})/[\w./*-]*)`", prose(page))
    missing = [path for path in paths if not any(ROOT.glob(path.rstrip("/")))]
    assert not missing
