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


def rates_of(results: Sequence[Result]) -> list[float]:
    """The factors of the learning rates; the paper's alone if there are no results."""
    return sorted({r["rate"] for r in results}) or [1]


def of_row(results: Sequence[Result], row: str, rate: float) -> dict[int, Result]:
    """The results of a row, by seed."""
    found = [r for r in results if row in r["rows"] and r["rate"] == rate]
    return {r["seed"]: r for r in sorted(found, key=lambda r: r["seed"])}


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


def difference(results: Sequence[Result], row: str, other: str, rate: float) -> Difference:
    ours, theirs = of_row(results, row, rate), of_row(results, other, rate)
    return Difference(tuple(ours[s]["psnr"] - theirs[s]["psnr"] for s in ours if s in theirs))


def paper_difference(row: str, other: str) -> str:
    ours, theirs = PAPER[row][1], PAPER[other][1]
    return "better" if ours is None or theirs is None else f"{ours - theirs:+.3f}"


def rows_of(table: str) -> list[str]:
    return [row for row in PAPER if row.startswith(f"{table}:")]


def rates_of_table(results: Sequence[Result], name: str) -> list[float]:
    """The rates at which several rows of a table have results; the paper's if there are none."""
    counts = {
        rate: sum(bool(of_row(results, row, rate)) for row in rows_of(name))
        for rate in rates_of(results)
    }
    return [rate for rate, count in counts.items() if count > 1] or [1]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its heading."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def table(results: Sequence[Result], name: str) -> str:
    """PSNR of the rows of a table, and their differences from its baseline, at each rate."""
    baseline, rates = f"{name}:{BASELINES[name]}", rates_of_table(results, name)
    heading = ["", "paper", "difference"]
    for rate in rates:
        heading += [f"lr {1e-4 * rate:g}", "difference", "seeds"]
    lines = [heading]
    for row in rows_of(name):
        label, paper = PAPER[row]
        compared = row != baseline
        cells = [
            label,
            "–" if paper is None else f"{paper:.3f}",
            paper_difference(row, baseline) if compared else "",
        ]
        for rate in rates:
            found = list(of_row(results, row, rate).values())
            diverged = sum(r["failed"] is not None for r in found)
            cells += [
                f"{mean(r['psnr'] for r in found):.3f}" if found else "not yet run",
                str(difference(results, row, baseline, rate)) if compared else "",
                f"{len(found)}, {diverged} diverged" if diverged else str(len(found)),
            ]
        lines.append(cells)
    return f"{markdown(lines)}\n\n{where(results, name)}"


def where(results: Sequence[Result], name: str) -> str:
    """Scale and machine of the results of a table."""
    found = [r for r in results if any(row.startswith(f"{name}:") for row in r["rows"])]
    if not found:
        return "Not yet run."
    machines = sorted({r["machine"]["gpu"] or r["machine"]["processor"] for r in found})
    torches = sorted({r["machine"]["torch"] for r in found})
    commits = sorted({r["machine"]["espan"] for r in found})
    precisions = sorted({r["precision"] for r in found})
    steps = sorted({s["iterations"] for r in found for s in r["experiment"]["stage"]})
    sizes = {(s["batch"], s["hr_patch"]) for r in found for s in r["experiment"]["stage"]}
    crops = " or ".join(f"{batch} crops of {p}×{p}" for batch, p in sorted(sizes, reverse=True))
    scale = f"{' or '.join(f'{n:,}' for n in steps)} steps of {crops} HR pixels in each stage"
    return (
        f"dB; {scale}, convolutions in {' or '.join(precisions)}; {', '.join(machines)}; "
        f"torch {', '.join(torches)}; espan at {', '.join(commits)}."
    )


def claims(results: Sequence[Result]) -> str:
    """What the paper says is better, and whether it was, at each rate."""
    rates = rates_of(results)
    heading = ["", "better", "than", "paper"]
    for rate in rates:
        heading += [f"lr {1e-4 * rate:g}", ""]
    lines, verdicts = [heading], {rate: list[str]() for rate in rates}
    for row, other in CLAIMS:
        figure = row.partition(":")[0].replace("tab", "Tab. ").replace("fig", "Fig. ")
        cells = [figure, PAPER[row][0], PAPER[other][0], paper_difference(row, other)]
        for rate in rates:
            found = difference(results, row, other, rate)
            cells += [str(found), found.verdict]
            verdicts[rate].append(found.verdict)
        lines.append(cells)
    names = ("held", "did not hold", "within the spread", "one seed", "not yet run")
    sums = [
        f"Of {len(CLAIMS)} at lr {1e-4 * rate:g}: "
        + ", ".join(f"{found.count(name)} {name}" for name in names if name in found)
        for rate, found in verdicts.items()
    ]
    return f"{markdown(lines)}\n\n{'.  '.join(sums)}."


def photographs(results: Sequence[Result]) -> str:
    """What was trained and validated on."""
    sets = {r["photographs"]["sha256"]: r["photographs"] for r in results}
    return "  \n".join(
        f"{s['number'] - len(s['held_out'])} photographs to train on; held out: "
        f"{', '.join(s['held_out'])}; SHA-256 of all: {digest[:16]}. On those held out, bicubic "
        f"interpolation has {s['bicubic']:.3f} dB."
        for digest, s in sets.items()
    )


def curves(results: Sequence[Result], row: str, rate: float) -> list[list[tuple[int, float]]]:
    """PSNR of the deployed network by steps, for each seed: a student, then what it became."""
    found = (r["curves"] for r in of_row(results, row, rate).values())
    return [[*curve.get("student", []), *curve.get("network", [])] for curve in found]


def digest(results: Sequence[Result], name: str) -> str:
    """A hash of what the picture of a table shows."""
    rates = rates_of_table(results, name)
    shown = [[row, rate, curves(results, row, rate)] for row in rows_of(name) for rate in rates]
    return hashlib.sha256(json.dumps(shown, allow_nan=False).encode()).hexdigest()


def draw(results: Sequence[Result], name: str, path: Path) -> None:
    """Write the curves of a table as a PNG: each seed, and the mean over the seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rates = rates_of_table(results, name)
    figure = Figure(figsize=(2.5 + 5.5 * len(rates), 5), layout="constrained")
    FigureCanvasAgg(figure)
    lines: dict[str, Any] = {}
    for axes, rate in zip(figure.subplots(1, len(rates), squeeze=False)[0], rates, strict=True):
        finals = []
        for number, row in enumerate(rows_of(name)):
            colour, found = f"C{number}", curves(results, row, rate)
            for curve in found:
                axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.3, linewidth=0.8)
            finals += [curve[-1][1] for curve in found]
            if found:
                points = list(zip(*found, strict=False))  # a run that diverged is shorter
                steps = [point[0][0] for point in points]
                means = [mean(psnr for _, psnr in point) for point in points]
                axes.plot(steps, means, color=colour, label=PAPER[row][0])
        axes.set_title(f"{TITLES[name]}, learning rate {1e-4 * rate:g}")
        axes.set_xlabel("step")
        axes.set_ylabel("PSNR of held-out photographs [dB]")
        axes.grid(alpha=0.3)
        if finals:
            near = [psnr for psnr in finals if psnr > median(finals) - 8]  # not HF alone
            axes.set_ylim(min(near) - 1, max(near) + 0.3)
            lines = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)) | lines
    figure.legend(lines.values(), lines.keys(), loc="outside right upper", fontsize="small")
    figure.savefig(path, format="png", dpi=110, metadata={"Results": digest(results, name)})
