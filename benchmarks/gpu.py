"""Implements `make gpu`: builds for the GPU in the machine, tests, benchmarks, writes one JSON.

    python benchmarks/gpu.py [--no-build] [OUTPUT.json]
    python benchmarks/report.py    # writes the tables and the chart of the documentation

Requires an NVIDIA GPU, nvcc (unless --no-build uses the library that is there) and, in this Python,
torch, numpy, safetensors, pillow, pytest and pytest-benchmark.  The tests of training and of the
command line also require espan's other dependencies.  Nothing is downloaded or installed.  With
pytest-xdist and 16 cores, tests and sanitizers, which run at the same time, took 77 s on an H200.
The benchmarks end 265 s after the start of the tests.  The JSON is rewritten after each part.  For
each part it has the seconds, the share of the run, and the GPU's clocks.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks/results/gpu.json"
# Files, and pytest -k expressions.  The most important come first.
SIZES = "(256x256 or 510x339 or 1920x1080)"
BENCHMARKS = (
    ("bench_model", f"test_espan and {SIZES} and not compiled"),
    ("bench_frequency_loss", "gpu and not compiled"),
    ("bench_layers", f"{SIZES} and not compiled and not fp32"),
    ("bench_model", f"test_espan and {SIZES} and compiled and fp16"),
    ("bench_frequency_loss", "gpu and compiled"),
    ("bench_model", "test_family and not compiled"),
    ("bench_model", "test_challenge or test_list"),
    ("bench_ops", "cuda"),
    ("bench_training", ""),
    ("bench_model", f"not {SIZES} and not test_challenge and not compiled"),
    ("bench_model", "test_family and compiled"),
    ("bench_layers", "compiled"),
)
# Those of them that take a minute per case to compile, unless they are in Inductor's cache.
COMPILED = f"(test_espan and {SIZES} and fp16 or gpu) and compiled"
SANITIZED = [
    "tests/kernels/test_gate_cuda.py::test_values[cuda-dtype1]",
    "tests/kernels/test_head_cuda.py::test_values[32-9-dtype0]",
    "tests/kernels/test_spab_cuda.py::test_values[32-3-dtype0]",
    "tests/kernels/test_tail_cuda.py::test_values[32-4-dtype0]",
    "tests/kernels/test_frequency_loss_cuda.py::test_values_and_gradients[cuda-dtype0]",
]
CHECKS = ("memcheck", "racecheck", "initcheck", "synccheck")
# In seconds.  The build takes another minute.
TEST_LIMIT, SANITIZER_LIMIT, COMPILE_LIMIT, GRACE = 100, 100, 80, 10
RUN_LIMIT = 265  # of checks and benchmarks together
PYTEST = (sys.executable, "-m", "pytest", "-p", "benchmarks.end_at_once", "-q")
CLOCKS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


def run(*command: str, limit: float | None = None, **environment: str) -> tuple[int, str]:
    """Run a command and return its status and output; the status is 124 if it timed out.

    At the time limit, pytest prints its stacks (benchmarks/end_at_once.py), and the command is
    interrupted, so that pytest can still write its report; if it does not end, it is killed.
    Processes that it leaves behind are killed too, because they could keep the output open for
    ever.
    """
    print("$", " ".join(command), flush=True)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        late = False
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            late = True
            if "benchmarks.end_at_once" in command:
                os.killpg(process.pid, signal.SIGUSR1)
                time.sleep(1)
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return 124 if late else process.returncode, output.read().decode(errors="replace")


def printed_by(*command: str) -> str:
    """The output of a command; "unknown" if it is not installed or fails."""
    if not shutil.which(command[0]):
        return "unknown"
    status, output = run(*command)
    return "unknown" if status else output.strip()


def build(capability: tuple[int, int]) -> None:
    status, output = run(
        sys.executable,
        "setup.py",
        "build_ext",
        "--inplace",
        ESPAN_BUILD="cuda",
        TORCH_CUDA_ARCH_LIST="{}.{}".format(*capability),
    )
    if status:
        sys.exit(f"{output}\nthe build failed")


def test_files() -> tuple[list[str], str]:
    """The files with GPU tests, those of the kernels first, and why any were left out."""
    # The kernels and the network can be tested even if some dependencies of espan are missing.
    lacking, why = run(sys.executable, "-c", "import espan.cli.commands, espan.training.train")
    names = ["kernels/test_*_cuda.py", "test_fused_gpu.py", "kernels/test_*.py"]
    names += [] if lacking else ["**/test_*.py"]
    files = [p for name in names for p in sorted((ROOT / "tests").glob(name))]
    # Name the files, because collecting the others may require packages that are not installed.
    marked = [str(p) for p in dict.fromkeys(files) if "mark.gpu" in p.read_text()]
    return marked, why.strip().splitlines()[-1] if lacking else ""


def tests(folder: Path) -> dict[str, Any]:
    report = folder / "tests.xml"
    files, left_out = test_files()
    pytest = [*PYTEST, "-m", "gpu", f"--junitxml={report}"]
    # Most of the time goes into compilers and exact results, on the CPU.  If each worker used all
    # cores, the tests would take over four times as long.
    parallel = {}
    if importlib.util.find_spec("xdist"):
        pytest += ["-n", str(max((os.cpu_count() or 2) - 1, 1))]
        parallel["OMP_NUM_THREADS"] = "1"
    status, output = run(*pytest, *files, limit=TEST_LIMIT, **parallel)
    print(output if status == 124 else output[-4000:])
    if not report.exists():
        return {"status": status, "output": output[-2000:]}
    # An interrupted test has no name.
    cases = [c for c in ElementTree.parse(report).getroot().iter("testcase") if c.get("name")]
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    return {
        "status": status,
        "passed": len(cases) - len(failed) - len(skipped),
        "skipped": len(skipped),
        "failed": [f"{c.get('classname')}.{c.get('name')}" for c in failed],
        "left_out": left_out,
    }


def sanitizer() -> dict[str, str]:
    """Run all checks of compute-sanitizer in parallel, each on one test per op."""
    if not (tool := shutil.which("compute-sanitizer")):
        return dict.fromkeys(CHECKS, "compute-sanitizer is not installed")

    def verdict(check: str) -> str:
        start = time.time()
        environment = {"OMP_NUM_THREADS": "1"}
        if check == "racecheck":
            # It does not know that __syncwarp and one lane's arrival at an mbarrier order what the
            # other lanes did before, so it reports every ring of the streamed kernels.
            environment["ESPAN_HOPPER"] = "0"
        # Not PYTEST: the sanitizer checks the process until its regular exit.
        pytest = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", *SANITIZED]
        status, output = run(
            *(tool, f"--tool={check}", "--error-exitcode=9", *pytest),
            limit=SANITIZER_LIMIT,
            **environment,
        )
        last = output.strip().splitlines()[-1] if output.strip() else ""
        return f"status {status} after {time.time() - start:.0f} s: {last}"

    with ThreadPoolExecutor(len(CHECKS)) as pool:
        return dict(zip(CHECKS, pool.map(verdict, CHECKS), strict=True))


def compile_ahead() -> int | None:
    """Fill Inductor's cache, with one process per case; None without pytest-xdist."""
    if not importlib.util.find_spec("xdist"):
        return None
    files = ("benchmarks/bench_model.py", "benchmarks/bench_frequency_loss.py")
    pytest = (*PYTEST, *files, "-k", COMPILED, "-n", "6")  # xdist runs each case once, untimed
    status, output = run(*pytest, limit=COMPILE_LIMIT, OMP_NUM_THREADS="1")
    print(output[-2000:])
    return status


def checks(folder: Path) -> dict[str, Any]:
    """The tests, the sanitizers and the compiler at the same time."""
    with ThreadPoolExecutor(2) as pool:
        sanitized, compiled = pool.submit(sanitizer), pool.submit(compile_ahead)
        found = {"tests": tests(folder), "sanitizer": sanitized.result()}
        return {**found, "compile_ahead": compiled.result()}


def benchmarks(folder: Path, limit: float) -> list[dict[str, Any]]:
    """Run the benchmarks in parts, so that a part that times out does not lose other results."""
    end = time.time() + limit
    rows: list[dict[str, Any]] = []
    for number, (name, which) in enumerate(BENCHMARKS):
        part = {"file": f"benchmarks/{name}.py", "which": which}
        if (left := end - time.time()) < GRACE:
            rows.append({**part, "status": "no time left"})
            continue
        report = folder / f"{number}.json"
        pytest = [*PYTEST, part["file"], "-k", which]
        status, output = run(
            *pytest, "--benchmark-only", f"--benchmark-json={report}", limit=left - GRACE / 2
        )
        print(output[-12000:])
        if status:
            rows.append({**part, "status": status, "output": output[-2000:]})
        if not report.exists() or not report.stat().st_size:
            continue
        rows += [
            {
                "group": b["group"],
                "name": (b["params"] or {}).get("name", b["name"]),
                "median_ms": round(1e3 * b["stats"]["median"], 5),
                "min_ms": round(1e3 * b["stats"]["min"], 5),
                **b["extra_info"],
            }
            for b in json.loads(report.read_text())["benchmarks"]
        ]
    return rows


class Clocks:
    """The GPU's clocks, power and temperature, sampled by nvidia-smi twice a second."""

    def __init__(self, file: Path) -> None:
        self.file, self.process = file, None
        if tool := shutil.which("nvidia-smi"):
            query = [f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader,nounits", "-lms=500"]
            with file.open("w") as output:
                self.process = subprocess.Popen([tool, *query], stdout=output)
        self.read = 0

    def since_last(self) -> dict[str, list[float]]:
        """The minimum, median and maximum of each since the last call."""
        lines = self.file.read_text().splitlines()[self.read :] if self.process else []
        self.read += len(lines)
        rows = []
        for line in lines:
            with suppress(ValueError):  # an incomplete last line, or an unsupported value
                rows.append([float(value) for value in line.split(",")])
        columns = zip(*(row for row in rows if len(row) == len(CLOCKS)), strict=True)
        return {
            name: [min(column), statistics.median(column), max(column)]
            for name, column in zip(CLOCKS, columns, strict=False)
        }

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


def record(
    report: dict[str, Any], target: Path, clocks: Clocks, parts: dict[str, Callable[[], Any]]
) -> None:
    """Run the parts one after another and write the report after each."""
    report["parts"] = {}
    for name, part in parts.items():
        start = time.time()
        if (result := part()) is not None:
            report[name] = result
        about = {"seconds": round(time.time() - start, 3), "clocks": clocks.since_last()}
        report["parts"][name] = about
        total = sum(p["seconds"] for p in report["parts"].values()) or 1
        for other in report["parts"].values():
            other["share"] = round(other["seconds"] / total, 3)
        unfinished = target.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        unfinished.replace(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", nargs="?", type=Path, default=RECORD)
    parser.add_argument("--no-build", action="store_true", help="use the library that is there")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch sees no NVIDIA GPU")
    card = torch.cuda.get_device_properties(0)
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "gpu": card.name,
        "driver": printed_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": importlib.metadata.version("triton")
        if importlib.util.find_spec("triton")
        else "",
        "espan": printed_by("git", "describe", "--always", "--dirty", "--abbrev=12"),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clocks = Clocks(folder / "clocks.csv")
        parts: dict[str, Callable[[], Any]] = {
            "checks": lambda: checks(folder),
            "benchmarks": lambda: benchmarks(
                folder, RUN_LIMIT - report["parts"]["checks"]["seconds"]
            ),
        }
        if not arguments.no_build:
            parts = {"build": lambda: build((card.major, card.minor)), **parts}
        try:
            record(report, arguments.output, clocks, parts)
        finally:
            clocks.stop()
    print(arguments.output)
    sys.exit(report["checks"]["tests"]["status"])


if __name__ == "__main__":
    main()
