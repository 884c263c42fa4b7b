"""Loads the compiled kernels and sees to it that every op has an implementation everywhere.

The reference is the implementation for every device; compiled kernels take precedence.  On a GPU
that they are not for, `_on_gpus.py` takes what is.  Nothing is chosen silently:
:mod:`espan_kernels.backends` says what was found and why the rest was not.
"""

import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from espan_kernels import reference
from espan_kernels._checks import check_frequency_loss, check_gate

# As in csrc/bindings.cpp; used where that library cannot be loaded.
SCHEMAS = (
    "gate(Tensor o, Tensor x) -> Tensor",
    "gate_backward(Tensor grad, Tensor o, Tensor x) -> (Tensor, Tensor)",
    "frequency_loss(Tensor sr, Tensor hr, float pixel, float hf, float dct, "
    "bool squared) -> (Tensor, Tensor)",
    "frequency_loss_gradient(Tensor sr, Tensor hr, Tensor scale, float pixel, float hf, "
    "float dct, bool squared) -> (Tensor, Tensor, Tensor)",
    "spab(Tensor x, Tensor packed, int channels, int convs, bool with_activation) "
    "-> (Tensor, Tensor)",
    "head(Tensor image, Tensor packed, Tensor? mean, int channels, int kernel) -> Tensor",
    "tail(Tensor head, Tensor first, Tensor last, Tensor? activation, Tensor packed, "
    "int channels, int scale, ScalarType dtype, Tensor(a!)? flag) -> Tensor",
    "network(Tensor image, Tensor packed, int channels, int head_kernel, int[] convs, "
    "bool concat_activation, int scale) -> (Tensor, Tensor)",
)


def _load() -> tuple[ModuleType | None, str]:
    """The compiled library, or why there is none."""
    if importlib.util.find_spec("espan_kernels._C") is None:
        return None, _why_absent()
    try:
        from espan_kernels import _C  # type: ignore[attr-defined]
    except ImportError as error:
        return None, f"the compiled library cannot be loaded: {error}"
    _C.select_cpu_path(os.environ.get("ESPAN_CPU", "auto"))
    return _C, ""


def _why_absent() -> str:
    """The reason that setup.py recorded in the metadata of the installed package."""
    try:
        recorded = importlib.metadata.distribution("espan").read_text("not_compiled.txt")
    except importlib.metadata.PackageNotFoundError:
        recorded = None
    if recorded:
        return f"this build has no compiled kernels: {recorded}"
    return "the compiled library espan_kernels/_C.abi3.so is not installed"


compiled, why_not_compiled = _load()
cuda_archs: str = compiled.cuda_archs() if compiled else ""
cuda_version: str = compiled.cuda_version() if compiled else ""
# find_spec does not import it: that waits for the first CUDA tensor.
triton_installed = importlib.util.find_spec("triton") is not None

_fragment = torch.library.Library("espan", "FRAGMENT")
if compiled is None:
    for _schema in SCHEMAS:
        _fragment.define(_schema)


# By op.  The latter are imported when they are called.
references: dict[str, Callable[..., Any]] = {}
triton: dict[str, Callable[..., Any]] = {}


def implement(op: str, function: Callable[..., Any]) -> None:
    """Make ``function`` the implementation of ``espan::op`` where no kernel takes precedence."""
    references[op] = function
    _fragment.impl(op, function, "CompositeExplicitAutograd")


def implement_on_gpus(op: str, function: Callable[..., Any]) -> None:
    """Make ``function``, which takes the dispatch keys first, that of ``espan::op`` on CUDA."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        _fragment.impl(op, function, "CUDA", with_keyset=True, allow_override=True)


def refuse_gradients(op: str) -> None:
    """Have ``espan::op``, which is for inference, say so when it is asked for a gradient."""
    overload = getattr(torch.ops.espan, op).default

    def forward(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(
            isinstance(a, Tensor) and a.requires_grad for a in arguments
        ):
            raise RuntimeError(
                f"espan::{op} has no gradient: it is for inference; use torch.no_grad(), or "
                f"espan_kernels.reference.{op} to train"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*arguments)

    _fragment.impl(op, forward, "Autograd")


def _like(o: Tensor, result: Tensor) -> Tensor:
    """``result`` with the strides that every implementation promises: those of empty_like(o)."""
    if result.stride() == torch.empty_like(o, device="meta").stride():
        return result
    return torch.empty_like(o).copy_(result)


def _reference_gate(o: Tensor, x: Tensor) -> Tensor:
    check_gate("espan::gate", o, x=x)
    return _like(o, reference.gate(o, x))


def _reference_gate_backward(grad: Tensor, o: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    check_gate("espan::gate_backward", o, x=x, grad=grad)
    grad_o, grad_x = reference.gate_backward(grad, o, x)
    return _like(o, grad_o), _like(o, grad_x)


def _triton_gate(o: Tensor, x: Tensor) -> Tensor:
    if o.dtype == torch.float64:  # only for gradient checks: not worth a Triton kernel
        return _reference_gate(o, x)
    from espan_kernels.triton import gate as kernels

    return kernels.gate(o, x)


def _triton_gate_backward(grad: Tensor, o: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    if o.dtype == torch.float64:
        return _reference_gate_backward(grad, o, x)
    from espan_kernels.triton import gate as kernels

    return kernels.gate_backward(grad, o, x)


def _reference_frequency_loss(sr: Tensor, hr: Tensor, *options: float) -> tuple[Tensor, Tensor]:
    check_frequency_loss("espan::frequency_loss", sr, hr)
    return reference.frequency_loss(sr, hr, *options)  # type: ignore[arg-type]


def _reference_frequency_loss_gradient(
    sr: Tensor, hr: Tensor, scale: Tensor, *options: float
) -> tuple[Tensor, Tensor, Tensor]:
    check_frequency_loss("espan::frequency_loss_gradient", sr, hr, scale)
    loss, terms, gradient = reference.frequency_loss_gradient(
        sr,
        hr,
        scale.reshape(()),
        *options,  # type: ignore[arg-type]
    )
    return loss, terms, _like(sr, gradient)


def _triton_frequency_loss(sr: Tensor, hr: Tensor, *options: float) -> tuple[Tensor, Tensor]:
    from espan_kernels.triton import frequency_loss as kernels

    return kernels.frequency_loss(sr, hr, *options)


def _triton_frequency_loss_gradient(
    sr: Tensor, hr: Tensor, scale: Tensor, *options: float
) -> tuple[Tensor, Tensor, Tensor]:
    from espan_kernels.triton import frequency_loss as kernels

    return kernels.frequency_loss_gradient(sr, hr, scale, *options)


def _triton_spab(
    x: Tensor, packed: Tensor, channels: int, convs: int, with_activation: bool
) -> tuple[Tensor, Tensor]:
    if x.dtype == torch.float32:  # which tensor cores would round to 10 bits
        from espan_kernels.spab import _reference

        return _reference(x, packed, channels, convs, with_activation)
    from espan_kernels.triton import spab as kernels

    return kernels.spab(x, packed, channels, convs, with_activation)


def _triton_head(
    image: Tensor, packed: Tensor, mean: Tensor | None, channels: int, kernel: int
) -> Tensor:
    if packed.dtype == torch.float32:
        from espan_kernels.head import _reference

        return _reference(image, packed, mean, channels, kernel)
    from espan_kernels.triton import head as kernels

    return kernels.head(image, packed, mean, channels, kernel)


def _triton_tail(head: Tensor, *others: Any) -> Tensor:
    if head.dtype == torch.float32:
        from espan_kernels.tail import _reference

        return _reference(head, *others)
    from espan_kernels.triton import tail as kernels

    return kernels.tail(head, *others)


implement("gate", _reference_gate)
implement("gate_backward", _reference_gate_backward)
implement("frequency_loss", _reference_frequency_loss)
implement("frequency_loss_gradient", _reference_frequency_loss_gradient)
triton.update(
    gate=_triton_gate,
    gate_backward=_triton_gate_backward,
    frequency_loss=_triton_frequency_loss,
    frequency_loss_gradient=_triton_frequency_loss_gradient,
    spab=_triton_spab,
    head=_triton_head,
    tail=_triton_tail,
)
