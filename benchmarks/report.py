"""Writes the README's speed table from the committed results.

Usage: python benchmarks/report.py
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "cpu_peers.json"
BEGIN, END = "<!-- cpu_peers: made by benchmarks/report.py -->", "<!-- end of cpu_peers -->"


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


if __name__ == "__main__":
    README.write_text(updated(README.read_text("utf-8"), json.loads(RESULTS.read_text())), "utf-8")
