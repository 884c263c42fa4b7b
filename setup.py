"""Builds the extension espan_kernels/_C.abi3.so: CPU kernels and, if nvcc is found, CUDA kernels.

ESPAN_BUILD           auto (default): what the available compilers allow, and none outside Linux;
                      none: no extension; cpu: no CUDA kernels; cuda: both kinds, or fail
CXX                   the C++ compiler; default: c++ on PATH
TORCH_CUDA_ARCH_LIST  architectures to compile for, such as "8.0 9.0a 12.0+PTX"
CUDA_HOME             the CUDA toolkit; default: that of nvcc on PATH
"""

import glob
import os
import re
import shutil
import subprocess
import sys

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

# Ampere to Blackwell (8.6 and 8.9 run the code of 8.0), and PTX for later architectures.
DEFAULT_ARCHS = ("8.0", "9.0", "10.0", "12.0+PTX")


def decide(requested: str, platform: str, cxx: str | None, nvcc: str | None) -> tuple[str, str]:
    """What to build (none, cpu or cuda), and the reason for leaving out kernels, if any."""
    if requested not in ("auto", "none", "cpu", "cuda"):
        raise SystemExit(f"ESPAN_BUILD is {requested!r}; it must be auto, none, cpu or cuda")
    if requested == "none":
        return "none", "it was built with ESPAN_BUILD=none"
    if requested == "auto" and platform != "linux":
        return "none", "by default they are built on Linux only"
    if requested == "auto" and not cxx:
        return "none", "no C++ compiler was found when it was built"
    if not cxx:
        raise SystemExit(
            f"ESPAN_BUILD={requested}, but no C++ compiler was found: install g++ or set CXX, or "
            "build without compiled kernels with ESPAN_BUILD=none"
        )
    if requested == "cuda" and not nvcc:
        raise SystemExit(
            "ESPAN_BUILD=cuda, but nvcc was not found: set CUDA_HOME to the CUDA toolkit or put "
            "its bin directory on PATH, or build with ESPAN_BUILD=cpu"
        )
    if requested == "cpu":
        return "cpu", "cpu_requested"
    return ("cuda", "") if nvcc else ("cpu", "nvcc_not_found")


def choose_archs(requested: str, known: str) -> list[str]:
    """The requested architectures or, by default, those of DEFAULT_ARCHS that nvcc supports."""
    archs = requested.replace(";", " ").split()
    if bad := [arch for arch in archs if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch)]:
        raise SystemExit(f"TORCH_CUDA_ARCH_LIST has {bad[0]!r}; write 8.0, 9.0a or 12.0+PTX")
    return archs or [a for a in DEFAULT_ARCHS if f"compute_{number(a)}" in known.split()]


def number(arch: str) -> str:
    """The name that nvcc uses for an architecture: 90 for 9.0+PTX."""
    return arch.removesuffix("+PTX").replace(".", "")


def gencode(arch: str) -> list[str]:
    """The nvcc flags for an architecture: machine code and, if requested, PTX."""
    general = number(arch)
    exact = "90a" if general == "90" else general  # 90 has no wgmma; both run on the same GPUs
    flags = [f"-gencode=arch=compute_{exact},code=sm_{exact}"]
    if arch.endswith("+PTX"):
        flags.append(f"-gencode=arch=compute_{general},code=compute_{general}")
    return flags


def toolkit_version(nvcc: str) -> str:
    """The version of the CUDA toolkit and its runtime, such as 13.0."""
    return re.search(r"release (\d+\.\d+)", ask(nvcc, "--version"))[1]


def ask(*command: str) -> str:
    """The output of a command, stdout and stderr."""
    result = subprocess.run(command, text=True, capture_output=True)
    return result.stdout + result.stderr


class EggInfo(egg_info):
    """Records why there are no compiled kernels, in metadata that each install replaces."""

    not_compiled = ""

    def run(self) -> None:
        """Write not_compiled.txt, or remove that of an earlier build, before files are listed."""
        self.mkpath(self.egg_info)
        path = os.path.join(self.egg_info, "not_compiled.txt")
        self.write_or_delete_file("not_compiled.txt", path, self.not_compiled)
        super().run()


class BuildWithoutExtension(build_py):
    """Removes the extension of an earlier build in an editable install."""

    def run(self) -> None:
        """Remove it from the source tree, from where an editable install would load it."""
        super().run()
        for path in glob.glob("espan_kernels/_C.*") * self.editable_mode:
            os.remove(path)


def main() -> None:
    """Decide what to build, then run setuptools."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    compiler = (os.environ.get("CXX") or "c++").split()[0]  # as PyTorch's build_ext chooses it
    requested = os.environ.get("ESPAN_BUILD", "auto")
    what, reason = decide(requested, sys.platform, shutil.which(compiler), nvcc)
    if what == "none":
        print(f"espan: building no compiled kernels: {reason}", flush=True)
        EggInfo.not_compiled = reason
        setup(cmdclass={"egg_info": EggInfo, "build_py": BuildWithoutExtension})
    else:
        build_extension(nvcc if what == "cuda" else None, reason)


def build_extension(nvcc: str | None, reason: str) -> None:
    """Run setuptools with the extension; ``reason`` is why it has no CUDA kernels."""
    from torch.utils import cpp_extension  # may not be installed if no extension is built

    cxx = ["-O3", "-std=c++17", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
    flags, archs, version, toolkit = {}, [], "", {}
    sources = glob.glob("csrc/**/*.cpp", recursive=True) + glob.glob("csrc/cuda/*.cu") * bool(nvcc)
    if nvcc:
        # nvcc reports its own location: the one on PATH may be a link or a script.
        home = os.path.realpath(re.search(r"TOP=(.*)", ask(nvcc, "--dryrun", "-c", "x.cu"))[1])
        cpp_extension.CUDA_HOME = home  # unset with a CPU-only PyTorch
        version = toolkit_version(nvcc)
        wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
        archs = choose_archs(wanted, ask(nvcc, "--list-gpu-arch"))
        flags["nvcc"] = [*cxx, "-Xcompiler=-fvisibility=hidden"]
        flags["nvcc"] += [flag for arch in archs for flag in gencode(arch)]
        toolkit = {"include_dirs": [f"{home}/include"], "library_dirs": [f"{home}/lib64"]}
        toolkit["libraries"] = ["cudart_static", "dl", "rt", "pthread"]
        # With a CPU-only PyTorch, the ninja file does not track the headers of .cu files.
        newest = max(map(os.path.getmtime, glob.glob("csrc/**/*.*h", recursive=True)))
        for built in glob.glob("build/temp*/csrc/cuda/*.o"):
            if os.path.getmtime(built) < newest:
                os.remove(built)
    else:
        print(f"espan: building CPU kernels only: {reason.replace('_', ' ')}", flush=True)
    # These warnings concern inlined functions (psabi) and GCC 12's own headers.
    cxx += ["-fvisibility=hidden", "-Wno-psabi", "-Wno-maybe-uninitialized"]
    cxx += [f"-DESPAN_CUDA_ARCHS={','.join(archs)}", f"-DESPAN_CUDA_ABSENT={reason}"]
    cxx += [f"-DESPAN_CUDA_VERSION={version}"]
    # A CUDA build of libtorch provides the current CUDA stream.  Our static cudart is not exported.
    gnu_linker = ["-Wl,--no-as-needed,-ltorch,--as-needed,--exclude-libs,ALL"]
    extension = cpp_extension.CppExtension(
        "espan_kernels._C",
        sorted(sources),
        extra_compile_args={"cxx": cxx, **flags},
        extra_link_args=gnu_linker if sys.platform == "linux" else [],
        py_limited_api=True,
        **toolkit,
    )
    # Force: the result depends on environment variables, and ninja tracks what is stale.
    options = {"bdist_wheel": {"py_limited_api": "cp310"}, "build_ext": {"force": True}}
    commands = {"egg_info": EggInfo, "build_ext": cpp_extension.BuildExtension}
    setup(ext_modules=[extension], cmdclass=commands, options=options)


if __name__ == "__main__":
    main()
