"""The tables and the chart in the documentation show the committed results."""

import re

import pytest

from benchmarks import chart, report


def other_results():
    results = report.load()
    results["cpu_peers"]["cases"][0]["times"]["OpenVINO fp32"]["median_ms"] += 100
    results["training"]["benchmarks"][0]["stats"]["median"] += 1
    results["h200"]["runs"][1]["network_ms"]["510x339"]["espan fp16 graphed"] += 1
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
    case = {"case": "c", "times": {name: {"median_ms": time} for name, time in times.items()}}
    machine = {"processor": "p", "threads": 2, "path": "amx", "versions": {}, "espan": "e"}
    results = {"machine": machine, "cases": [case]}
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
