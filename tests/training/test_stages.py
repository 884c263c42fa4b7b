"""Self-distillation and progressive learning: networks, and the transfer between stages."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from espan.branches import conv_factory
from espan.models import SPAN, Architecture
from espan.reparameterize import collapse
from espan.training.experiment import Change
from espan.training.networks import (
    SelfDistilled,
    Shape,
    Trainable,
    build,
    plain_networks,
    start,
    transfer,
)
from espan_kernels import reference

CONV = conv_factory("grep", grep=(1, 1))
ARCHITECTURE = Architecture(channels=6, convs=(3, 3), scale=2)


def made(shape: Shape, seed: int = 0) -> Trainable:
    torch.manual_seed(seed)
    return build(shape, conv=CONV, gate=reference.gate).double()


def after(shape: Shape, **change) -> tuple[Shape, Change]:
    return shape.changed(Change(**change)), Change(**change)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(1, 3, 11, 9, dtype=torch.float64)


@pytest.mark.parametrize("concat_last", ["output", "activation"])
def test_student_and_teacher_share_a_backbone(image, concat_last) -> None:
    shape = Shape(ARCHITECTURE.replace(concat_last=concat_last, convs=(3, 2, 3, 3)), 2)
    trained = made(shape)
    assert isinstance(trained, SelfDistilled)
    plain = plain_networks(trained, shape)
    assert list(plain) == ["student", "teacher"]
    assert plain["student"].architecture.convs == (3, 2)
    with torch.no_grad():
        for network, output in zip(plain.values(), trained(image), strict=True):
            torch.testing.assert_close(network.double()(image), output, rtol=1e-5, atol=1e-6)
    assert trained.student_tail is not trained.teacher.tail
    student = sum(output.mean() for output in trained(image)[:1])
    student.backward()
    graded = {n for n, p in trained.named_parameters() if p.grad is not None}
    assert any(name.startswith("teacher.blocks.1.") for name in graded)  # shared
    assert not any(name.startswith(("teacher.blocks.2", "teacher.tail")) for name in graded)


def test_plain_networks_of_a_normalised_network(image) -> None:
    shape = Shape(SPAN.replace(channels=6, convs=(3, 3)))
    trained = made(shape)
    (network,) = plain_networks(trained, shape).values()
    with torch.no_grad():
        torch.testing.assert_close(network.double()(image), trained(image), rtol=1e-4, atol=1e-4)


def test_keeping_student_or_teacher_preserves_its_output(image) -> None:
    shape = Shape(ARCHITECTURE, 1)
    trained = made(shape)
    with torch.no_grad():
        outputs = dict(zip(("student", "teacher"), trained(image), strict=True))
        for keep, output in outputs.items():
            new_shape, change = after(shape, keep=keep)
            network = made(new_shape, seed=1)
            moved = transfer(trained, network, change)
            torch.testing.assert_close(network(image), output)
            assert moved.added == ()
            gone = {n.split(".")[0] for n in moved.dropped}
            assert gone == ({"tail", "blocks"} if keep == "student" else {"student_tail"})


def test_a_teacher_is_added_to_a_network(image) -> None:
    shape = Shape(ARCHITECTURE)
    network = made(shape)
    new_shape, change = after(shape, teacher=2)
    trained = made(new_shape, seed=1)
    moved = transfer(network, trained, change)
    assert {name[:8] for name in moved.added} == {"blocks.2", "blocks.3"}
    assert moved.dropped == ()
    with torch.no_grad():
        torch.testing.assert_close(trained(image)[0], network(image))
        for name, value in trained.teacher.tail.state_dict().items():  # starts as a copy
            assert torch.equal(value, network.tail.state_dict()[name])


def test_another_scale_initialises_the_upsampling_again(image) -> None:
    shape = Shape(ARCHITECTURE, 1)
    trained = made(shape)
    new_shape, change = after(shape, scale=4)
    larger = made(new_shape, seed=1)
    fresh = {n: v.clone() for n, v in larger.state_dict().items()}
    moved = transfer(trained, larger, change)
    assert moved.added == moved.dropped == ("student_tail.upsample", "tail.upsample")
    old, new = trained.state_dict(), larger.state_dict()
    for name, value in new.items():
        source = fresh if ".upsample." in name else old
        assert torch.equal(value, source[name]), name
    assert larger(image)[0].shape == (1, 3, 44, 36)


@pytest.mark.parametrize("student", [None, 1])
def test_another_scale_interpolates_the_upsampling(image, student) -> None:
    """With initial images.  The mean of each LR pixel's part of the result stays the same."""
    shape = Shape(ARCHITECTURE, student)
    trained = made(shape)
    same, larger = (made(after(shape, scale=s)[0], seed=1) for s in (2, 4))
    images = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    for network, scale in ((same, 2), (larger, 4)):
        start(network, trained, Change(scale=scale), images=images)
    with torch.no_grad():
        outputs = [network(image) for network in (trained, same, larger)]
    for before, equal, after_it in zip(*(o if student else (o,) for o in outputs), strict=True):
        torch.testing.assert_close(equal, before)
        means = [F.avg_pool2d(y, y.shape[-1] // image.shape[-1]) for y in (before, after_it)]
        torch.testing.assert_close(*means)
        # Neighbours differ by less than those of the old result: nothing is random.
        steps = [(y[..., 1:] - y[..., :-1]).abs().mean() for y in (before, after_it)]
        assert steps[1] < steps[0]


@pytest.mark.parametrize("keep", ["student", "teacher"])
def test_another_scale_interpolates_the_kept_tail(image, keep) -> None:
    shape = Shape(ARCHITECTURE, 1)
    trained = made(shape)
    new_shape, change = after(shape, keep=keep, scale=4)
    network = made(new_shape, seed=1)
    start(network, trained, change, images=torch.rand(4, 3, 16, 16, dtype=torch.float64))
    with torch.no_grad():
        before, found = trained(image)[keep == "teacher"], network(image)
    torch.testing.assert_close(F.avg_pool2d(found, 4), F.avg_pool2d(before, 2))


def test_removing_blocks_and_convolutions(image) -> None:
    shape = Shape(ARCHITECTURE.replace(convs=(3, 3, 3)))
    network = made(shape)
    new_shape, change = after(shape, remove_blocks=1, remove_convs=1)
    smaller = made(new_shape, seed=1)
    moved = transfer(network, smaller, change)
    assert moved.added == ()
    assert moved.dropped == tuple(sorted(
        [f"blocks.2.convs.{i}" for i in range(3)] + ["blocks.1.convs.2"]
    ))  # fmt: skip
    assert str(moved).startswith("dropped blocks.1.convs.2, ")
    with torch.no_grad():
        expected = network.tail(*_features(network, image, last_of_three=False))
        torch.testing.assert_close(smaller(image), expected)


def _features(network, image: Tensor, *, last_of_three: bool) -> tuple[Tensor, ...]:
    """The inputs of the tail from a first block of three convolutions and a second one of two."""
    head = network.head(image)
    first, _ = network.blocks[0](head)
    convs = network.blocks[1].convs
    o = convs[1](torch.nn.functional.silu(convs[0](first)))
    last = (o + first) * (torch.sigmoid(o) - 0.5)
    return head, last, first, last


def test_a_removed_block_is_not_restored(image) -> None:
    shape = Shape(ARCHITECTURE)
    network = made(shape)
    new_shape, change = after(shape, remove_blocks=1, add_blocks=1)
    changed = made(new_shape, seed=1)
    fresh = changed.blocks[1].convs[0].wide.weight.clone()
    moved = transfer(network, changed, change)
    assert "blocks.1.convs.0" in moved.added
    assert "blocks.1.convs.0" in moved.dropped
    assert torch.equal(changed.blocks[1].convs[0].wide.weight, fresh)


def test_added_blocks_pass_signals_on() -> None:
    shape = Shape(ARCHITECTURE)
    network = made(shape)
    new_shape, change = after(shape, add_blocks=3)
    deeper = made(new_shape, seed=1)
    images = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    sizes = []
    hook = deeper.blocks[-1].register_forward_hook(
        lambda _m, _i, output: sizes.append(output[0].std(dim=(0, 2, 3)).mean().item())
    )
    with torch.no_grad():
        start(deeper, network, change, images=None)
        deeper(images)
        start(deeper, network, change, images=images)
        deeper(images)
    hook.remove()
    assert sizes[0] < 0.05  # with PyTorch's initial weights: the gates square small signals
    assert 0.3 < sizes[-1] < 3
    for name, value in network.state_dict().items():
        assert torch.equal(value, deeper.state_dict()[name])


def test_student_and_teacher_start_equal() -> None:
    shape, change = after(Shape(ARCHITECTURE), teacher=1)
    pair = made(shape)
    assert start(pair, None, change, images=torch.rand(4, 3, 16, 16).double()) == "new weights"
    for name, value in pair.teacher.tail.state_dict().items():
        assert torch.equal(value, pair.student_tail.state_dict()[name])
    assert torch.equal(pair.teacher.head.merged().bias[:3], torch.zeros(3).double())


def test_plain_networks_equal_the_collapsed_ones() -> None:
    shape = Shape(ARCHITECTURE)
    network = made(shape).float()
    (plain,) = plain_networks(network, shape).values()
    for name, value in collapse(network).state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])
    assert not any(p.requires_grad for p in plain.parameters())
