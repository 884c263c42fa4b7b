"""The tables and the curves of docs/reproduction.md, from the results of reproduce.py.

`benchmarks/report.py` writes them into the documentation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

Result = dict[str, Any]

# The paper's PSNR of each row after all its steps, and its name there.
PAPER: dict[str, tuple[str, float | None]] = {
    "tab7:plain": ("plain 3×3", 26.484),
    "tab7:repvgg": ("RepVGG", 26.618),
    "tab7:edbb": ("EDBB", 26.689),
    "tab7:rrrb": ("RRRB", 26.677),
    "tab7:repmbconv": ("RepMBConv", 26.663),
    "tab7:grep-1-0": ("GRep [1, 0]", 26.690),
    "tab7:grep-2-0": ("GRep [2, 0]", 26.707),
    "tab7:grep-4-0": ("GRep [4, 0]", 26.705),
    "tab7:grep-2-2": ("GRep [2, 2]", 26.709),
    "tab7:grep-0-4": ("GRep [0, 4]", 26.700),
    "tab8:l1": ("L1", 26.609),
    "tab8:l2": ("L2", 26.592),
    "tab8:hf": ("HF", 16.740),
    "tab8:dct": ("DCT", 26.570),
    "tab8:l1-hf": ("L1 + HF", 26.622),
    "tab8:l1-dct": ("L1 + DCT", 26.636),
    "tab8:l1-hf-dct": ("L1 + HF + DCT", 26.641),
    "tab8:l1-fft": ("L1 + FFT", 26.598),
    "tab8:l1-dwt": ("L1 + DWT", 26.619),
    "tab8:l2-hf-dct": ("L2 + HF + DCT", 26.658),
    "tab6:d5d6d6": ("d5d6d6", 26.847),
    "tab6:d5d7d6": ("d5d7d6", 26.850),
    "fig5:alone": ("without", None),
    "fig5:distilled": ("with self-distillation", None),
}
# What the paper says is better, and than what.
CLAIMS = (
    ("tab7:repvgg", "tab7:plain"),
    ("tab7:edbb", "tab7:plain"),
    ("tab7:rrrb", "tab7:plain"),
    ("tab7:repmbconv", "tab7:plain"),
    ("tab7:grep-1-0", "tab7:plain"),
    ("tab7:grep-2-0", "tab7:plain"),
    ("tab7:grep-4-0", "tab7:plain"),
    ("tab7:grep-1-0", "tab7:repvgg"),
    ("tab7:grep-1-0", "tab7:rrrb"),
    ("tab7:grep-1-0", "tab7:repmbconv"),
    ("tab7:grep-1-0", "tab7:edbb"),
    ("tab7:grep-2-0", "tab7:grep-1-0"),
    ("tab7:grep-4-0", "tab7:grep-1-0"),
    ("tab7:grep-2-2", "tab7:grep-4-0"),
    ("tab7:grep-2-2", "tab7:grep-0-4"),
    ("tab8:l1", "tab8:l2"),
    ("tab8:l1", "tab8:hf"),
    ("tab8:l1", "tab8:dct"),
    ("tab8:l1-hf", "tab8:l1"),
    ("tab8:l1-dct", "tab8:l1"),
    ("tab8:l1-hf-dct", "tab8:l1"),
    ("tab8:l1-dct", "tab8:l1-fft"),
    ("tab8:l1-dct", "tab8:l1-dwt"),
    ("tab8:l2-hf-dct", "tab8:l1"),
    ("tab8:l2-hf-dct", "tab8:l1-hf-dct"),
    ("tab6:d5d7d6", "tab6:d5d6d6"),
    ("fig5:distilled", "fig5:alone"),
)
BASELINES = {"tab7": "plain", "tab8": "l1", "tab6": "d5d6d6", "fig5": "alone"}
TITLES = {
    "tab7": "Tab. 7: the training form of a convolution",
    "tab8": "Tab. 8: the terms of the loss",
    "tab6": "Tab. 6: from five blocks to six",
    "fig5": "Fig. 5: self-distillation",
}


def load(folder: Path) -> list[Result]:
    """All results in a folder."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]


def of_row(results: Sequence[Result], row: str) -> dict[int, Result]:
    """The results of a row, by seed."""
    return {r["seed"]: r for r in sorted(results, key=lambda r: r["seed"]) if row in r["rows"]}


@dataclass(frozen=True)
class Difference:
    """PSNR of a row minus that of another, in dB, for each seed that both have."""

    values: tuple[float, ...]

    @property
    def error(self) -> float | None:
        """The standard error of the mean."""
        count = len(self.values)
        return stdev(self.values) / count**0.5 if count > 1 else None

    @property
    def verdict(self) -> str:
        """Whether the row is better: by the mean, if it exceeds twice its standard error."""
        if not self.values:
            return "not yet run"
        if self.error is None:
            return "one seed"
        if abs(mean(self.values)) <= 2 * self.error:
            return "within the spread"
        return "held" if mean(self.values) > 0 else "did not hold"

    def __str__(self) -> str:
        if not self.values:
            return "–"
        text = f"{mean(self.values):+.3f}"
        return text if self.error is None else f"{text} ± {self.error:.3f}"


def difference(results: Sequence[Result], row: str, other: str) -> Difference:
    ours, theirs = of_row(results, row), of_row(results, other)
    return Difference(tuple(ours[s]["psnr"] - theirs[s]["psnr"] for s in ours if s in theirs))


def paper_difference(row: str, other: str) -> str:
    ours, theirs = PAPER[row][1], PAPER[other][1]
    return "better" if ours is None or theirs is None else f"{ours - theirs:+.3f}"


def rows_of(table: str) -> list[str]:
    return [row for row in PAPER if row.startswith(f"{table}:")]


def table(results: Sequence[Result], name: str) -> str:
    """PSNR of the rows of a table, and their differences from its baseline."""
    baseline = f"{name}:{BASELINES[name]}"
    lines = [
        "| | paper, dB | difference | here, dB | difference | seeds | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows_of(name):
        label, paper = PAPER[row]
        found = of_row(results, row)
        values = [r["psnr"] for r in found.values()]
        diverged = sum(r["failed"] is not None for r in found.values())
        cells = [
            label,
            "–" if paper is None else f"{paper:.3f}",
            "" if row == baseline else paper_difference(row, baseline),
            f"{mean(values):.3f}" if values else "–",
            "" if row == baseline else str(difference(results, row, baseline)),
            str(len(values)),
            f"{diverged} diverged" if diverged else "" if values else "not yet run",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", where(results, name)])


def where(results: Sequence[Result], name: str) -> str:
    """Scale and machine of the results of a table."""
    found = [r for r in results if any(row.startswith(f"{name}:") for row in r["rows"])]
    if not found:
        return "Not yet run."
    machines = sorted({r["machine"]["gpu"] or r["machine"]["processor"] for r in found})
    torches = sorted({r["machine"]["torch"] for r in found})
    commits = sorted({r["machine"]["espan"] for r in found})
    steps = sorted({r["steps"] for r in found})
    stages = sorted(
        {(s["batch"], s["hr_patch"]) for r in found for s in r["experiment"]["stage"]}, reverse=True
    )
    crops = " and ".join(f"{batch} crops of {patch}×{patch}" for batch, patch in stages)
    return (
        f"{' and '.join(f'{n:,}' for n in steps)} steps of {crops} HR pixels; "
        f"{', '.join(machines)}; torch {', '.join(torches)}; espan at {', '.join(commits)}."
    )


def claims(results: Sequence[Result]) -> str:
    """What the paper says is better, and whether it was."""
    lines = [
        "| | better | than | paper, dB | here, dB | |",
        "|---|---|---|---|---|---|",
    ]
    for row, other in CLAIMS:
        found = difference(results, row, other)
        where = row.partition(":")[0].replace("tab", "Tab. ").replace("fig", "Fig. ")
        cells = [where, PAPER[row][0], PAPER[other][0], paper_difference(row, other)]
        lines.append(f"| {' | '.join([*cells, str(found), found.verdict])} |")
    verdicts = [difference(results, *claim).verdict for claim in CLAIMS]
    names = ("held", "did not hold", "within the spread", "one seed", "not yet run")
    counts = [f"{verdicts.count(name)} {name}" for name in names if name in verdicts]
    return "\n".join([*lines, "", f"Of {len(CLAIMS)}: {', '.join(counts)}."])


def photographs(results: Sequence[Result]) -> str:
    """What was trained and validated on."""
    if not results:
        return "Not yet run."
    sets = {r["photographs"]["sha256"]: r["photographs"] for r in results}
    return "  \n".join(
        f"{s['number'] - len(s['held_out'])} photographs to train on; held out: "
        f"{', '.join(s['held_out'])}; SHA-256 of all {digest[:16]}."
        for digest, s in sets.items()
    )


def digest(results: Sequence[Result], name: str) -> str:
    """A hash of what the curves of a table show."""
    shown = [
        [row, seed, r["curves"]]
        for row in rows_of(name)
        for seed, r in of_row(results, row).items()
    ]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def draw(results: Sequence[Result], name: str, path: Path) -> None:
    """Write the curves of a table as a PNG: the mean over the seeds, and each seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, row in enumerate(rows_of(name)):
        found = of_row(results, row)
        curves = [r["curves"].get("student", r["curves"].get("network")) for r in found.values()]
        colour = f"C{number}"
        for curve in curves:
            axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.3, linewidth=0.8)
        if curves:
            shortest = min(map(len, curves))
            steps = [point[0] for point in curves[0][:shortest]]
            means = [mean(c[i][1] for c in curves) for i in range(shortest)]
            axes.plot(steps, means, color=colour, label=PAPER[row][0])
    axes.set_title(TITLES[name])
    axes.set_xlabel("step")
    axes.set_ylabel("PSNR of held-out photographs [dB]")
    if axes.lines:
        finals = [r["psnr"] for row in rows_of(name) for r in of_row(results, row).values()]
        axes.set_ylim(median(finals) - 2, max(finals) + 0.3)  # HF alone is far below
        axes.legend(loc="lower right", fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=110, metadata={"Results": digest(results, name)})
