"""The emulator itself: a product with Hopper's instructions, and mistakes that it must detect."""

import pytest
import torch
from torch import Tensor

from tests.emulator.build import Module, buffer, load, poisoned

# A missing synchronisation is reported as one of these, depending on the order of the warps.
RACE = "before a copy to it has landed|no barrier between|shared memory overwritten|wait for ever"
# The mistakes of hopper.cpp and the emulator's messages; without a message, results are wrong.
MISTAKES = {
    "no proxy fence": "no proxy fence between",
    "proxy fence by one lane": "no proxy fence between",
    "proxy fence before the stores": "no proxy fence between",
    "a phase off": RACE,
    "no wait for a filled slot": RACE,
    "no wait for an empty slot": RACE,
    "results before the wait": None,
    "accumulators written early": "accumulators written while a product runs",
    "operands overwritten early": None,
    "slot released before the wait": "shared memory overwritten",
    "slot released by one lane": "shared memory overwritten that thread .* reads, with no barrier",
    "no commit": "a wait for products not committed",
    "no fence of registers": r"without wgmma_fence\(\)",
    "leading and stride exchanged": None,
    "slot never released": "wait for ever at the barrier at 5120: 33 arrivals and 0 bytes",
    "bytes never copied": "wait for ever at the barrier at 5120: 0 arrivals and 16 bytes",
    "one arrival too few": f"{RACE}|more arrivals",
    "no barrier after the inits": "a barrier that was not initialised|no barrier between",
    "slot over the barriers": "the barrier at 5120 overwritten",
}
ORDERS = range(6)


@pytest.fixture(scope="module")
def emulated() -> Module:
    return load("hopper")


def multiply(
    module: Module, dtype: torch.dtype, n: int, order: int, mistake: int = 0
) -> tuple[Tensor, Tensor]:
    """An emulated product of integers, and the exact one."""
    generator = torch.Generator().manual_seed(n)
    steps = 5
    a, b = (
        torch.randint(-8, 9, size, generator=generator).to(dtype)
        for size in ((64, 16 * steps), (16 * steps, n))
    )
    packed = b.view(steps, 2, 8, n).transpose(2, 3).contiguous()
    d = poisoned((64, n), torch.float32)
    wanted = (dtype == torch.bfloat16, n)
    (instance,) = (i for i in module.instances if (i["bfloat16"], i["n"]) == wanted)
    arrays = [buffer(module, t) for t in (a, packed, d)]
    instance["run"](*arrays, steps, mistake, order)
    return d, a.float() @ b.float()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("dtype", "n"), [(torch.float16, 16), (torch.float16, 96), (torch.bfloat16, 48)]
)
def test_products(emulated: Module, dtype: torch.dtype, n: int, order: int) -> None:
    actual, expected = multiply(emulated, dtype, n, order)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_in_every_order(emulated: Module, mistake: str, order: int) -> None:
    number = 1 + list(MISTAKES).index(mistake)
    message = MISTAKES[mistake]
    if message is not None:
        with pytest.raises(RuntimeError, match=message):
            multiply(emulated, torch.float16, 16, order, number)
    else:
        actual, expected = multiply(emulated, torch.float16, 16, order, number)
        assert not torch.equal(actual, expected)
