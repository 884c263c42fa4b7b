"""What `make gpu` runs: build for this card, test on it, time it, and write one JSON.

    python benchmarks/gpu.py [OUTPUT.json]

Needs an NVIDIA GPU, nvcc, and in this Python: torch, numpy, safetensors, pillow, pytest and
pytest-benchmark; for the tests of training and of the command line all that espan depends on.
Nothing is downloaded or installed.  It takes under 8 minutes.
"""

import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
# Which of a file's benchmarks.  What matters most comes first; compiling takes a minute a case.
BENCHMARKS = (
    ("bench_model", "(510x339 or challenge) and not compiled"),
    ("bench_frequency_loss", "cuda"),
    ("bench_model", "510x339 and compiled and fp16"),
    ("bench_layers", "not compiled"),
    ("bench_model", "not 510x339 and not challenge and not compiled"),
    ("bench_ops", "cuda"),
    ("bench_training", ""),
    ("bench_layers", "compiled"),
    ("bench_model", "compiled and not (510x339 and fp16)"),
)
SANITIZED = [
    "tests/kernels/test_gate_cuda.py::test_values[cuda-dtype1]",
    "tests/kernels/test_head_cuda.py::test_values[32-9-dtype0]",
    "tests/kernels/test_spab_cuda.py::test_values[32-3-dtype0]",
    "tests/kernels/test_tail_cuda.py::test_values[32-4-dtype0]",
    "tests/kernels/test_frequency_loss_cuda.py::test_values_and_gradients[cuda-dtype0]",
]
# Seconds; beside a minute for the build.
TEST_LIMIT, BENCHMARK_LIMIT, SANITIZER_LIMIT, GRACE = 120, 190, 35, 10


def run(*command: str, limit: float | None = None, **environment: str) -> tuple[int, str]:
    """A command's status and what it printed; 124 if it ran out of time.

    Then it is interrupted, so that pytest still writes what it has found, and killed if that does
    not help.
    """
    print("$", " ".join(command), flush=True)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    late = False
    # With their children, which hold the output open.
    for seconds, last_word in ((limit, signal.SIGINT), (GRACE, signal.SIGKILL)):
        try:
            output, _ = process.communicate(timeout=seconds)
            return 124 if late else process.returncode, output
        except subprocess.TimeoutExpired:
            late = True
            os.killpg(process.pid, last_word)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return 124, process.communicate()[0]


def told(*command: str) -> str:
    """What a command answers, where it is installed and succeeds."""
    if not shutil.which(command[0]):
        return "unknown"
    status, output = run(*command)
    return "unknown" if status else output.strip()


def build(capability: tuple[int, int]) -> float:
    start = time.time()
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
    return time.time() - start


def test_files() -> tuple[list[str], str]:
    """The files with tests for a GPU, the kernels' first, and why some were left out."""
    # Without all that espan depends on, the kernels and the network can be tested still.
    lacking, why = run(sys.executable, "-c", "import espan.cli, espan.training.train")
    names = ["kernels/test_*_cuda.py", "test_fused_gpu.py", "kernels/test_*.py"]
    names += [] if lacking else ["**/test_*.py"]
    files = [p for name in names for p in sorted((ROOT / "tests").glob(name))]
    # By name, because others need packages that may not be here.
    marked = [str(p) for p in dict.fromkeys(files) if "mark.gpu" in p.read_text()]
    return marked, why.strip().splitlines()[-1] if lacking else ""


def tests(folder: Path) -> dict[str, Any]:
    report = folder / "tests.xml"
    files, left_out = test_files()
    pytest = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={report}"]
    # Most of the time goes into compilers and exact results, on the CPU.
    pytest += ["-n", "6"] if importlib.util.find_spec("xdist") else []
    status, output = run(*pytest, *files, limit=TEST_LIMIT)
    print(output[-4000:])
    if not report.exists():
        return {"status": status, "output": output[-2000:]}
    # The test that was interrupted has no name.
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
    """compute-sanitizer over one test of each op, if it is installed."""
    if not (tool := shutil.which("compute-sanitizer")):
        return {"memcheck": "compute-sanitizer is not installed"}
    results = {}
    for check in ("memcheck", "racecheck"):
        pytest = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", *SANITIZED]
        status, output = run(
            tool, f"--tool={check}", "--error-exitcode=9", *pytest, limit=SANITIZER_LIMIT
        )
        last = output.strip().splitlines()[-1] if output.strip() else ""
        results[check] = f"status {status}: {last}"
    return results


def benchmarks(folder: Path) -> list[dict[str, Any]]:
    """In parts, so that one which runs out of time does not take the others' results along."""
    end = time.time() + BENCHMARK_LIMIT
    rows: list[dict[str, Any]] = []
    for number, (name, which) in enumerate(BENCHMARKS):
        part = {"file": f"benchmarks/{name}.py", "which": which}
        if (left := end - time.time()) < GRACE:
            rows.append({**part, "status": "no time left"})
            continue
        report = folder / f"{number}.json"
        pytest = [sys.executable, "-m", "pytest", part["file"], "-k", which, "-q"]
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
                "name": b["name"],
                "median_ms": round(1e3 * b["stats"]["median"], 5),
                "min_ms": round(1e3 * b["stats"]["min"], 5),
                **b["extra_info"],
            }
            for b in json.loads(report.read_text())["benchmarks"]
        ]
    return rows


def main() -> None:
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch sees no NVIDIA GPU")
    card = torch.cuda.get_device_properties(0)
    report: dict[str, Any] = {
        "card": card.name,
        "driver": told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": told("git", "describe", "--always", "--dirty"),
        "build_seconds": round(build((card.major, card.minor)), 1),
    }
    name = card.name.lower().replace(" ", "-")
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / f"benchmarks/results/{name}.json")
    with tempfile.TemporaryDirectory() as folder:
        report["tests"] = tests(Path(folder))
        report["sanitizer"] = sanitizer()
        report["benchmarks"] = benchmarks(Path(folder))
    target.write_text(json.dumps(report, indent=1) + "\n")
    print(target)
    sys.exit(report["tests"]["status"])


if __name__ == "__main__":
    main()
