"""The tables and the chart in the documentation show the committed results."""

import re

import pytest

from benchmarks import chart, report


def other_results():
    results = report.load()
    results["cpu_peers"]["cases"][0]["times"]["OpenVINO fp32"]["median_ms"] += 100
    results["training"]["benchmarks"][0]["stats"]["median"] += 1
    results["weights"]["rows"][0]["psnr"]["Set5"] += 1
    rows = report.gpu_rows(results["gpu"])
    rows["ESPAN cuda 510x339", "espan fp16 graphed"]["median_ms"] += 1
    results["reproduction"].append(
        {"rows": [], "rate": 99}
        | {"photographs": {"number": 1, "held_out": [], "sha256": "", "bicubic": 0}}
    )
    return results


@pytest.mark.parametrize("document", report.DOCUMENTS, ids=lambda path: path.name)
def test_documents_are_up_to_date(document):
    text = document.read_text("utf-8")
    assert report.updated(text, report.load()) == text, "run python benchmarks/report.py"
    assert report.updated(text, other_results()) != text


def test_every_table_is_shown():
    shown = "".join(document.read_text("utf-8") for document in report.DOCUMENTS)
    assert all(f"<!-- {name}: made by" in shown for name in report.TABLES)


@pytest.mark.parametrize("theme", report.CHARTS)
def test_chart_is_up_to_date(theme):
    text = report.CHARTS[theme].read_text("utf-8")
    assert chart.svg(report.panels(report.load()), theme) == text, "run python benchmarks/report.py"
    assert chart.svg(report.panels(other_results()), theme) != text


def test_bars_are_in_proportion():
    bars = [("a", 4.0), ("espan", 1.0)]
    svg = chart.svg([chart.Panel("title", "subtitle", bars)], "light")
    slow, fast = map(float, re.findall(r'<rect [^>]* width="([\d.]+)"', svg))
    assert slow == pytest.approx(4 * fast)
    assert re.findall(r"[\d.]+ ms", svg) == ["4.00 ms", "1.00 ms"]
    assert svg.count(chart.COLOURS["light"][2]) == 1  # the bar of espan is highlighted


def test_targets():
    """Full fp32 is compared with the best fp32, and the fastest espan with the best bf16."""

    def of(case="ESPAN c", **times):
        named = {name.replace("_", " "): {"median_ms": time} for name, time in times.items()}
        return report.targets({"cases": [{"case": case, "times": named}]}).splitlines()[2:]

    others = {"a_fp32": 90, "b_fp32": 120, "a_bf16": 50, "b_bf16": 40}
    assert of(espan_fp32=30, **others) == [
        "| ESPAN c | a fp32, 90 ms | espan fp32, 30 ms | 3.00 | 3 | met |",
        "| ESPAN c | b bf16, 40 ms | espan fp32, 30 ms | 1.33 | 1.5 | not met |",
    ]
    assert of(espan_fp32=40, espan_bf16=20, **others) == [
        "| ESPAN c | a fp32, 90 ms | espan fp32, 40 ms | 2.25 | 3 | not met |",
        "| ESPAN c | b bf16, 40 ms | espan bf16, 20 ms | 2.00 | 1.5 | met |",
    ]
    # espan's default may keep fewer bits than fp32.
    assert of(**others, **{"espan (default)": 20}) == [
        "| ESPAN c | a fp32, 90 ms | espan fp32 | – | 3 | not measured |",
        "| ESPAN c | b bf16, 40 ms | espan (default), 20 ms | 2.00 | 1.5 | met |",
    ]
    assert of(espan_fp32=45, **others, **{"espan (default)": 20})[0].endswith(
        "| 2.00 | 3 | not met |"
    )
    assert of("SPAN c48", espan_fp32=36, **others)[0].endswith("| 2.50 | 2.5 | met |")


def test_table_with_and_without_full_fp32():
    times = {"espan (default)": 10, "espan fp32": 20, "a fp32": 60}
    machine = {"processor": "p", "threads": 2, "path": "amx", "versions": {}, "espan": "e"}
    medians = {name: {"median_ms": time} for name, time in times.items()}
    case = {"case": "c", "machine": machine, "times": medians}
    results = {"cases": [case]}
    assert report.peers(results).splitlines()[2:5] == [
        "| espan (default), 17 bits | 10 (0.50) |",
        "| espan fp32 | 20 (1.00) |",
        "| a fp32 | 60 (3.00) |",
    ]
    machine["path"] = "avx2"
    del case["times"]["espan fp32"]
    assert report.peers(results).splitlines()[2:4] == [
        "| espan (default) | 10 (1.00) |",
        "| a fp32 | 60 (6.00) |",
    ]


def test_cases_of_several_versions_are_named():
    machine = {"processor": "p", "threads": 2, "path": "avx2", "versions": {"torch": "2"}}
    times = {"espan fp32": {"median_ms": 20}}
    cases = [
        {"case": name, "machine": machine | {"espan": commit}, "times": times}
        for name, commit in (("a", "e"), ("b", "e"), ("c", "f"))
    ]
    assert report.peers({"cases": cases[:2]}).endswith("p, 2 threads, avx2; torch 2; espan at e.")
    assert report.peers({"cases": cases}).endswith("torch 2; espan at e (a, b), f (c).")


def test_gpu_tables_with_missing_rows():
    def row(group, name, ms, **extra):
        return {"group": group, "name": name, "median_ms": ms, **extra}

    results = {
        "gpu": "NVIDIA One",
        "driver": "d",
        "torch": "t",
        "triton": "3",
        "date": "2026-01-02",
        "espan": "e",
        "checks": {
            "tests": {"passed": 5, "skipped": 1, "failed": ["a.b[c]"]},
            "sanitizer": {
                "memcheck": "status 0 after 9 s: ok",
                "racecheck": "status 9 after 9 s: no",
            },
        },
        "benchmarks": [
            row("ESPAN cuda 256x256", "espan fp16 graphed", 0.1, replay_ms=0.09, sm_mhz=1980),
            row("ESPAN cuda 510x339", "espan fp16 graphed", 0.2, replay_ms=0.19),
            row("ESPAN cuda 1920x1080", "espan fp16 graphed", 1.7, replay_ms=1.66, sm_mhz=1500),
            row("ESPAN cuda 510x339", "official", 3.3),
            row("spab cuda 510x339", "espan", 0.0243, cycles=46_170),
            *(
                row(
                    f"frequency loss cuda 16x3x512x512 torch.{dtype}",
                    "one pass",
                    0.05,
                    share_of_copy=share,
                    copy_ms=0.04,
                )
                for dtype, share in [("float32", 0.8), ("float16", 0.5), ("bfloat16", 0.5)]
            ),
            {"file": "benchmarks/bench_model.py", "status": "no time left"},
        ],
    }
    table = report.gpu(results).splitlines()
    assert table[2] == "| official code, fp32 | – | 3.30 | – |"
    assert (
        "| espan, fp16, CUDA graph, without copying image and result | 0.0900 | 0.190 | 1.66 |"
        in table
    )
    assert table[-1].startswith("NVIDIA One at 1500 to 1980 MHz, driver d;")
    assert report.gpu_checks(results).splitlines() == [
        "Tests: 5 passed, 1 skipped; failed: `a.b[c]`.  ",
        "compute-sanitizer without findings: memcheck; others: racecheck (status 9 after 9 s: no).",
    ]
    assert "| `spab`, CUDA | – | 0.0243 (46) | – |" in report.gpu_parts(results)
    assert (
        report.gpu_loss(results).splitlines()[2]
        == "| CUDA | 0.0500 (80%) | 0.0500 (50%) | 0.0500 (50%) |"
    )
    targets = report.gpu_targets(results).splitlines()[2:]
    assert targets[0].endswith("| 16 times as fast | 16.5 | met |")
    assert targets[1].endswith("| 3.5 times as fast | – | not measured |")
    assert [line.split("|")[-2].strip() for line in targets[2:]] == [
        *("met", "not met", "met"),
        *("met", "not met", "not met"),
    ]
