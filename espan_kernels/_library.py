"""Loads the compiled library and registers the ops that it does not implement.

Each op's module registers its reference implementation here.  Compiled kernels take precedence.
On GPUs for which they were not built, `_on_gpus.py` chooses the implementation.
:mod:`espan_kernels.backends` reports what is available, and why the rest is not.
"""

import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# The schemas in csrc/bindings.cpp, for when the compiled library cannot be loaded.
SCHEMAS = (
    "gate(Tensor o, Tensor x) -> Tensor",
    "gate_backward(Tensor grad, Tensor o, Tensor x) -> (Tensor, Tensor)",
    "conv3x3(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    "conv3x3_weight_gradient(Tensor grad, Tensor x) -> (Tensor, Tensor)",
    "frequency_loss(Tensor sr, Tensor hr, float pixel, float hf, float dct, "
    "bool squared) -> (Tensor, Tensor)",
    "frequency_loss_gradient(Tensor sr, Tensor hr, Tensor scale, float pixel, float hf, "
    "float dct, bool squared) -> (Tensor, Tensor, Tensor)",
    "spab(Tensor x, Tensor packed, int channels, int convs, bool with_activation, "
    "str activation, str gate) -> (Tensor, Tensor)",
    "head(Tensor image, Tensor packed, Tensor? mean, int channels, int kernel, int unshuffle, "
    "str activation) -> Tensor",
    "tail(Tensor head, Tensor first, Tensor last, Tensor? activation, Tensor packed, "
    "int channels, int scale, ScalarType dtype, Tensor(a!)? flag, int last_kernel) -> Tensor",
    "upsample(Tensor near, Tensor last, Tensor packed, int channels, int scale, "
    "ScalarType dtype, Tensor(a!)? flag) -> Tensor",
    "network(Tensor image, Tensor packed, int[] layers, int unshuffle, int scale) "
    "-> (Tensor, Tensor)",
)


def _load() -> tuple[ModuleType | None, str]:
    """The compiled library, or None and the reason.

    The command line prints an ImportError with the name espan_kernels without a traceback.
    """
    if importlib.util.find_spec("espan_kernels._C") is None:
        return None, _why_absent()
    try:
        from espan_kernels import _C  # type: ignore[attr-defined]
    except ImportError as error:
        return None, f"the compiled library cannot be loaded: {error}"
    for schema in SCHEMAS:
        packet = getattr(torch.ops.espan, schema.split("(")[0], None)
        if packet is None or str(packet.default._schema) != f"espan::{schema}":
            raise ImportError(
                f"the compiled library {_C.__file__} belongs to another version of espan: it lacks "
                f"the op {schema}; install espan again, in its source folder with "
                "`pip install --no-build-isolation -e .`",
                name="espan_kernels",
            )
    try:
        _C.select_cpu_path(cpu_path_requested())
    except ValueError as error:
        raise ImportError(
            f"the environment variable ESPAN_CPU: {error}", name="espan_kernels"
        ) from None
    return _C, ""


def cpu_path_requested() -> str:
    """The CPU path that the user asks for, or auto."""
    return os.environ.get("ESPAN_CPU") or "auto"


def _why_absent() -> str:
    """The reason that setup.py recorded in the metadata of the installed package, or the folder.

    Python searches the current folder first, so a source folder hides an installed espan.
    """
    try:
        recorded = importlib.metadata.distribution("espan").read_text("not_compiled.txt")
    except importlib.metadata.PackageNotFoundError:
        recorded = None
    if recorded:
        return f"this build has no compiled kernels: {recorded}"
    folder = Path(__file__).parents[1]
    if (folder / "setup.py").is_file() and (folder / "csrc").is_dir():
        return (
            f"espan was imported from its source folder {folder}, in which nothing is built: use "
            "the installed espan in another folder, or install from the source folder with "
            "`pip install --no-build-isolation -e .`"
        )
    return "the compiled library espan_kernels/_C.abi3.so is not installed"


compiled, why_not_compiled = _load()
cuda_archs: str = compiled.cuda_archs() if compiled else ""
cuda_version: str = compiled.cuda_version() if compiled else ""
# find_spec does not import Triton, which is imported with the first CUDA tensor.
triton_installed = importlib.util.find_spec("triton") is not None

_fragment = torch.library.Library("espan", "FRAGMENT")
if compiled is None:
    for _schema in SCHEMAS:
        _fragment.define(_schema)


references: dict[str, Callable[..., Any]] = {}  # by op


def implement(op: str, function: Callable[..., Any]) -> None:
    """Register ``function`` as the implementation of ``espan::op`` where there is no kernel."""
    references[op] = function
    _fragment.impl(op, function, "CompositeExplicitAutograd")


def implement_on_gpus(op: str, function: Callable[..., Any]) -> None:
    """Register ``function`` as the CUDA implementation of ``espan::op``.

    Its first argument is the set of dispatch keys.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        _fragment.impl(op, function, "CUDA", with_keyset=True, allow_override=True)


def refuse_gradients(op: str) -> None:
    """Make ``espan::op`` raise if an input requires a gradient."""
    overload = getattr(torch.ops.espan, op).default

    def forward(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(
            isinstance(a, Tensor) and a.requires_grad for a in arguments
        ):
            raise RuntimeError(
                f"espan::{op} has no gradient: it is for inference; use torch.no_grad(), or "
                f"espan_kernels.reference.{op} to train"
            )
        if has_tangent(*arguments):
            raise RuntimeError(
                f"espan::{op} has no forward-mode derivative; espan_kernels.reference.{op} has one"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*arguments)

    _fragment.impl(op, forward, "Autograd")


def has_tangent(*arguments: Any) -> bool:
    """Whether one of them is a dual tensor of forward-mode differentiation.

    PyTorch takes the result of an op without a forward-mode derivative for a constant.
    """
    return not torch.compiler.is_compiling() and any(
        isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in arguments
    )


def promote_under_autocast(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Cast both to the wider dtype if autocast is on, as PyTorch's own pointwise ops do."""
    # is_autocast_enabled raises on devices without autocast.
    device = a.device.type
    if (
        a.dtype != b.dtype
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
    ):
        wider = torch.promote_types(a.dtype, b.dtype)
        return a.to(wider), b.to(wider)
    return a, b


def strides_like(t: Tensor, result: Tensor) -> Tensor:
    """``result`` with the strides of empty_like(t), which every implementation guarantees."""
    if result.stride() == torch.empty_like(t, device="meta").stride():
        return result
    return torch.empty_like(t).copy_(result)
