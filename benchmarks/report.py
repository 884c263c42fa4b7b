"""Write the tables and the pictures of the documentation from the committed results.

Usage: python benchmarks/report.py
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import chart, reproduction

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    ROOT / "docs" / name
    for name in (
        "performance.md",
        "notes/cpu.md",
        "notes/gpu.md",
        "notes/training.md",
        "reproduction.md",
    )
] + [ROOT / "espan/weights/README.md"]
CURVES = {name: ROOT / f"docs/images/{name}.png" for name in reproduction.TITLES}
CHARTS = {theme: ROOT / f"docs/images/speed-{theme}.svg" for theme in chart.COLOURS}
DEFAULT = "espan (default)"
# How many times as fast as the best other of each precision espan should be, by network.
TARGETS = {
    "ESPAN": {"fp32": 3.0, "bf16": 1.5},
    "SPAN": {"fp32": 2.5},
    "SPANV2": {"fp32": 2.5},
    "SPANF3": {"fp32": 2.5},
}

# The rows of the GPU tables: the label, and the name in the results.
GPU_WAYS = (
    ("official code, fp32", "official"),
    ("PyTorch, fp32", "eager fp32"),
    ("espan, fp32 (PyTorch's convolutions)", "espan fp32"),
    ("PyTorch, TF32", "eager TF32"),
    ("PyTorch, fp16, channels last", "eager fp16 channels-last"),
    ("PyTorch, fp16, channels last, CUDA graph", "graphed fp16 channels-last"),
    ("torch.compile (max-autotune), fp16, channels last", "compiled fp16 channels-last"),
    ("espan's Triton kernels, fp16, CUDA graph", "espan Triton fp16 graphed"),
    ("espan, fp16, CUDA graph", "espan fp16 graphed"),
    ("espan, fp16, CUDA graph, 8-bit images", "espan bytes graphed"),
)
# The networks and ways of the table of the family.
GPU_FAMILY = (
    ("SPANV2 ×4", "spanv2"),
    ("SPANF3 b5f48 ×2", "spanf3_b5f48"),
    ("SPANF3 b8f64 ×2", "spanf3_b8f64"),
)
GPU_FAMILY_WAYS = (
    ("PyTorch, fp32", "eager fp32"),
    ("torch.compile (max-autotune), fp16", "compiled fp16 channels-last"),
    ("espan's Triton kernels, fp16", "espan Triton fp16 graphed"),
    ("espan, fp16", "espan fp16 graphed"),
    ("espan, 8-bit images", "espan bytes graphed"),
)
ALONE = "espan, fp16, CUDA graph, without copying image and result"
GPU_PARTS = (("CUDA", "espan"), ("Triton", "triton"), ("PyTorch, channels last", "eager fp16"))
GPU_LOSSES = (
    ("CUDA", "one pass"),
    ("Triton", "triton"),
    ("plain PyTorch, torch.compile", "compiled"),
    ("plain PyTorch", "eager"),
)
GPU_SIZES = ("256x256", "510x339", "1920x1080")
# For the lowest possible time: the rate of the tensor cores, and the multiply-adds of ESPAN x4 at
# 256x256 (`espan info espan`).
TFLOPS, GMACS = 798, 12.56
CHARTED = "ESPAN ×4, one 510×339 image to 2040×1356; shorter is faster"
LOSS_GROUP, LOSS_DTYPES = "frequency loss cuda 16x3x512x512", ("float32", "float16", "bfloat16")
COPY_SHARE = 0.8  # the target of the loss: its bandwidth as a share of that of a copy


def peers(results: dict[str, Any]) -> str:
    """Median milliseconds of each way to run each case, and as a multiple of espan's time.

    espan's time is that of explicit fp32 or, if the results do not have it, of the default.
    """
    cases = results["cases"]
    machine = cases[0]["machine"]
    lines = [
        "| median ms (relative to espan fp32) | " + " | ".join(c["case"] for c in cases) + " |",
        "|---|" + "---|" * len(cases),
    ]
    for name in cases[0]["times"]:
        cells = []
        for case in cases:
            ours = (case["times"].get("espan fp32") or case["times"][DEFAULT])["median_ms"]
            time = case["times"].get(name, {}).get("median_ms")
            cells.append("–" if time is None else f"{time:.0f} ({time / ours:.2f})")
        bits = ", 17 bits" if name == DEFAULT and machine["path"] == "amx" else ""
        lines.append(f"| {name}{bits} | " + " | ".join(cells) + " |")
    lines.append("")
    measured: dict[str, dict[str, list[str]]] = {}  # cases by versions and commit
    for case in cases:
        versions = ", ".join(f"{n} {version}" for n, version in case["machine"]["versions"].items())
        commits = measured.setdefault(versions, {})
        commits.setdefault(case["machine"]["espan"], []).append(case["case"])
    several = len(measured) > 1 or any(len(commits) > 1 for commits in measured.values())
    used = (
        f"{versions}; espan at "
        + ", ".join(f"{c} ({', '.join(names)})" if several else c for c, names in commits.items())
        for versions, commits in measured.items()
    )
    lines.append(
        f"{machine['processor']}, {machine['threads']} threads, {machine['path']}; "
        f"{'; '.join(used)}."
    )
    return "\n".join(lines)


def targets(results: dict[str, Any]) -> str:
    """The times on a CPU against the targets: explicit fp32 against fp32, any against bf16."""
    lines = ["| case | against | espan | times as fast | target | |", "|---|---|---|---|---|---|"]
    for case in results["cases"]:
        medians = {name: time["median_ms"] for name, time in case["times"].items()}
        ours = {name for name in medians if name.startswith("espan")}
        for precision, target in TARGETS[case["case"].split()[0]].items():
            allowed = [n for n in ours if precision != "fp32" or n.endswith("fp32")]
            others = [n for n in medians.keys() - ours if n.endswith(precision)]
            if not others:  # bf16, on a processor that has no instructions for it
                continue
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


def gpu_rows(results: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of a GPU's benchmarks, by group and name."""
    return {(r["group"], r["name"]): r for r in results["benchmarks"] if "median_ms" in r}


def markdown_table(first: list[str], rows: list[list[str]]) -> list[str]:
    """A table; an unknown cell is a dash."""
    lines = [first, ["---"] * len(first), *rows]
    return ["| " + " | ".join(cell or "–" for cell in line) + " |" for line in lines]


def gpu(results: dict[str, Any]) -> str:
    """Median milliseconds on a GPU."""
    rows = gpu_rows(results)
    lines = []
    for label, way in GPU_WAYS:
        found = [rows.get((f"ESPAN cuda {size}", way)) for size in GPU_SIZES]
        lines.append([label, *(f"{row['median_ms']:#.3g}" if row else "" for row in found)])
        if way == "espan fp16 graphed":
            lines.append([ALONE, *(f"{row['replay_ms']:#.3g}" if row else "" for row in found)])
    # Not of the whole run, in which the GPU also idles.
    clocks = [row["sm_mhz"] for row in rows.values() if "sm_mhz" in row]
    return "\n".join(
        [
            *markdown_table(["median ms", *GPU_SIZES], lines),
            "",
            f"{results['gpu']} at {min(clocks)} to {max(clocks)} MHz, driver {results['driver']}; "
            f"torch {results['torch']}, Triton {results['triton']}; {results['date']}; espan at "
            f"{results['espan']}.",
        ]
    )


def timed_rows(results: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of pytest-benchmark's own file, by group and name."""
    return {
        (b["group"], (b["params"] or {}).get("name", "")): {
            "median_ms": 1e3 * b["stats"]["median"],
            **b["extra_info"],
        }
        for b in results["benchmarks"]
    }


def gpu_family(results: dict[str, Any]) -> str:
    """Median milliseconds of other members of the family."""
    rows = timed_rows(results)
    measured = {way for _, way in rows}
    ways = [way for way in GPU_FAMILY_WAYS if way[1] in measured]
    lines = []
    for label, network in GPU_FAMILY:
        for size in ("256x256", "1920x1080"):
            group = f"{network} cuda {size}"
            found = [rows.get((group, way), {}).get("median_ms") for _, way in ways]
            found.append(rows.get((group, "espan fp16 graphed"), {}).get("replay_ms"))
            cells = [f"{median:#.3g}" if median else "" for median in found]
            lines.append([f"{label}, {size}", *cells])
    labels = [label for label, _ in ways]
    table = markdown_table(["median ms", *labels, "espan's graph alone"], lines)
    return "\n".join([*table, "", gpu_machine(results)])


def gpu_upscaler(results: dict[str, Any]) -> str:
    """Median milliseconds per image of `Upscaler` on 8-bit images in the GPU's memory."""
    rows = timed_rows(results)
    cells = (
        ("the graph alone", "ESPAN cuda {}", "espan bytes graphed", "replay_ms"),
        ("one image", "ESPAN cuda {}", "espan.Upscaler graphed", "median_ms"),
        ("an image of a list of 16", "16 images {}", "", "ms_per_image"),
    )
    lines = []
    for label, group, way, value in cells:
        found = (rows.get((group.format(size), way), {}).get(value) for size in GPU_SIZES)
        lines.append([label, *(f"{median:#.3g}" if median else "" for median in found)])
    return "\n".join(markdown_table(["median ms", *GPU_SIZES], lines))


def gpu_machine(results: dict[str, Any]) -> str:
    """The card, the range of its clock, and the versions."""
    machine = results["machine_info"]
    networks = tuple(network for _, network in GPU_FAMILY)
    shown = (b["extra_info"] for b in results["benchmarks"] if b["group"].startswith(networks))
    clocks = [row["sm_mhz"] for row in shown]
    return (
        f"{machine['gpu']} at {min(clocks)} to {max(clocks)} MHz; torch {machine['torch']}; "
        f"{results['datetime'][:10]}; espan at {machine['espan']}."
    )


def gpu_checks(results: dict[str, Any]) -> str:
    """What the tests and the sanitizers found, in a sentence each."""
    tests, sanitizer = (results["checks"][name] for name in ("tests", "sanitizer"))
    failed = ", ".join(f"`{name}`" for name in tests["failed"]) or "none"
    clean = [name for name, verdict in sanitizer.items() if verdict.startswith("status 0 ")]
    unclean = [f"{name} ({verdict})" for name, verdict in sanitizer.items() if name not in clean]
    return (
        f"Tests: {tests['passed']} passed, {tests['skipped']} skipped; failed: {failed}.  \n"
        f"compute-sanitizer without findings: {', '.join(clean) or 'none'}; "
        f"others: {', '.join(unclean) or 'none'}."
    )


def gpu_parts(results: dict[str, Any]) -> str:
    """Median milliseconds and thousands of cycles of the parts of ESPAN."""
    rows = gpu_rows(results)
    lines = []
    for part in ("head", "spab", "tail"):
        for label, way in GPU_PARTS:
            found = [rows.get((f"{part} cuda {size}", way)) for size in GPU_SIZES]
            cells = (
                f"{row['median_ms']:#.3g} ({row['cycles'] / 1000:.0f})" if row else ""
                for row in found
            )
            lines.append([f"`{part}`, {label}", *cells])
    return "\n".join(markdown_table(["median ms (thousand cycles)", *GPU_SIZES], lines))


def gpu_loss(results: dict[str, Any]) -> str:
    """Median milliseconds of the loss with its gradient, and the share of a copy's bandwidth."""
    rows = gpu_rows(results)
    groups = [f"{LOSS_GROUP} torch.{dtype}" for dtype in LOSS_DTYPES]
    lines = []
    for label, way in GPU_LOSSES:
        found = [rows.get((group, way)) for group in groups]
        cells = (
            f"{row['median_ms']:#.3g} ({row['share_of_copy']:.0%})" if row else "" for row in found
        )
        lines.append([label, *cells])
    copies = (rows[group, "one pass"]["copy_ms"] for group in groups)
    lines.append(["the copy", *(f"{copy:#.3g}" for copy in copies)])
    return "\n".join(
        markdown_table(["median ms (share of a copy's bandwidth)", *LOSS_DTYPES], lines)
    )


def gpu_targets(results: dict[str, Any]) -> str:
    """The times on a GPU against the targets."""
    rows = gpu_rows(results)
    times = {way: {} for way in ("official", "compiled fp16 channels-last", "espan fp16 graphed")}
    for way, by_size in times.items():
        for size in GPU_SIZES:
            by_size[size] = rows.get((f"ESPAN cuda {size}", way), {}).get("median_ms")
    mine = times["espan fp16 graphed"]
    alone = {
        size: rows[f"ESPAN cuda {size}", "espan fp16 graphed"]["replay_ms"] for size in GPU_SIZES
    }
    lines = []

    def row(what: str, target: str, measured: str, met: bool) -> None:
        lines.append([what, target, measured, "met" if met else "not met"])

    for label, way, target in (
        ("the official code in fp32", "official", 16),
        ("`torch.compile` in fp16", "compiled fp16 channels-last", 3.5),
    ):
        what = f"510x339, against {label}"
        if times[way]["510x339"] is None:
            lines.append([what, f"{target:g} times as fast", "", "not measured"])
            continue
        ratio = times[way]["510x339"] / mine["510x339"]
        row(what, f"{target:g} times as fast", f"{ratio:.1f}", ratio >= target)
    for size, target in (("510x339", 2.3), ("1920x1080", 1.65)):
        width, height = map(int, size.split("x"))
        floor = 2 * GMACS / TFLOPS * width * height / 256**2
        ratio = alone[size] / floor
        what = (
            f"{size}, the graph alone, against the {floor:.3g} ms that {TFLOPS} TFLOP/s would take"
        )
        row(what, f"at most {target:g} times as long", f"{ratio:.2f}", ratio <= target)
    what = "256x256, the graph alone"
    row(what, "at most 0.09 ms", f"{alone['256x256']:.4f} ms", alone["256x256"] <= 0.09)
    for dtype in LOSS_DTYPES:
        share = rows[f"{LOSS_GROUP} torch.{dtype}", "one pass"]["share_of_copy"]
        what = f"loss and gradient, 16x3x512x512, {dtype}, bandwidth"
        row(what, f"{COPY_SHARE:.0%} of a copy's", f"{share:.0%}", share >= COPY_SHARE)
    return "\n".join(markdown_table(["what", "target", "measured", " "], lines))


def panels(results: dict[str, dict[str, Any]]) -> list[chart.Panel]:
    """The chart: ESPAN on a GPU and on a CPU, by espan and by its peers."""
    rows = gpu_rows(results["gpu"])
    ways = (
        ("official code, fp32", "official"),
        ("PyTorch, TF32", "eager TF32"),
        ("PyTorch, fp16, CUDA graph", "graphed fp16 channels-last"),
        ("torch.compile, fp16", "compiled fp16 channels-last"),
        ("espan, fp16, CUDA graph", "espan fp16 graphed"),
    )
    found = [(label, rows.get(("ESPAN cuda 510x339", way))) for label, way in ways]
    on_gpu = [(label, row["median_ms"]) for label, row in found if row]
    return [
        chart.Panel(f"GPU: {results['gpu']['gpu']}", CHARTED, on_gpu),
        *(cpu_panel(results[name]) for name in ("cpu_peers", "cpu_peers_avx2")),
    ]


def cpu_panel(results: dict[str, Any]) -> chart.Panel:
    """ESPAN on one CPU: fp32, then bf16 if espan has kernels for it there, the slowest first."""
    (case,) = (c for c in results["cases"] if c["case"] == "ESPAN 510x339")
    machine = case["machine"]
    amx = machine["path"] == "amx"
    bits = ", 17 bits" if amx else ""
    bars = [
        (name.replace(DEFAULT, f"espan (default{bits})"), time["median_ms"])
        for name, time in case["times"].items()
        if amx or not name.endswith("bf16")
    ]
    bars.sort(key=lambda bar: (bar[0].endswith("bf16"), -bar[1]))
    processor = machine["processor"].replace("(R)", "")
    title = f"CPU: {processor}, {machine['threads']} threads, {machine['path'].upper()}"
    return chart.Panel(title, CHARTED, bars)


def training(results: dict[str, Any]) -> str:
    """Median milliseconds of each way to do a thing, and as a multiple of the first way's time."""
    machine = results["machine_info"]
    lines = ["| what | way | median ms | relative to the first way |", "|---|---|---|---|"]
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


def weights(results: dict[str, Any]) -> str:
    """PSNR of bicubic interpolation and of the bundled weights, by scale."""
    cases = {
        "Set5": "Set5",
        "Set14": "Set14",
        "photographs": "photographs",
        "degraded": "photographs, degraded",
    }
    rows = [
        [
            f"`{row['name']}`" if row["name"] else f"bicubic ×{row['scale']}",
            *(f"{row['psnr'][case]:.2f}" if case in row["psnr"] else "" for case in cases),
        ]
        for row in sorted(results["rows"], key=lambda row: (row["scale"], row["name"] or ""))
    ]
    return "\n".join(markdown_table(["RGB PSNR [dB]", *cases.values()], rows))


# Each table: the file of results, and the function that formats it.
TABLES = {
    "weights": ("weights", weights),
    "cpu_peers": ("cpu_peers", peers),
    "cpu_targets": ("cpu_peers", targets),
    "cpu_peers_avx2": ("cpu_peers_avx2", peers),
    "cpu_targets_avx2": ("cpu_peers_avx2", targets),
    "gpu": ("gpu", gpu),
    "gpu_family": ("gpu_family", gpu_family),
    "gpu_upscaler": ("gpu_family", gpu_upscaler),
    "gpu_checks": ("gpu", gpu_checks),
    "gpu_parts": ("gpu", gpu_parts),
    "gpu_loss": ("gpu", gpu_loss),
    "gpu_targets": ("gpu", gpu_targets),
    "training": ("training", training),
    "training_avx2": ("training_avx2", training),
    "photographs": ("reproduction", reproduction.photographs),
    "claims": ("reproduction", reproduction.claims),
    **{n: ("reproduction", partial(reproduction.table, name=n)) for n in reproduction.TITLES},
}


def load() -> dict[str, Any]:
    """The committed results by file name, and all those in the folder "reproduction"."""
    folder = ROOT / "benchmarks" / "results"
    names = {source for source, _ in TABLES.values()} - {"reproduction"}
    results = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    return results | {"reproduction": reproduction.load(folder / "reproduction")}


def updated(text: str, results: dict[str, Any]) -> str:
    """The text of a document with its tables replaced by those of the results."""
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
    for theme, path in CHARTS.items():
        path.write_text(chart.svg(panels(measured), theme), "utf-8")
    for name, path in CURVES.items():
        reproduction.draw(measured["reproduction"], name, path)
