"""Builds the extension espan_kernels/_C.abi3.so: CPU kernels and, if possible, CUDA kernels.

Environment variables:

ESPAN_BUILD           auto (default): what the installed compilers can build, none outside Linux;
                      none: no extension; cpu: no CUDA kernels; cuda: both kinds, or fail
CXX                   the C++ compiler; default: the c++ on PATH
TORCH_CUDA_ARCH_LIST  the architectures to compile for, such as "8.0 9.0a 12.0+PTX"
CUDA_HOME             the CUDA toolkit; default: that of the nvcc on PATH
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

# Ampere to Blackwell (8.6 and 8.9 run the code for 8.0), and PTX for later GPUs.
DEFAULT_ARCHS = ("8.0", "9.0", "10.0", "12.0+PTX")


def decide(requested: str, platform: str, cxx: str | None, nvcc: str | None) -> tuple[str, str]:
    """Decide what to build (none, cpu or cuda); if not everything, also return the reason."""
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
    """The architectures to compile for; by default, the default ones that nvcc supports."""
    wanted = requested.replace(";", " ").split()
    if bad := [arch for arch in wanted if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch)]:
        raise SystemExit(f"TORCH_CUDA_ARCH_LIST has {bad[0]!r}; write 8.0, 9.0a or 12.0+PTX")
    archs = [arch for arch in wanted if int(arch.split(".")[0]) >= 8]  # with mma.m16n8k16
    if wanted and not archs:
        raise SystemExit(
            f"TORCH_CUDA_ARCH_LIST is {requested!r}, but the kernels need architecture 8.0 or "
            "later: build without them with ESPAN_BUILD=cpu"
        )
    if skipped := [arch for arch in wanted if arch not in archs]:
        print(f"espan: no kernels for {' '.join(skipped)}: they need 8.0 or later", flush=True)
    return archs or [a for a in DEFAULT_ARCHS if f"compute_{number(a)}" in known.split()]


def number(arch: str) -> str:
    """Nvcc's name for an architecture: 90 for 9.0+PTX."""
    return arch.removesuffix("+PTX").replace(".", "")


def gencode(arch: str) -> list[str]:
    """Nvcc's flags for an architecture: machine code, and PTX if requested."""
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
    """The output of a command, both streams."""
    result = subprocess.run(command, text=True, capture_output=True)
    return result.stdout + result.stderr


class EggInfo(egg_info):
    """Records why there are no compiled kernels.  Each install replaces the package's metadata."""

    not_compiled = ""

    def run(self) -> None:
        """Write not_compiled.txt, or remove that of an earlier build, before files are listed."""
        self.mkpath(self.egg_info)
        path = os.path.join(self.egg_info, "not_compiled.txt")
        self.write_or_delete_file("not_compiled.txt", path, self.not_compiled)
        super().run()


class BuildPython(build_py):
    """Starts from empty folders: a wheel has no files that were deleted since an earlier build."""

    def run(self) -> None:
        """Remove what an earlier build copied, except in an editable install, which copies none."""
        if not self.editable_mode:
            for package in {name.partition(".")[0] for name in self.packages}:
                shutil.rmtree(os.path.join(self.build_lib, package), ignore_errors=True)
        super().run()


class BuildWithoutExtension(BuildPython):
    """Removes the extension of an earlier build from an editable install."""

    def run(self) -> None:
        """Remove it from the source tree, from which an editable install would load it."""
        super().run()
        for path in glob.glob("espan_kernels/_C.*") * self.editable_mode:
            os.remove(path)


def main() -> None:
    """Decide what to build, then run setuptools."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    compiler = (os.environ.get("CXX") or "c++").split()[0]  # the one that PyTorch's build_ext calls
    requested = os.environ.get("ESPAN_BUILD", "auto")
    what, reason = decide(requested, sys.platform, shutil.which(compiler), nvcc)
    if what == "none":
        print(f"espan: building no compiled kernels: {reason}", flush=True)
        EggInfo.not_compiled = reason
        setup(cmdclass={"egg_info": EggInfo, "build_py": BuildWithoutExtension})
    else:
        build_extension(nvcc if what == "cuda" else None, reason)


def check_torch() -> None:
    """Only an extension needs torch to be installed, whose headers must have the stable ABI."""
    try:
        from torch import __version__ as found
    except ModuleNotFoundError:
        found = "none"
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if not numbers or tuple(map(int, numbers.groups())) < (2, 10):
        raise SystemExit(
            f"building the kernels needs PyTorch 2.10 or later in this environment (found {found}):"
            " install it first, or build without compiled kernels with ESPAN_BUILD=none"
        )


def build_extension(nvcc: str | None, reason: str) -> None:
    """Run setuptools with the extension; ``reason`` is why it has no CUDA kernels."""
    check_torch()
    from torch.utils import cpp_extension

    cxx = ["-O3", "-std=c++17", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
    flags, archs, version, toolkit = {}, [], "", {}
    sources = glob.glob("csrc/**/*.cpp", recursive=True) + glob.glob("csrc/cuda/*.cu") * bool(nvcc)
    if nvcc:
        # Ask nvcc for its location, because the one on PATH may be a link or a script.
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
    # Disable two warnings, one about inlined functions, one about headers of GCC 12.
    cxx += ["-fvisibility=hidden", "-Wno-psabi", "-Wno-maybe-uninitialized"]
    cxx += [f"-DESPAN_CUDA_ARCHS={','.join(archs)}", f"-DESPAN_CUDA_ABSENT={reason}"]
    cxx += [f"-DESPAN_CUDA_VERSION={version}"]
    # A CUDA build of libtorch provides the current CUDA stream.  The symbols of our static cudart
    # stay private.
    gnu_linker = ["-Wl,--no-as-needed,-ltorch,--as-needed,--exclude-libs,ALL"]
    extension = cpp_extension.CppExtension(
        "espan_kernels._C",
        sorted(sources),
        extra_compile_args={"cxx": cxx, **flags},
        extra_link_args=gnu_linker if sys.platform == "linux" else [],
        py_limited_api=True,
        **toolkit,
    )

    class BuildExtension(cpp_extension.BuildExtension):
        """Keeps the objects of an editable install, for the next one."""

        def finalize_options(self) -> None:
            """Replace the temporary folder by that of other builds."""
            super().finalize_options()
            if self.editable_mode:
                platform = f"{self.plat_name}-{sys.implementation.cache_tag}"
                self.build_temp = os.path.join("build", f"temp.{platform}")

    # Force a build, because its result depends on the environment; ninja detects what is stale.
    options = {"bdist_wheel": {"py_limited_api": "cp310"}, "build_ext": {"force": True}}
    commands = {"egg_info": EggInfo, "build_py": BuildPython, "build_ext": BuildExtension}
    setup(ext_modules=[extension], cmdclass=commands, options=options)


if __name__ == "__main__":
    main()
