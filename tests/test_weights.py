"""The bundled weights: their scores, their size, and the images that they were trained on."""

import csv
import json
from pathlib import Path
from statistics import mean

import pytest

from espan import checkpoints
from espan.evaluation.evaluate import evaluate, find_pairs
from espan.upscaling import Upscaler

ROOT = Path(__file__).parent.parent
ROWS = json.loads((ROOT / "benchmarks/results/weights.json").read_text())["rows"]


def test_every_network_is_scored():
    assert {row["name"] for row in ROWS} - {None} == set(checkpoints.bundled())


@pytest.mark.parametrize("name", checkpoints.bundled())
@pytest.mark.parametrize("dataset", ["Set5", pytest.param("Set14", marks=pytest.mark.slow)])
def test_scores(name, dataset, testdata):
    """The table in espan/weights/README.md, which is written from the same results."""
    (row,) = (row for row in ROWS if row["name"] == name)
    pairs = find_pairs(testdata / "testsets" / dataset / "HR", None, [])
    found = mean(score.psnr for score in evaluate(pairs, Upscaler(name, device="cpu")))
    assert found == pytest.approx(row["psnr"][dataset], abs=0.003)  # AMX is within 0.001


@pytest.mark.parametrize("name", checkpoints.bundled())
def test_names_and_sizes(name):
    """`--scale` and `--photo` rely on the names."""
    path = checkpoints.bundled()[name]
    assert name.removesuffix("_photo") == f"espan_x{checkpoints.load(name).architecture.scale}"
    assert path.stat().st_size < 1_000_000


def test_licences_of_the_training_images():
    with (ROOT / "espan/weights/IMAGES.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    licences = {row["licence"] for row in rows}
    allowed = ("CC0 ", "CC BY ", "the Unsplash", "the Pexels", "the Pixabay", "public domain")
    assert len(rows) == 104
    assert all(licence.startswith(allowed) for licence in licences)
    assert all(row["source"] for row in rows)
