"""Which implementations of the ops can run here, and why the others cannot."""

import importlib.metadata
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from espan_kernels import _library

# What runs on a device, best first.  The reference runs on every device.
_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

_NO_CUDA_KERNELS = {
    "nvcc_not_found": "this build has no CUDA kernels: nvcc was not found when it was built",
    "cpu_requested": "this build has no CUDA kernels: it was built with ESPAN_BUILD=cpu",
}


@dataclass(frozen=True)
class Backend:
    """One implementation of the ops."""

    name: str
    available: bool
    reason: str  # why not, in plain words; empty if available
    details: Mapping[str, str] = field(default_factory=dict)


def available() -> dict[str, Backend]:
    """Every backend by name: cuda, triton, cpu, reference."""
    return {b.name: b for b in (_cuda(), _triton(), _cpu(), _reference())}


def choose(device: torch.device | str, requested: str = "auto") -> str:
    """The best backend for ``device``, or ``requested`` if that can run on it.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: it cannot run on that device here; the message says why.
    """
    found = available()
    device_type = torch.device(device).type
    usable = _PREFERENCE.get(device_type, ("reference",))
    if requested == "auto":
        return next(name for name in usable if found[name].available)
    if requested not in found:
        raise ValueError(f"there is no backend {requested!r}; choose auto, {', '.join(found)}")
    if requested not in usable:
        raise RuntimeError(
            f"the {requested} backend does not run on {device_type} tensors; "
            f"those that do: {', '.join(usable)}"
        )
    if not found[requested].available:
        raise RuntimeError(f"the {requested} backend cannot be used: {found[requested].reason}")
    return requested


def _cuda() -> Backend:
    details: dict[str, str] = {"torch": torch.__version__}
    if _library.cuda_archs:
        details["architectures"] = _library.cuda_archs
    return Backend("cuda", not (reason := _why_no_cuda()), reason, details)


def _why_no_cuda() -> str:
    if _library.compiled is None:
        return _library.why_not_compiled
    if not _library.cuda_archs:
        return _NO_CUDA_KERNELS[_library.compiled.built_without_cuda_because()]
    if reason := _why_no_gpu():
        return reason
    capability = torch.cuda.get_device_capability()
    if not _covers(_library.cuda_archs, capability):
        return (
            f"this build has kernels for {_library.cuda_archs}, and the GPU "
            f"({torch.cuda.get_device_name()}) is {capability[0]}.{capability[1]}"
        )
    return ""


def _why_no_gpu() -> str:
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    return "" if torch.cuda.is_available() else "no NVIDIA GPU is visible to torch"


def _covers(archs: str, capability: tuple[int, int]) -> bool:
    """Whether machine code or PTX for one of ``archs`` runs on a GPU of ``capability``.

    Machine code runs on its own major version from its minor version on, PTX on everything from
    its version on; of the architecture-specific kinds, 9.0a runs on 9.0 only and 10.0f as 10.0.
    """
    for arch in archs.split(","):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)
        assert match is not None, arch
        built = (int(match[1]), int(match[2]))
        if match[3] == "a":
            fits = built == capability
        else:
            fits = built[0] == capability[0] and built <= capability
            fits = fits or (match[4] is not None and not match[3] and built <= capability)
        if fits:
            return True
    return False


def _triton() -> Backend:
    if not _library.triton_installed:
        return Backend("triton", False, "triton is not installed")
    details = {"triton": importlib.metadata.version("triton"), "torch": torch.__version__}
    return Backend("triton", not (reason := _why_no_gpu()), reason, details)


def _cpu() -> Backend:
    if _library.compiled is None:
        return Backend("cpu", False, _library.why_not_compiled)
    chosen_by = "ESPAN_CPU" if "ESPAN_CPU" in os.environ else "the widest this machine can run"
    details = {"path": _library.compiled.cpu_path(), "chosen by": chosen_by}
    if details["path"] == "amx":
        details["fp32"] = "three products of bf16"
    return Backend("cpu", True, "", details | {"threads": str(torch.get_num_threads())})


def _reference() -> Backend:
    return Backend("reference", True, "", {"torch": torch.__version__})
