"""Reports which implementations of the ops can run on this machine, and why the others cannot."""

import contextlib
import ctypes
import importlib.metadata
import os
import re
import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from espan_kernels import _library

# The backends of each device type, best first.  The reference runs on every device.
_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

_NAMES = ("cuda", "triton", "cpu", "reference")
_TRITON_FROM = (8, 0)  # compute capability

_NO_CUDA_KERNELS = {
    "nvcc_not_found": "this build has no CUDA kernels: nvcc was not found when it was built",
    "cpu_requested": "this build has no CUDA kernels: it was built with ESPAN_BUILD=cpu",
}


@dataclass(frozen=True)
class Backend:
    """One implementation of the ops."""

    name: str
    available: bool
    reason: str  # why it is not available; empty if it is
    details: Mapping[str, str] = field(default_factory=dict)


def available(device: torch.device | str | None = None) -> dict[str, Backend]:
    """All backends by name: cuda, triton, cpu, reference.

    Args:
        device: the GPU to report on; by default the current one.  CPU devices are ignored.
    """
    gpu = None if device is None else torch.device(device)
    if gpu is not None and gpu.type != "cuda":
        gpu = None
    reasons = {name: _why_not(name, gpu) for name in _NAMES}
    return {
        name: Backend(name, not reason, reason, _details(name)) for name, reason in reasons.items()
    }


def choose(device: torch.device | str, requested: str = "auto") -> str:
    """The best backend for ``device``, or ``requested`` if it can run on that device.

    All of espan uses this function: the ops of :mod:`espan_kernels`, and the code built on them.

    Args:
        device: any device.
        requested: "auto", or the name of a backend.

    Raises:
        ValueError: if there is no backend named ``requested``.
        RuntimeError: if it cannot run on ``device``; the message gives the reason.
    """
    place = torch.device(device)
    usable = _PREFERENCE.get(place.type, ("reference",))
    if requested == "auto":
        return next(name for name in usable if not _why_not(name, place))
    if requested not in _NAMES:
        raise ValueError(f"there is no backend {requested!r}; choose auto, {', '.join(_NAMES)}")
    if requested not in usable:
        raise RuntimeError(
            f"the {requested} backend does not run on {place.type} tensors; "
            f"those that do: {', '.join(usable)}"
        )
    if reason := _why_not(requested, place):
        raise RuntimeError(f"the {requested} backend cannot be used: {reason}")
    return requested


def cpu_path() -> str:
    """The CPU path in use: amx, avx512, avx2 or portable; empty without compiled kernels."""
    return "" if _library.compiled is None else _library.compiled.cpu_path()


def cpu_has_bfloat16() -> bool:
    """Whether the CPU path in use multiplies bf16: amx, or avx512 with avx512_bf16."""
    return _library.compiled is not None and _library.compiled.cpu_path_has_bfloat16()


def _why_not(name: str, gpu: torch.device | None) -> str:
    """Why the backend cannot run (cuda and triton: on ``gpu``); empty if it can."""
    if name == "cuda":
        return _why_no_cuda(gpu)
    if name == "triton":
        return _why_no_triton(gpu)
    return _library.why_not_compiled if name == "cpu" and _library.compiled is None else ""


def _why_no_cuda(gpu: torch.device | None) -> str:
    if _library.compiled is None:
        return _library.why_not_compiled
    if not _library.cuda_archs:
        return _NO_CUDA_KERNELS[_library.compiled.built_without_cuda_because()]
    if reason := _why_no_gpu(gpu):
        return reason
    capability = torch.cuda.get_device_capability(gpu)
    code = _code_for(_library.cuda_archs, capability)
    if not code:
        return (
            f"this build has kernels for compute capability {_library.cuda_archs}, "
            f"but {_found(gpu)}"
        )
    # An older driver of the same major version runs machine code, but cannot compile newer PTX.
    driver, built = _driver(), _version(_library.cuda_version)
    if driver is not None and driver < (built if code == "PTX" else built[:1]):
        return (
            f"this build needs CUDA {_library.cuda_version}, but the NVIDIA driver supports only "
            f"CUDA {driver[0]}.{driver[1]}; update the driver, or build with an older toolkit"
        )
    return ""


def _why_no_triton(gpu: torch.device | None) -> str:
    if not _library.triton_installed:
        return "triton is not installed"
    if reason := _why_no_gpu(gpu):
        return reason
    if torch.cuda.get_device_capability(gpu) < _TRITON_FROM:
        return f"Triton needs compute capability 8.0 or later, but {_found(gpu)}"
    # Triton compiles a launcher in C for each kernel.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler: install gcc, or set CC"
    headers = sysconfig.get_config_var("INCLUDEPY")
    if not os.path.exists(os.path.join(headers, "Python.h")):
        return f"Triton needs the Python headers, but there is no Python.h in {headers}"
    return ""


def _why_no_gpu(gpu: torch.device | None) -> str:
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()
        except RuntimeError as error:  # "The NVIDIA driver on your system is too old (found ...)."
            return f"torch can use no NVIDIA GPU: {str(error).split('. ')[0].splitlines()[0]}"
        return "torch can use no NVIDIA GPU"
    count = torch.cuda.device_count()
    if gpu is not None and gpu.index is not None and gpu.index >= count:
        return f"there is no {gpu}: torch sees {count} GPU{'s' if count > 1 else ''}"
    return ""


def _found(gpu: torch.device | None) -> str:
    major, minor = torch.cuda.get_device_capability(gpu)
    return f"the GPU ({torch.cuda.get_device_name(gpu)}) has {major}.{minor}"


def _driver() -> tuple[int, int] | None:
    """The newest version of CUDA that the NVIDIA driver supports; None if unknown."""
    # Ask the driver itself: the name of PyTorch's function for this differs between versions.
    number = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        failed = driver.cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return None if failed else (number.value // 1000, number.value % 1000 // 10)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _code_for(archs: str, capability: tuple[int, int]) -> str:
    """The kind of code in ``archs`` that runs on ``capability``: "machine code", "PTX" or "".

    Machine code runs on GPUs of the same major version and the same or a later minor version.  PTX
    runs on its own and all later versions.  The architecture-specific 9.0a runs only on 9.0; the
    family-specific 10.0f runs where 10.0 does.
    """
    best = ""
    for arch in archs.split(","):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)
        assert match is not None, arch
        built = (int(match[1]), int(match[2]))
        same = built[0] == capability[0] and built <= capability
        if built == capability if match[3] == "a" else same:
            return "machine code"
        if match[4] is not None and not match[3] and built <= capability:
            best = "PTX"
    return best


def _bfloat16(path: str) -> str:
    if not cpu_has_bfloat16():
        return "by PyTorch's operators"
    return "on the matrix unit" if path == "amx" else "with avx512_bf16"


def _details(name: str) -> dict[str, str]:
    details: dict[str, str] = {}
    if name == "triton" and _library.triton_installed:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # under another name
            details["triton"] = importlib.metadata.version("triton")
    if name == "cuda" and _library.cuda_archs:
        details["CUDA"] = _library.cuda_version
        details["architectures"] = _library.cuda_archs
    if name != "cpu":
        return {"torch": torch.__version__, **details}
    if _library.compiled is not None:
        details["path"] = cpu_path()
        by_default = _library.cpu_path_requested() == "auto"
        details["chosen by"] = "default (the widest available)" if by_default else "ESPAN_CPU"
        if details["path"] == "amx":
            details["default fp32"] = "three products of bf16, 17 bits"
        details["bf16"] = _bfloat16(details["path"])
        details["threads"] = str(torch.get_num_threads())
    return details
