"""The measurements of a run, as JSON and as curves."""

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from espan.training.log import Log, read_metrics
from espan.training.pictures import curves


def test_infinite_values_are_null(tmp_path: Path) -> None:
    """The PSNR of equal images is infinite: null in JSON, and missing in the curves."""
    values = {"stage": "one", "loss": 0.5, "lr": 1e-4}
    console = Console(file=io.StringIO())
    with Log(tmp_path, console, total=2, lines=0, step=0, enabled=True) as log:
        log.metrics(1, {**values, "psnr network": 30.0})
        log.metrics(2, {**values, "psnr network": math.inf})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    parsed = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert parsed == read_metrics(tmp_path)
    assert [line["psnr network"] for line in parsed] == [30.0, None]
    curves(tmp_path)
    assert (tmp_path / "curves.png").is_file()
