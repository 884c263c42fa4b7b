"""Writes the speed tables of the README and the docs from the committed results.

Usage: python benchmarks/report.py
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "docs/performance.md", "docs/training.md")]
# How many times as fast as the best other of each precision espan should be, by network.
DEFAULT = "espan (default)"
TARGETS = {"ESPAN": {"fp32": 3.0, "bf16": 1.5}, "SPAN": {"fp32": 2.5}}


def peers(results: dict[str, Any]) -> str:
    """Median milliseconds of each way to run each case, and how many times ours that is.

    Ours is espan in fp32 asked for by name, or in results without it, what espan picks by itself.
    """
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
            ours = case["times"].get("espan fp32", case["times"][DEFAULT])["median_ms"]
            time = case["times"].get(name, {}).get("median_ms")
            cells.append("–" if time is None else f"{time:.0f} ({time / ours:.2f})")
        bits = ", 17 bits" if name == DEFAULT and machine["path"] == "amx" else ""
        lines.append(f"| {name}{bits} | " + " | ".join(cells) + " |")
    lines.append("")
    lines.append(
        f"{machine['processor']}, {machine['threads']} threads, {machine['path']}; {versions}; "
        f"espan at {machine['espan']}."
    )
    return "\n".join(lines)


def targets(results: dict[str, Any]) -> str:
    """Ours against the fastest other: fp32 asked for by name against fp32, any against bf16."""
    lines = ["| case | against | espan | times as fast | target | |", "|---|---|---|---|---|---|"]
    for case in results["cases"]:
        medians = {name: time["median_ms"] for name, time in case["times"].items()}
        ours = {name for name in medians if name.startswith("espan")}
        for precision, target in TARGETS[case["case"].split()[0]].items():
            allowed = [n for n in ours if precision != "fp32" or n.endswith("fp32")]
            others = [n for n in medians.keys() - ours if n.endswith(precision)]
            best = min(others, key=lambda n: medians[n])
            if not allowed:
                cells = [case["case"], f"{best}, {medians[best]:.0f} ms", "espan fp32", "–"]
                lines.append(f"| {' | '.join(cells)} | {target:g} | not measured |")
                continue
            mine = min(allowed, key=lambda n: medians[n])
            ratio = medians[best] / medians[mine]
            cells = [
                case["case"],
                f"{best}, {medians[best]:.0f} ms",
                f"{mine}, {medians[mine]:.0f} ms",
                f"{ratio:.2f}",
                f"{target:g}",
                "met" if ratio >= target else "not met",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def training(results: dict[str, Any]) -> str:
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


# The file of results and the function of each table.
TABLES = {
    "cpu_peers": ("cpu_peers", peers),
    "cpu_targets": ("cpu_peers", targets),
    "training": ("training", training),
}


def load() -> dict[str, Any]:
    """The committed results, by the names of their files."""
    folder = ROOT / "benchmarks" / "results"
    return {name: json.loads((folder / f"{name}.json").read_text()) for name, _ in TABLES.values()}


def updated(text: str, results: dict[str, Any]) -> str:
    """A document's text with the tables between its marks replaced."""
    for name, (source, table) in TABLES.items():
        begin, end = f"<!-- {name}: made by benchmarks/report.py -->", f"<!-- end of {name} -->"
        if begin in text:
            before, rest = text.split(begin)
            _, after = rest.split(end)
            text = f"{before}{begin}\n{table(results[source])}\n{end}{after}"
    return text


if __name__ == "__main__":
    measured = load()
    for document in DOCUMENTS:
        document.write_text(updated(document.read_text("utf-8"), measured), "utf-8")
