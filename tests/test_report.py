"""The README's speed table is what the committed results say."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_readme_is_up_to_date():
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    readme = report.README.read_text("utf-8")
    results = json.loads(report.RESULTS.read_text())
    assert report.updated(readme, results) == readme, "run python benchmarks/report.py"
    results["cases"][0]["times"]["espan fp32"]["median_ms"] += 100
    assert report.updated(readme, results) != readme
