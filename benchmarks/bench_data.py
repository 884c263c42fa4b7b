"""Times the data loading of training: a whole batch of crops, and the host's part with a GPU.

    pytest benchmarks/bench_data.py

A batch has 16 crops with an LR side of 48 (x4), from 200 images of 640 x 480 in a pack.  The LR
crops are either computed from the HR crops or read from LR images in memory.  Everything is
verified before it is timed.
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from espan.data import Crops, TrainingImage, open_images
from espan.data.on_device import cut, finish
from espan.data.pack import Pack, write_pack
from espan.data.photographs import Decoded, sha256_of

BATCH, PATCH, IMAGES = 16, 48, 200


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pack"
    random = np.random.default_rng(0)

    def images() -> list[Decoded]:
        sides = (480, 640, 3)
        drawn = (random.integers(0, 256, sides, dtype=np.uint8) for _ in range(IMAGES))
        return [Decoded(path, f"{i}", p, sha256_of(p)) for i, p in enumerate(drawn)]

    write_pack(path, images())
    return path


@pytest.fixture(scope="module")
def images(pack: Path) -> list[TrainingImage]:
    """Images that were read once, so that their pages are in memory and their hashes checked."""
    found, _ = open_images([pack], scale=4, smallest=PATCH)
    return [dataclasses.replace(i, lr_pixels=i.lr) for i in found]


def per_sample(benchmark: BenchmarkFixture) -> None:
    benchmark.extra_info["samples per second"] = round(BATCH / benchmark.stats.stats.median)


@pytest.mark.parametrize("lr", ["computed", "in memory"])
def test_batch(benchmark: BenchmarkFixture, images: list[TrainingImage], lr: str) -> None:
    given = Crops(images, patch=PATCH, seed=0)
    made = Crops([dataclasses.replace(i, lr_pixels=None) for i in images], patch=PATCH, seed=0)
    assert torch.equal(made.batch(0, 64)[0], given.batch(0, 64)[0])
    crops, first = given if lr == "in memory" else made, itertools.count(0, BATCH)
    benchmark(lambda: crops.batch(next(first), BATCH))
    per_sample(benchmark)


def test_cut(benchmark: BenchmarkFixture, images: list[TrainingImage]) -> None:
    crops = Crops([dataclasses.replace(i, lr_pixels=None) for i in images], patch=PATCH, seed=0)
    assert torch.equal(finish(cut(crops, 0, 64, pin=False))[0], crops.batch(0, 64)[0])
    first = itertools.count(0, BATCH)
    benchmark(lambda: cut(crops, next(first), BATCH, pin=False))
    per_sample(benchmark)


def test_check(benchmark: BenchmarkFixture, pack: Path) -> None:
    assert Pack(pack).damaged() == []
    benchmark(lambda: Pack(pack).damaged())
    benchmark.extra_info["GB/s"] = pack.stat().st_size / benchmark.stats.stats.median / 1e9
