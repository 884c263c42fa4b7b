"""Builds the one extension, espan_kernels/_C.abi3.so: CPU kernels, and CUDA kernels where it can.

ESPAN_BUILD           auto (default): with CUDA if nvcc is found; cpu: without; cuda: nvcc or fail
TORCH_CUDA_ARCH_LIST  architectures to compile for, such as "8.0 9.0a 12.0+PTX"
CUDA_HOME             the toolkit; without it, the nvcc on PATH
"""

import glob
import os
import re
import shutil
import subprocess

from setuptools import setup

# Ampere to Blackwell (8.6 and 8.9 run the code of 8.0), and PTX for what comes after.
DEFAULT_ARCHS = ("8.0", "9.0", "10.0", "12.0+PTX")


def decide(requested: str, nvcc: str | None) -> tuple[bool, str]:
    """Whether to build CUDA kernels and, if not, why: the word that the library will report."""
    if requested not in ("auto", "cpu", "cuda"):
        raise SystemExit(f"ESPAN_BUILD is {requested!r}; it must be auto, cpu or cuda")
    if requested == "cuda" and not nvcc:
        raise SystemExit(
            "ESPAN_BUILD=cuda, but nvcc was not found: set CUDA_HOME to the CUDA toolkit or put "
            "its bin directory on PATH, or build with ESPAN_BUILD=cpu"
        )
    reason = "cpu_requested" if requested == "cpu" else "" if nvcc else "nvcc_not_found"
    return not reason, reason


def choose_archs(requested: str, known: str) -> list[str]:
    """The architectures to compile for; of the default ones, those that nvcc says it knows."""
    archs = requested.replace(";", " ").split()
    if bad := [arch for arch in archs if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch)]:
        raise SystemExit(f"TORCH_CUDA_ARCH_LIST has {bad[0]!r}; write 8.0, 9.0a or 12.0+PTX")
    return archs or [a for a in DEFAULT_ARCHS if f"compute_{number(a)}" in known.split()]


def number(arch: str) -> str:
    """Nvcc's name for an architecture: 90 for 9.0+PTX."""
    return arch.removesuffix("+PTX").replace(".", "")


def gencode(arch: str) -> list[str]:
    """Nvcc's flags for an architecture: machine code, and PTX where asked for."""
    general = number(arch)
    exact = "90a" if general == "90" else general  # the only one with wgmma, on the same GPUs
    flags = [f"-gencode=arch=compute_{exact},code=sm_{exact}"]
    if arch.endswith("+PTX"):
        flags.append(f"-gencode=arch=compute_{general},code=compute_{general}")
    return flags


def toolkit_version(nvcc: str) -> str:
    """The version of the toolkit and its runtime, such as 13.0."""
    return re.search(r"release (\d+\.\d+)", ask(nvcc, "--version"))[1]


def ask(*command: str) -> str:
    """What a command prints, on either stream."""
    result = subprocess.run(command, text=True, capture_output=True)
    return result.stdout + result.stderr


def main() -> None:
    """Decide, then hand over to setuptools."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    with_cuda, reason = decide(os.environ.get("ESPAN_BUILD", "auto"), nvcc)
    from torch.utils import cpp_extension  # takes seconds, and a wrong request should fail at once

    cxx = ["-O3", "-std=c++17", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
    flags, archs, version, toolkit = {}, [], "", {}
    sources = glob.glob("csrc/**/*.cpp", recursive=True) + glob.glob("csrc/cuda/*.cu") * with_cuda
    if with_cuda:
        # nvcc itself knows where it lives: the one on PATH may be a link or a script.
        home = os.path.realpath(re.search(r"TOP=(.*)", ask(nvcc, "--dryrun", "-c", "x.cu"))[1])
        cpp_extension.CUDA_HOME = home  # a CPU-only torch leaves it unset
        version = toolkit_version(nvcc)
        wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
        archs = choose_archs(wanted, ask(nvcc, "--list-gpu-arch"))
        flags["nvcc"] = [*cxx, "-Xcompiler=-fvisibility=hidden"]
        flags["nvcc"] += [flag for arch in archs for flag in gencode(arch)]
        toolkit = {"include_dirs": [f"{home}/include"], "library_dirs": [f"{home}/lib64"]}
        toolkit["libraries"] = ["cudart_static", "dl", "rt", "pthread"]
        # Where torch has no CUDA, its ninja file does not track the headers of .cu files.
        newest = max(map(os.path.getmtime, glob.glob("csrc/**/*.*h", recursive=True)))
        for built in glob.glob("build/temp*/csrc/cuda/*.o"):
            if os.path.getmtime(built) < newest:
                os.remove(built)
    else:
        print(f"espan: building CPU kernels only: {reason.replace('_', ' ')}", flush=True)
    # Of the warnings left out, one is about inlined functions, one about GCC 12's own headers.
    cxx += ["-fvisibility=hidden", "-Wno-psabi", "-Wno-maybe-uninitialized"]
    cxx += [f"-DESPAN_CUDA_ARCHS={','.join(archs)}", f"-DESPAN_CUDA_ABSENT={reason}"]
    cxx += [f"-DESPAN_CUDA_VERSION={version}"]
    extension = cpp_extension.CppExtension(
        "espan_kernels._C",
        sorted(sources),
        extra_compile_args={"cxx": cxx, **flags},
        # libtorch has the current CUDA stream where it is a CUDA build; our cudart stays ours.
        extra_link_args=["-Wl,--no-as-needed,-ltorch,--as-needed,--exclude-libs,ALL"],
        py_limited_api=True,
        **toolkit,
    )
    # Force: what is built depends on the environment, and ninja knows what is stale.
    options = {"bdist_wheel": {"py_limited_api": "cp310"}, "build_ext": {"force": True}}
    build_ext = cpp_extension.BuildExtension
    setup(ext_modules=[extension], cmdclass={"build_ext": build_ext}, options=options)


if __name__ == "__main__":
    main()
