"""Experiments: the files that are shipped, and files that are wrong."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from espan.branches import conv_factory
from espan.errors import EspanError
from espan.models import ESPAN, SPAN, complexity
from espan.training.experiment import Experiment, parse, read, shipped, variants
from espan.training.jobs import jobs
from espan.training.objective import Objective
from espan.training.stages import build
from espan_kernels import reference


def every() -> list[str]:
    names = []
    for name, path in shipped().items():
        found = variants(path.read_text(encoding="utf-8"))
        names += [f"{name}:{variant}" for variant in found] or [name]
    return names


@pytest.mark.parametrize("name", every())
def test_every_shipped_experiment_can_be_run(name: str) -> None:
    """Its networks can be built, from its first stage to its last, and its losses computed."""
    experiment = read(name)
    assert experiment.about
    shapes = experiment.shapes(ESPAN if experiment.network.architecture is None else None)
    table = experiment.network
    for shape in shapes:
        build(shape, conv=conv_factory(table.conv, grep=table.grep), gate=reference.gate)
    for stage in experiment.stage:
        Objective(stage.loss)
    assert jobs(experiment, shapes)[-1].last == sum(
        s.iterations * s.repeats for s in experiment.stage
    )


def test_the_papers_steps_end_in_its_network() -> None:
    """Sec. 4.1.3, and the official network in the end: 192,272 parameters."""
    experiment = read("espan_ntire2025")
    shapes = experiment.shapes()
    assert shapes[-1].architecture == ESPAN
    assert complexity(shapes[-1].architecture).parameters == 192_272
    assert [len(s.architecture.convs) for s in shapes] == [8, 8, 8, 8, 7, 6, 6, 6]
    assert [s.student_blocks for s in shapes] == [5, 5, 5] + [None] * 5
    assert [s.architecture.scale for s in shapes] == [2] + [4] * 7
    rows = [
        (s.loss.pixel, s.loss.hf, s.loss.dct, s.hr_patch, s.batch, s.lr, s.repeats)
        for s in experiment.stage
    ]
    assert rows == [
        ("l1", 0, 0, 256, 64, 1e-4, 2),
        ("l1", 0, 0, 256, 64, 1e-4, 2),
        ("l2", 1, 0.001, 512, 16, 1e-4, 2),
        ("l2", 1, 0.001, 512, 16, 5e-5, 2),
        ("l1", 0, 0, 512, 16, 1e-4, 1),
        ("l1", 0, 0, 512, 16, 1e-4, 1),
        ("l1", 0, 0, 512, 16, 1e-4, 1),
        ("l2", 1, 0.001, 512, 16, 5e-5, 4),
    ]
    assert {(s.iterations, s.halve_every) for s in experiment.stage} == {(500_000, 100_000)}
    assert {s.loss.distillation for s in experiment.stage[:3]} == {0.001}


def test_the_ablations_are_those_of_the_tables() -> None:
    count = {t: len(variants(shipped()[t].read_text())) for t in ("tab2", "tab4", "tab7", "tab8")}
    assert count == {"tab2": 2, "tab4": 8, "tab7": 10, "tab8": 10}
    parameters = {
        v: complexity(read(f"tab4:{v}").shapes()[0].architecture).parameters
        for v in ("c28d6", "c22d8", "c32d5")
    }
    assert parameters["c32d5"] == 166_864
    assert parameters["c22d8"] == 121_576
    depths = [[len(s.architecture.convs) for s in read(f"tab6:{v}").shapes()] for v in
              ("d5d6d6", "d5d7d6")]  # fmt: skip
    assert depths == [[8, 6], [8, 7, 6]]


def test_learning_rates(tiny) -> None:
    halving = tiny({"lr": 8.0, "decay": "halving", "halve_every": 3, "warm_up": 1})
    (job,) = jobs(halving, halving.shapes())
    assert [job.lr(i) for i in range(8)] == [4, 8, 8, 4, 4, 4, 2, 2]
    cosine = tiny({"lr": 1.0, "iterations": 100, "warm_up": 9})
    (job,) = jobs(cosine, cosine.shapes())
    rates = [job.lr(i) for i in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates.index(max(rates)) == 9
    assert rates[50] == pytest.approx(0.5)
    assert rates[-1] < 1e-3


def test_every_run_of_a_stage_has_its_own_seed(tiny) -> None:
    seeds = [
        job.seed
        for seed in (0, 1)
        for experiment in [tiny({"repeats": 3}, {"name": "two"}, top={"seed": seed})]
        for job in jobs(experiment, experiment.shapes())
    ]
    assert len(set(seeds)) == 8
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


STAGE = 'name = "one"\nhr_patch = 24\nbatch = 4\nlr = 1e-3\ndecay = "cosine"\niterations = 8\n'
HEAD = '[network]\narchitecture = "c8d2x2"\n[[stage]]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network = [", "mine is not TOML"),
        (HEAD + STAGE + "patch = 3\n", r"stage\[1\].patch: unknown key 'patch'"),
        (HEAD + STAGE + "loss = { l1 = 1.0 }\n", r"stage\[1\].loss.l1: unknown key"),
        (HEAD + STAGE + "change = { grow = 1 }\n", r"stage\[1\].change.grow: unknown key"),
        ("sed = 1\n" + HEAD + STAGE, "sed: unknown key 'sed'"),
        (HEAD + STAGE.replace("batch = 4\n", ""), r"stage\[1\].batch is missing"),
        (HEAD + STAGE.replace("batch = 4", "batch = 0"), r"stage\[1\].batch: .* got 0"),
        (HEAD + STAGE.replace("batch = 4", "batch = 4.5"), r"stage\[1\].batch: .* got 4.5"),
        (HEAD + STAGE.replace("1e-3", "nan"), r"stage\[1\].lr"),
        (HEAD + STAGE.replace("cosine", "linear"), r"stage\[1\].decay: .* got 'linear'"),
        (HEAD + STAGE.replace("cosine", "halving"), "halve_every goes with decay"),
        (HEAD + STAGE + "halve_every = 3\n", "halve_every goes with decay"),
        (HEAD + STAGE + "warm_up = 8\n", r"warm_up \(8\) must be below iterations"),
        (HEAD + STAGE + 'loss = { pixel = "none" }\n', "one of hf, dct, fft and dwt"),
        (HEAD + STAGE + "loss = { hf = -1.0 }\n", r"loss.hf: .* got -1.0"),
        ('[network]\nconv = "rep"\n[[stage]]\n' + STAGE, "network.conv: .* got 'rep'"),
        ("stage = []\n[network]\n", "stage: .* got \\[\\]"),
        ("seed = -1\n" + HEAD + STAGE, "seed: .* got -1"),
        (HEAD + STAGE + "[variant.a]\nnetwork = {}\n", "variants a; choose one: mine:VARIANT"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(text: str, message: str) -> None:
    with pytest.raises(EspanError, match=message):
        parse(text, "mine")


def test_variants_lay_themselves_over_the_file() -> None:
    text = HEAD + STAGE + (
        '[variant.a]\nnetwork = { conv = "plain" }\nloss = { pixel = "l2" }\n'
        "[variant.b]\nstages = []\n"
    )  # fmt: skip
    found = parse(text, "mine", "a")
    assert found.network.conv == "plain"
    assert found.network.architecture == "c8d2x2"
    assert found.stage[0].loss.pixel == "l2"
    with pytest.raises(EspanError, match=r"variant.b: unknown keys stages"):
        parse(text, "mine", "b")
    with pytest.raises(EspanError, match="'c' is not among them"):
        parse(text, "mine", "c")
    with pytest.raises(EspanError, match="mine has no variants"):
        parse(HEAD + STAGE, "mine", "a")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EspanError, match=r"smok cannot be read .*experiments .* smoke"):
        read("smok")
    path = tmp_path / "with:colon.toml"
    path.write_text(HEAD + STAGE)
    assert isinstance(read(str(path)), Experiment)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"remove_blocks": 2}], r"stage 1 \(one\): remove_blocks = 2, but the network has 2"),
        ([{"remove_convs": 2}], "last block has 3 convolutions, of which two must stay"),
        ([{"remove_convs": 1}, {"remove_convs": 1}], r"stage 2 \(one\): remove_convs = 1"),
        ([{"keep": "student"}], "there is no student and no teacher"),
        ([{"teacher": 1}, {"add_blocks": 1}], "keep one of them first"),
        ([{"teacher": 1}, {"teacher": 1}], "keep one of them first"),
        ([{"scale": 5}], "hr_patch 24 is not a multiple of the scale 5"),
    ],
)
def test_impossible_changes(tiny, changes: list[dict], message: str) -> None:
    experiment = tiny(*({"change": change} for change in changes))
    with pytest.raises(EspanError, match=message):
        experiment.shapes()


def test_changes_follow_one_another(tiny) -> None:
    changes = [
        {"teacher": 2},
        {"keep": "teacher", "scale": 4},
        {"remove_blocks": 1, "remove_convs": 1},
        {"add_blocks": 2},
        {"keep": None, "teacher": 1},
        {"keep": "student"},
    ]
    shapes = tiny(*({"change": change} for change in changes)).shapes()
    assert [s.architecture.convs for s in shapes] == [
        (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 2), (3, 3, 2, 3, 3), (3, 3, 2, 3, 3, 3), (3, 3, 2, 3, 3)
    ]  # fmt: skip
    assert [s.student_blocks for s in shapes] == [2, None, None, None, 5, None]
    assert shapes[0].deployed.convs == (3, 3)


def test_weights_to_start_from_must_fit(tiny) -> None:
    named, unnamed = tiny(), tiny(top={"network": {}})
    assert unnamed.shapes(SPAN)[0].architecture == SPAN
    with pytest.raises(EspanError, match="needs weights to start from"):
        unnamed.shapes()
    with pytest.raises(EspanError, match=r"28 channels.* than the experiment's 'c8d2k3x2'"):
        named.shapes(SPAN)


def test_all_of_the_jobs_are_numbered(tiny) -> None:
    experiment = tiny({"repeats": 2, "change": {"add_blocks": 1}}, {"name": "b/ c"[::2] + "x"})
    found = jobs(experiment, experiment.shapes())
    assert [job.number for job in found] == [0, 1, 2]
    assert [job.first for job in found] == [0, 8, 16]
    assert [job.change.add_blocks for job in found] == [1, 0, 0]  # a repeat changes nothing
    assert [job.name for job in found][:2] == ["one 1/2", "one 2/2"]
    assert all(a.last == b.first for a, b in itertools.pairwise(found))
