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

# Ampere to Blackwell, and PTX of the last for what comes after it.
DEFAULT_ARCHS = ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX"]


def find_nvcc() -> str | None:
    """Nvcc of CUDA_HOME if that is set, else the one on PATH."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)


def decide(requested: str, nvcc: str | None) -> tuple[bool, str]:
    """Whether to build CUDA kernels, and if not, why: the word that the library will report."""
    if requested not in ("auto", "cpu", "cuda"):
        raise SystemExit(f"ESPAN_BUILD is {requested!r}; it must be auto, cpu or cuda")
    if requested == "cuda" and not nvcc:
        raise SystemExit(
            "ESPAN_BUILD=cuda, but nvcc was not found: set CUDA_HOME to the CUDA toolkit or put "
            "its bin directory on PATH, or build with ESPAN_BUILD=cpu"
        )
    if requested == "cpu":
        return False, "cpu_requested"
    return (True, "") if nvcc else (False, "nvcc_not_found")


def choose_archs(requested: str, known: str) -> list[str]:
    """The architectures to compile for; of the default ones, those this nvcc knows."""
    archs = requested.replace(";", " ").split()
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST has {arch!r}; an architecture looks like 8.0, 9.0a, 12.0+PTX"
            )
    number = re.compile(r"(\d+)\.(\d)")
    return archs or [a for a in DEFAULT_ARCHS if "compute_%s%s" % number.match(a).groups() in known]


def gencode(archs: list[str]) -> list[str]:
    """Nvcc's flags for these architectures."""
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def ask(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ).stdout


def main() -> None:
    """Decide, then hand over to setuptools."""
    nvcc = find_nvcc()
    with_cuda, reason = decide(os.environ.get("ESPAN_BUILD", "auto"), nvcc)
    from torch.utils import cpp_extension  # after the decision: a wrong one should fail at once

    defines = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
    # The two warnings are about vectors in code that is always inlined and GCC 12's own headers.
    quiet = ["-Wno-psabi", "-Wno-maybe-uninitialized"]
    cxx = ["-O3", "-std=c++17", "-fvisibility=hidden", *quiet, *defines]
    args, where, sources = {"cxx": cxx}, {}, glob.glob("csrc/**/*.cpp", recursive=True)
    # Torch's symbols are found at run time in whatever torch is loaded, with CUDA or without.
    link = ["-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"]
    archs: list[str] = []
    if with_cuda and nvcc:
        # nvcc itself knows where it lives: the one on PATH may be a link or a script.
        top = re.search(r"^#\$ TOP=(.*)$", ask(nvcc, "--dryrun", "-c", "x.cu"), re.MULTILINE)
        home = os.path.realpath(top[1]) if top else os.path.dirname(os.path.dirname(nvcc))
        known = ask(nvcc, "--list-gpu-arch")
        archs = choose_archs(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), known)
        cpp_extension.CUDA_HOME = home  # a CPU-only torch leaves it unset
        args["nvcc"] = [
            "-O3",
            "-std=c++17",
            "-Xcompiler=-fvisibility=hidden",
            *defines,
            *gencode(archs),
        ]
        where = {"include_dirs": [f"{home}/include"], "library_dirs": [f"{home}/lib64"]}
        where["libraries"] = ["cudart_static", "dl", "rt", "pthread"]
        link.append("-Wl,--exclude-libs,ALL")  # our static CUDA runtime must stay ours
        sources += glob.glob("csrc/cuda/*.cu")
    else:
        print(f"espan: building CPU kernels only ({reason.replace('_', ' ')})", flush=True)
    cxx += [f"-DESPAN_CUDA_ARCHS={','.join(archs)}", f"-DESPAN_CUDA_ABSENT={reason}"]
    setup(
        ext_modules=[
            cpp_extension.CppExtension(
                "espan_kernels._C",
                sorted(sources),
                depends=glob.glob("csrc/**/*.*h", recursive=True),
                extra_compile_args=args,
                extra_link_args=link,
                py_limited_api=True,
                **where,
            )
        ],
        cmdclass={"build_ext": cpp_extension.BuildExtension},
        # Force: what is built depends on the environment, and ninja knows what is stale.
        options={"bdist_wheel": {"py_limited_api": "cp310"}, "build_ext": {"force": True}},
    )


if __name__ == "__main__":
    main()
