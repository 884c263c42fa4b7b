"""Experiments: the shipped files, and errors in files."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from espan.branches import conv_factory
from espan.errors import EspanError
from espan.models import ESPAN, SPAN, complexity
from espan.training.experiment import Experiment, parse, read, shipped, variants
from espan.training.networks import Shape, build
from espan.training.stages import plan
from espan.training.steps import loss_of
from espan_kernels import reference


def shapes_of(experiment: Experiment) -> list[Shape]:
    """The shape of each stage, without its repeats."""
    return [run.shape for run in plan(experiment) if run.repeat == 0]


def every() -> list[str]:
    names = []
    for name, path in shipped().items():
        found = variants(path.read_text(encoding="utf-8"))
        names += [f"{name}:{variant}" for variant in found] or [name]
    return names


@pytest.mark.parametrize("name", every())
def test_every_shipped_experiment_can_be_run(name: str) -> None:
    """The networks of all stages can be built, and the losses computed."""
    experiment = read(name)
    assert experiment.about
    stages = plan(experiment, ESPAN if experiment.network.architecture is None else None)
    table = experiment.network
    image = torch.rand(1, 3, 8, 8)
    for stage in stages:
        build(stage.shape, conv=conv_factory(table.conv, grep=table.grep), gate=reference.gate)
        output = image if stage.shape.student is None else (image, image)
        assert loss_of(stage.stage.loss, output, image) == 0
    assert stages[-1].last == experiment.iterations


def test_the_papers_steps_end_in_its_network() -> None:
    """The steps of Sec. 4.1.3 end in the official network with 192,272 parameters."""
    experiment = read("espan_ntire2025")
    shapes = shapes_of(experiment)
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
    assert experiment.iterations == 7_500_000
    assert "# 7.5 million iterations" in shipped()["espan_ntire2025"].read_text()


@pytest.mark.parametrize("name", every())
def test_espan_additions_are_off_when_reproducing_the_paper(name: str) -> None:
    """Initial weights, gradient clipping and averaging are not in the paper."""
    experiment = read(name)
    paper = name.startswith(("espan_ntire2025", "tab", "fig"))
    optimizer = experiment.optimizer
    assert (optimizer.clip is None) == (optimizer.average == 0) == paper
    if name not in ("finetune", "espan_x2_photo"):  # which have no new weights
        assert (experiment.network.init == "pytorch") == paper
    if paper:
        assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (0.9, 0.999, 0.01)


def test_ablations_match_the_tables() -> None:
    count = {t: len(variants(shipped()[t].read_text())) for t in ("tab2", "tab4", "tab7", "tab8")}
    assert count == {"tab2": 2, "tab4": 8, "tab7": 10, "tab8": 10}
    parameters = {
        v: complexity(shapes_of(read(f"tab4:{v}"))[0].architecture).parameters
        for v in ("c28d6", "c22d8", "c32d5")
    }
    assert parameters["c32d5"] == 166_864
    assert parameters["c22d8"] == 121_576
    depths = [
        [len(s.architecture.convs) for s in shapes_of(read(f"tab6:{v}"))]
        for v in ("d5d6d6", "d5d7d6")
    ]
    assert depths == [[8, 6], [8, 7, 6]]


def test_learning_rates(tiny) -> None:
    halving = tiny({"lr": 8.0, "decay": "halving", "halve_every": 3, "warm_up": 1})
    (stage,) = halving.stage
    assert [stage.learning_rate(i) for i in range(8)] == [4, 8, 8, 4, 4, 4, 2, 2]
    cosine = tiny({"lr": 1.0, "iterations": 100, "warm_up": 9})
    rates = [cosine.stage[0].learning_rate(i) for i in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates.index(max(rates)) == 9
    assert rates[50] == pytest.approx(0.5)
    assert rates[-1] < 1e-3


def test_each_run_of_a_stage_has_its_own_seed(tiny) -> None:
    seeds = [
        run.seed
        for seed in (0, 1)
        for run in plan(tiny({"repeats": 3}, {"name": "two"}, top={"seed": seed}))
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
        (HEAD + STAGE.replace("cosine", "halving"), "halve_every must be given with decay"),
        (HEAD + STAGE + "halve_every = 3\n", "halve_every must be given with decay"),
        (
            HEAD + STAGE + "warm_up = 8\n",
            r"mine: stage\[1\]: warm_up \(8\) must be below iterations$",
        ),
        (HEAD + STAGE + 'loss = { pixel = "none" }\n', "one of hf, dct, fft and dwt"),
        (HEAD + STAGE + "loss = { hf = -1.0 }\n", r"loss.hf: .* got -1.0"),
        (
            HEAD + STAGE + "loss = { distillation = 0.01 }\n",
            "mine: stage 'one' has a weight .* but no teacher",
        ),
        (
            HEAD
            + STAGE
            + "change = { teacher = 1 }\n[[stage]]\n"
            + STAGE.replace("one", "two")
            + 'change = { keep = "student" }\nloss = { distillation = 0.01 }\n',
            "'two' has a weight .* but no teacher",
        ),
        ('[network]\nconv = "rep"\n[[stage]]\n' + STAGE, "network.conv: .* got 'rep'"),
        ('[network]\nconv = "plain"\ngrep = [4, 0]\n[[stage]]\n' + STAGE, "grep and .* no effect"),
        ('[network]\nconv = "edbb"\nmiddle = 8\n[[stage]]\n' + STAGE, "grep and middle .*edbb"),
        ("[network]\ngrep = [-1, 0]\n[[stage]]\n" + STAGE, r"network.grep.* got -1"),
        ("stage = []\n[network]\n", "stage: .* got \\[\\]"),
        ("seed = -1\n" + HEAD + STAGE, "seed: .* got -1"),
        (HEAD + STAGE + "[variant.a]\nnetwork = {}\n", "variants a; choose one: mine:VARIANT"),
    ],
)
def test_errors_in_a_file_are_named(text: str, message: str) -> None:
    with pytest.raises(EspanError, match=message):
        parse(text, "mine")


def test_variants_override_the_file() -> None:
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
        ([{"remove_convs": 2}], "last block has 3 convolutions, of which two must remain"),
        ([{"remove_convs": 1}, {"remove_convs": 1}], r"stage 2 \(one\): remove_convs = 1"),
        ([{"keep": "student"}], "there is no student and no teacher"),
        ([{"teacher": 1}, {"add_blocks": 1}], "keep one of the two first"),
        ([{"teacher": 1}, {"teacher": 1}], "keep one of the two first"),
        ([{"scale": 5}], "hr_patch 24 is not a multiple of the scale 5"),
    ],
)
def test_impossible_changes(tiny, changes: list[dict], message: str) -> None:
    experiment = tiny(*({"change": change} for change in changes))
    with pytest.raises(EspanError, match=message):
        plan(experiment)


def test_consecutive_changes(tiny) -> None:
    changes = [
        {"teacher": 2},
        {"keep": "teacher", "scale": 4},
        {"remove_blocks": 1, "remove_convs": 1},
        {"add_blocks": 2},
        {"keep": None, "teacher": 1},
        {"keep": "student"},
    ]
    shapes = shapes_of(tiny(*({"change": change} for change in changes)))
    assert [s.architecture.convs for s in shapes] == [
        (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 2), (3, 3, 2, 3, 3), (3, 3, 2, 3, 3, 3), (3, 3, 2, 3, 3)
    ]  # fmt: skip
    assert [s.student_blocks for s in shapes] == [2, None, None, None, 5, None]
    assert shapes[0].deployed.convs == (3, 3)


def test_initial_weights_must_fit(tiny) -> None:
    named, unnamed = tiny(), tiny(top={"network": {}})
    assert plan(unnamed, SPAN)[0].shape.architecture == SPAN
    with pytest.raises(EspanError, match="needs weights to start from"):
        plan(unnamed)
    with pytest.raises(EspanError, match=r"28 channels.* than the experiment's 'c8d2k3x2'"):
        plan(named, SPAN)


def test_repeats_are_separate_runs(tiny) -> None:
    found = plan(tiny({"repeats": 2, "change": {"add_blocks": 1}}, {"name": "two + x"}))
    assert [run.number for run in found] == [0, 1, 2]
    assert [run.first for run in found] == [0, 8, 16]
    assert [run.change.add_blocks for run in found] == [1, 0, 0]  # a repeat changes nothing
    assert [run.name for run in found] == ["one 1/2", "one 2/2", "two + x"]
    assert [run.file_name for run in found] == ["01-one-1-2", "02-one-2-2", "03-two-x"]
    assert all(a.last == b.first for a, b in itertools.pairwise(found))
