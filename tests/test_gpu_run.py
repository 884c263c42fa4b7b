"""What `make gpu` does, as far as it can be seen without a GPU."""

import subprocess
import sys
from pathlib import Path

from benchmarks import gpu

ROOT = Path(__file__).parent.parent


def test_run_tells_status_and_output():
    assert gpu.run("bash", "-c", "echo out; echo err >&2; exit 3") == (3, "out\nerr\n")
    assert gpu.run("bash", "-c", "echo $HERE", HERE="there", limit=60) == (0, "there\n")


def test_run_interrupts_what_is_late(monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 1)
    slow = "import time\nprint('begun', flush=True)\n"
    polite = slow + "try: time.sleep(60)\nexcept KeyboardInterrupt: print('told')"
    assert gpu.run(sys.executable, "-c", polite, limit=2) == (124, "begun\ntold\n")
    deaf = "trap '' INT; echo begun; sleep 60 & sleep 60"
    assert gpu.run("bash", "-c", deaf, limit=0.5) == (124, "begun\n")


def test_an_interrupted_pytest_tells_what_it_found(tmp_path, monkeypatch):
    (tmp_path / "test_some.py").write_text(
        "import time, pytest\npytestmark = pytest.mark.gpu\n"
        "def test_a(): pass\ndef test_b(): assert 0\ndef test_c(): time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu, "TEST_LIMIT", 8)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)  # one process
    monkeypatch.setattr(gpu, "test_files", lambda: ([str(tmp_path)], ""))
    found = gpu.tests(tmp_path)
    assert (found["status"], found["passed"], len(found["failed"])) == (124, 1, 1)


def test_files_and_sanitized_tests_exist():
    files, left_out = gpu.test_files()
    assert left_out == ""
    assert len(files) == len(set(files))
    names = [Path(f).name for f in files]
    assert names.index("test_spab_cuda.py") < names.index("test_fused_gpu.py")
    assert names.index("test_fused_gpu.py") < names.index("test_spab_triton.py")
    assert "test_train_gpu.py" in names
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "--collect-only", "-q", *gpu.SANITIZED],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert collected.returncode == 0, collected.stdout
    assert f"{len(gpu.SANITIZED)} tests collected" in collected.stdout


def test_benchmarks_without_time_are_told(tmp_path, monkeypatch):
    started = []

    def run(*command, limit, **environment):
        started.append(command)
        return 0, ""

    monkeypatch.setattr(gpu, "run", run)
    assert gpu.benchmarks(tmp_path) == []
    assert len(started) == len(gpu.BENCHMARKS)
    monkeypatch.setattr(gpu, "BENCHMARK_LIMIT", gpu.GRACE - 1)
    rows = gpu.benchmarks(tmp_path)
    assert {row["status"] for row in rows} == {"no time left"}
    assert len(rows) == len(gpu.BENCHMARKS)
