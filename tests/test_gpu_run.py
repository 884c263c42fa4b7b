"""The parts of `make gpu` that can be tested without a GPU."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu

ROOT = Path(__file__).parent.parent


def test_run_returns_status_and_output():
    assert gpu.run("bash", "-c", "echo out; echo err >&2; exit 3") == (3, "out\nerr\n")
    assert gpu.run("bash", "-c", "echo $HERE", HERE="there", limit=60) == (0, "there\n")


def test_run_interrupts_a_late_command(monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 1)
    slow = "import time\nprint('begun', flush=True)\n"
    polite = slow + "try: time.sleep(60)\nexcept KeyboardInterrupt: print('interrupted')"
    assert gpu.run(sys.executable, "-c", polite, limit=2) == (124, "begun\ninterrupted\n")
    deaf = "trap '' INT; echo begun; sleep 60 & sleep 60"
    assert gpu.run("bash", "-c", deaf, limit=0.5) == (124, "begun\n")


def test_an_interrupted_pytest_prints_its_stacks_and_writes_its_report(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "test_some.py").write_text(
        "import time, pytest\npytestmark = pytest.mark.gpu\n"
        "def test_a(): pass\ndef test_b(): assert 0\ndef test_c(): time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu, "TEST_LIMIT", 8)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)  # one process
    monkeypatch.setattr(gpu, "test_files", lambda: ([str(tmp_path)], ""))
    found = gpu.tests(tmp_path)
    assert (found["status"], found["passed"], len(found["failed"])) == (124, 1, 1)
    assert "in test_c" in capsys.readouterr().out


def test_run_does_not_wait_for_remaining_processes():
    start = time.monotonic()
    assert gpu.run("bash", "-c", "echo done; sleep 60 & exit 0", limit=30) == (0, "done\n")
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(("body", "status"), [("pass", 0), ("assert 0", 1)])
def test_reports_are_written_before_a_hanging_exit(tmp_path, monkeypatch, body, status):
    """Python waits for a thread at exit, as for Inductor's workers."""
    # Otherwise, pytest-benchmark would not measure.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    (tmp_path / "test_some.py").write_text(
        "import threading, time\n"
        "def test_some(benchmark):\n"
        "    benchmark.pedantic(lambda: None)\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        f"    {body}\n"
    )
    reports = [f"--junitxml={tmp_path}/a.xml", f"--benchmark-json={tmp_path}/a.json"]
    found, output = gpu.run(*gpu.PYTEST, str(tmp_path / "test_some.py"), *reports, limit=40)
    assert found == status, output
    assert f"1 {'failed' if status else 'passed'}" in output
    assert "test_some" in (tmp_path / "a.xml").read_text()
    assert len(json.loads((tmp_path / "a.json").read_text())["benchmarks"]) == 1


def test_parallel_tests_have_one_thread_each(tmp_path, monkeypatch):
    started = {}

    def run(*command, limit=None, **environment):
        started[command[2]] = (command, environment)
        return 0, ""

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "test_files", lambda: ([], ""))
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 16)
    gpu.tests(tmp_path)
    command, environment = started["pytest"]
    assert command[command.index("-n") + 1] == "15"
    assert environment == {"OMP_NUM_THREADS": "1"}


def test_all_sanitizers_run(monkeypatch):
    def run(tool, check, *command, limit, **environment):
        first = {"ESPAN_HOPPER": "0"} if "race" in check else {}
        assert environment == {"OMP_NUM_THREADS": "1", **first}
        return (9 if "race" in check else 0), f"said {check}"

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: name)
    found = gpu.sanitizer()
    assert list(found) == ["memcheck", "racecheck", "initcheck", "synccheck"]
    assert found["racecheck"] == "status 9 after 0 s: said --tool=racecheck"
    assert found["synccheck"] == "status 0 after 0 s: said --tool=synccheck"
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    assert set(gpu.sanitizer().values()) == {"compute-sanitizer is not installed"}


def test_all_checks_run_at_the_same_time(tmp_path, monkeypatch):
    all_started = threading.Barrier(3, timeout=20)

    def meets(name):
        all_started.wait()
        return f"ran {name}"

    monkeypatch.setattr(gpu, "tests", lambda folder: meets("tests"))
    monkeypatch.setattr(gpu, "sanitizer", lambda: meets("sanitizer"))
    monkeypatch.setattr(gpu, "compile_ahead", lambda: meets("compile_ahead"))
    names = ("tests", "sanitizer", "compile_ahead")
    assert gpu.checks(tmp_path) == {name: f"ran {name}" for name in names}


def test_benchmarks_are_compiled_ahead(monkeypatch):
    """One process per case: three sizes of the network and three dtypes of the loss."""
    started = []

    def run(*command, limit, **environment):
        started.extend(command)
        return 0, ""

    monkeypatch.setattr(gpu, "run", run)
    assert gpu.compile_ahead() == 0
    files, which = started[started.index("-q") + 1 :][:2], started[started.index("-k") + 1]
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *files, "-k", which],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    names = [line.split("::")[1] for line in collected.stdout.splitlines() if "::" in line]
    if torch.cuda.is_available():
        assert len(names) == int(started[started.index("-n") + 1])
    assert [n for n in names if n.startswith("test_on_a_gpu")] == [
        f"test_on_a_gpu[torch.{dtype}-compiled]" for dtype in ("float32", "float16", "bfloat16")
    ]


@pytest.mark.parametrize("built", [True, False])
def test_a_whole_run(tmp_path, monkeypatch, built):
    """The record has all parts; --no-build uses the library that is there."""
    card = SimpleNamespace(name="NVIDIA One", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(gpu, "tests", lambda folder: {"status": 5})
    monkeypatch.setattr(gpu, "sanitizer", lambda: {"memcheck": "status 0"})
    monkeypatch.setattr(gpu, "compile_ahead", lambda: None)
    limits = []
    monkeypatch.setattr(gpu, "benchmarks", lambda folder, limit: limits.append(limit) or [])
    builds = []
    monkeypatch.setattr(gpu, "build", builds.append)
    target = tmp_path / "one.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", *["--no-build"] * (not built), str(target)])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 5
    assert builds == [(9, 0)] * built
    written = json.loads(target.read_text())
    assert written["gpu"] == "NVIDIA One"
    checks = {"tests": {"status": 5}, "sanitizer": {"memcheck": "status 0"}}
    assert written["checks"] == checks | {"compile_ahead": None}
    assert written["benchmarks"] == []
    assert limits == [gpu.RUN_LIMIT - written["parts"]["checks"]["seconds"]]
    assert list(written["parts"]) == ["build"] * built + ["checks", "benchmarks"]


def test_the_report_is_written_after_each_part(tmp_path, monkeypatch):
    """With the time, share and clocks of each; a failure does not lose the other parts."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 1980, 3201, 120.5, 40\necho 1500, 3201, 500, 60\nexec sleep 60")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    target, clocks = tmp_path / "card.json", gpu.Clocks(tmp_path / "clocks.csv")

    def wait_for_clocks():
        while len((tmp_path / "clocks.csv").read_text().splitlines()) < 2:
            time.sleep(0.01)
        time.sleep(0.05)

    def fails():
        assert json.loads(target.read_text())["tests"] == {"status": 0}
        raise RuntimeError("planted")

    report = {"card": "one"}
    parts = {"build": wait_for_clocks, "tests": lambda: {"status": 0}, "sanitizer": fails}
    with pytest.raises(RuntimeError, match="planted"):
        gpu.record(report, target, clocks, parts)
    clocks.stop()
    written = json.loads(target.read_text())
    assert written["card"] == "one"
    assert list(written["parts"]) == ["build", "tests"]
    assert "build" not in written
    assert written["parts"]["build"]["clocks"]["clocks.sm"] == [1500, 1740, 1980]
    assert written["parts"]["tests"]["clocks"] == {}
    assert sum(part["share"] for part in written["parts"].values()) == pytest.approx(1, abs=2e-3)


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


def test_rows_of_benchmarks(tmp_path, monkeypatch):
    """Each has its group, its way and its times."""
    stats = {"median": 1.25e-3, "min": 1e-3}
    named = {"name": "test_a[x]", "params": {"size": [1, 2], "name": "espan"}}
    plain = {"name": "test_b", "params": None}
    rest = {"group": "g", "stats": stats, "extra_info": {"cycles": 7}}

    def run(*command, limit, **environment):
        (name,) = (word.split("=")[1] for word in command if word.startswith("--benchmark-json"))
        Path(name).write_text(json.dumps({"benchmarks": [named | rest, plain | rest]}))
        return 0, ""

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "BENCHMARKS", (("bench_a", ""),))
    row = {"group": "g", "median_ms": 1.25, "min_ms": 1.0, "cycles": 7}
    assert gpu.benchmarks(tmp_path, 180) == [row | {"name": "espan"}, row | {"name": "test_b"}]


def test_benchmarks_without_time_are_reported(tmp_path, monkeypatch):
    started = []

    def run(*command, limit, **environment):
        started.append(command)
        return 0, ""

    monkeypatch.setattr(gpu, "run", run)
    assert gpu.benchmarks(tmp_path, 180) == []
    assert len(started) == len(gpu.BENCHMARKS)
    rows = gpu.benchmarks(tmp_path, gpu.GRACE - 1)
    assert {row["status"] for row in rows} == {"no time left"}
    assert len(rows) == len(gpu.BENCHMARKS)
