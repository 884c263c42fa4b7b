"""Writes the speed tables of the README and of docs/training.md from the committed results.

Usage: python benchmarks/report.py
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "cpu_peers.json"
BEGIN, END = "<!-- cpu_peers: made by benchmarks/report.py -->", "<!-- end of cpu_peers -->"
TRAINING = ROOT / "docs" / "training.md"
TRAINING_RESULTS = ROOT / "benchmarks" / "results" / "training.json"
TRAINING_BEGIN, TRAINING_END = BEGIN.replace("cpu_peers", "training"), "<!-- end of training -->"


def table(results: dict[str, Any]) -> str:
    """Median milliseconds of each way to run each case, and how many times ours that is."""
    cases = results["cases"]
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        "| median ms (times espan's) | " + " | ".join(c["case"] for c in cases) + " |",
        "|---|" + "---|" * len(cases),
    ]
    for name in cases[0]["times"]:
        cells = []
        for case in cases:
            ours = case["times"]["espan fp32"]["median_ms"]
            time = case["times"].get(name, {}).get("median_ms")
            cells.append("–" if time is None else f"{time:.0f} ({time / ours:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append("")
    lines.append(
        f"{machine['processor']}, {machine['threads']} threads, {machine['path']}; {versions}; "
        f"espan at {machine['espan']}."
    )
    return "\n".join(lines)


def updated(readme: str, results: dict[str, Any]) -> str:
    """The README's text with the table between its marks replaced."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


def training_table(results: dict[str, Any]) -> str:
    """Median milliseconds of each way to do a thing, ours first, and how many times ours it is."""
    machine = results["machine_info"]
    lines = ["| what | way | median ms | times the first |", "|---|---|---|---|"]
    first: dict[str, float] = {}
    for benchmark in results["benchmarks"]:
        group, way = benchmark["group"], ", ".join(map(str, benchmark["params"].values()))
        median = 1e3 * benchmark["stats"]["median"]
        ratio = f"{median / first.setdefault(group, median):.2f}"
        if (waiting := benchmark["extra_info"].get("waiting")) is not None:
            way = f"{way} workers, {waiting:.1%} of it waiting for data"
        lines.append(f"| {group} | {way} | {median:.0f} | {ratio} |")
    lines.append("")
    lines.append(
        f"{machine['gpu'] or machine['processor']}, {machine['threads']} threads, load "
        f"{machine['load_when_done']}; torch {machine['torch']}; espan at {machine['espan']}."
    )
    return "\n".join(lines)


def training_updated(text: str, results: dict[str, Any]) -> str:
    """The text of docs/training.md with the table between its marks replaced."""
    before, rest = text.split(TRAINING_BEGIN)
    _, after = rest.split(TRAINING_END)
    return f"{before}{TRAINING_BEGIN}\n{training_table(results)}\n{TRAINING_END}{after}"


if __name__ == "__main__":
    training = json.loads(TRAINING_RESULTS.read_text())
    TRAINING.write_text(training_updated(TRAINING.read_text("utf-8"), training), "utf-8")
    README.write_text(updated(README.read_text("utf-8"), json.loads(RESULTS.read_text())), "utf-8")
