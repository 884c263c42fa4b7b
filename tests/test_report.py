"""The speed tables in the docs are what the committed results say."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def report():
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    return report


def test_readme_is_up_to_date(report):
    readme = report.README.read_text("utf-8")
    results = json.loads(report.RESULTS.read_text())
    assert report.updated(readme, results) == readme, "run python benchmarks/report.py"
    results["cases"][0]["times"]["espan fp32"]["median_ms"] += 100
    assert report.updated(readme, results) != readme


def test_training_page_is_up_to_date(report):
    page = report.TRAINING.read_text("utf-8")
    results = json.loads(report.TRAINING_RESULTS.read_text())
    assert report.training_updated(page, results) == page, "run python benchmarks/report.py"
    results["benchmarks"][0]["stats"]["median"] += 1
    assert report.training_updated(page, results) != page
