"""The tables and curves of docs/reproduction.md, from made-up and from the committed results."""

import pytest
from PIL import Image

from benchmarks import report, reproduction


def result(rows, psnr, seed=0, rate=1, failed=None, network="network", **machine):
    stages = [{"batch": 8, "hr_patch": 192, "iterations": 50}]
    if "tab6" in rows:
        stages.append({"batch": 2, "hr_patch": 384, "iterations": 50})
    return {
        "rows": rows.split(),
        "seed": seed,
        "rate": rate,
        "precision": "fp32",
        "failed": failed,
        "psnr": psnr,
        "curves": {network: [[0, 9.5], [50, psnr]], "teacher": [[0, 8.0], [50, 31.0]]},
        "machine": {"gpu": None, "processor": "CPU", "torch": "2", "espan": "e"} | machine,
        "photographs": {
            "number": 30,
            "sha256": "ab" * 32,
            "held_out": ["x.jpg", "y.jpg"],
            "bicubic": 25,
        },
        "experiment": {"stage": stages},
    }


RESULTS = [
    result("tab7:plain", 20.0),
    result("tab7:plain", 20.2, seed=1),
    result("tab7:repvgg", 20.5),
    result("tab7:repvgg", 20.9, seed=1),
    result("tab7:rrrb", 19.5),
    result("tab7:rrrb", 19.6, seed=1),
    result("tab7:edbb", 20.1),
    result("tab7:edbb", 20.0, seed=1),
    result("tab7:grep-4-0 tab8:l1 fig5:alone", 22.0),
    result("tab8:hf", 7.0, failed="NaN"),
    result("tab7:plain", 25.0, rate=5, gpu="GPU"),
    result("tab7:grep-0-4", 26.0, rate=5, gpu="GPU"),
    result("fig5:distilled", 22.5, network="student"),
    result("tab6:d5d6d6", 23.0),
]


def test_table():
    """Differences are taken seed by seed, and each rate has its columns."""
    lines = reproduction.table(RESULTS, "tab7").splitlines()
    assert lines[0] == (
        "|  | paper | difference | lr 0.0001 | difference | seeds "
        "| lr 0.0005 | difference | seeds |"
    )
    assert lines[2:6] == [
        "| plain 3×3 | 26.484 |  | 20.100 |  | 2 | 25.000 |  | 1 |",
        "| RepVGG | 26.618 | +0.134 | 20.700 | +0.600 ± 0.100 | 2 | not yet run | – | 0 |",
        "| EDBB | 26.689 | +0.205 | 20.050 | -0.050 ± 0.150 | 2 | not yet run | – | 0 |",
        "| RRRB | 26.677 | +0.193 | 19.550 | -0.550 ± 0.050 | 2 | not yet run | – | 0 |",
    ]
    assert lines[9] == (
        "| GRep [4, 0] | 26.705 | +0.221 | 22.000 | +2.000 | 1 | not yet run | – | 0 |"
    )
    assert lines[-1] == (
        "dB; 50 steps of 8 crops of 192×192 HR pixels in each stage, convolutions in fp32; CPU, "
        "GPU; torch 2; espan at e."
    )
    assert "| HF | 16.740 | -9.869 | 7.000 | -15.000 | 1, 1 diverged |" in reproduction.table(
        RESULTS, "tab8"
    )
    assert "50 steps of 8 crops of 192×192 or 2 crops of 384×384" in reproduction.table(
        RESULTS, "tab6"
    )
    assert "lr 0.0005" not in reproduction.table(RESULTS, "tab8")
    assert reproduction.table([], "tab6").endswith("\n\nNot yet run.")


def test_claims():
    lines = reproduction.claims(RESULTS).splitlines()
    found = {tuple(cell.strip() for cell in line.split("|")[2:4]): line for line in lines}
    for better, than, end in (
        ("RepVGG", "plain 3×3", "| +0.134 | +0.600 ± 0.100 | held | – | not yet run |"),
        ("RRRB", "plain 3×3", "| -0.550 ± 0.050 | did not hold | – | not yet run |"),
        ("EDBB", "plain 3×3", "| -0.050 ± 0.150 | within the spread | – | not yet run |"),
        ("GRep [4, 0]", "plain 3×3", "| +2.000 | one seed | – | not yet run |"),
        ("with self-distillation", "without", "| better | +0.500 | one seed | – | not yet run |"),
    ):
        assert found[better, than].endswith(end)
    assert lines[-1] == (
        f"Of {len(reproduction.CLAIMS)} at lr 0.0001: 1 held, 1 did not hold, 1 within the spread, "
        f"3 one seed, {len(reproduction.CLAIMS) - 6} not yet run.  "
        f"Of {len(reproduction.CLAIMS)} at lr 0.0005: {len(reproduction.CLAIMS)} not yet run."
    )


def test_photographs():
    assert reproduction.photographs(RESULTS) == (
        "28 photographs to train on; held out: x.jpg, y.jpg; SHA-256 of all: abababababababab. "
        "On those held out, bicubic interpolation has 25.000 dB."
    )


def test_curves_follow_a_student_into_the_next_stage():
    run = result("tab6:d5d6d6", 23.0)
    run["curves"]["student"] = [[0, 8.0], [50, 21.0]]
    run["curves"]["network"] = [[50, 20.0], [100, 23.0]]
    (curve,) = reproduction.curves([run], "tab6:d5d6d6", 1)
    assert curve == [[0, 8.0], [50, 21.0], [50, 20.0], [100, 23.0]]
    (student,) = reproduction.curves(RESULTS, "fig5:distilled", 1)
    assert student[-1] == [50, 22.5]


@pytest.mark.parametrize("name", reproduction.TITLES)
def test_pictures(name, tmp_path):
    pytest.importorskip("matplotlib")
    reproduction.draw(RESULTS, name, tmp_path / "a.png")
    reproduction.draw([], name, tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as drawn, Image.open(tmp_path / "b.png") as empty:
        assert drawn.text["Results"] == reproduction.digest(RESULTS, name)
        assert drawn.text["Results"] != empty.text["Results"]
        assert (drawn.width > empty.width) == (name == "tab7")  # which has two rates


@pytest.mark.parametrize("name", report.CURVES)
def test_pictures_are_up_to_date(name):
    with Image.open(report.CURVES[name]) as picture:
        found = picture.text["Results"]
    assert found == reproduction.digest(report.load()["reproduction"], name), (
        "run python benchmarks/report.py"
    )
