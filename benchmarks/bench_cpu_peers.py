"""Times the network on the CPU against other runtimes, interleaved in one process.

    python benchmarks/bench_cpu_peers.py [--threads 2] [--rounds 15] [--output FILE]

The other runtimes are PyTorch, eager and compiled, and ONNX Runtime, OpenVINO and ncnn if they are
installed (`pip install onnx onnxscript onnxruntime openvino ncnn pnnx`); those that are missing are
reported.  Each is compared with the fp64 network before it is timed.  The largest error of an fp32
result must be below 1e-4 of the largest value; that of a bf16 result, at most twice that of PyTorch
eager in bf16.  "espan (default)" runs with the default dtype, which with AMX keeps 17 bits; "espan
fp32" runs with dtype=torch.float32, and is the one to which the targets apply.  bf16 is timed only
on processors that have instructions for it; on others, PyTorch emulates it slowly.  A round runs
each twice, in random order, so that other load on the machine affects all alike, and times the
second: threads of another runtime that still spin slow down the first.  The result is the median
over the rounds, of which there are fewer, at least 3, if they would take more than half a minute.
Cases that FILE has are not measured again, so that a run can be continued; a file of another
machine is refused.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import conftest as machine

from espan.fused import FusedNetwork
from espan.models import (
    ESPAN,
    SPAN_C48,
    SPANF3_B5F48,
    SPANF3_B8F64,
    SPANV2,
    Architecture,
    Network,
)
from espan_kernels import backends

Run = Callable[[], Tensor]
SIZES = {
    "ESPAN": [(256, 256), (339, 510)],
    "SPAN c48": [(256, 256)],
    "SPANV2": [(256, 256), (1080, 1920)],
    "SPANF3 b5f48": [(256, 256), (1080, 1920)],
    "SPANF3 b8f64": [(256, 256), (1080, 1920)],
}
ARCHITECTURES = {
    "ESPAN": ESPAN,
    "SPAN c48": SPAN_C48,
    "SPANV2": SPANV2,
    "SPANF3 b5f48": SPANF3_B5F48,
    "SPANF3 b8f64": SPANF3_B8F64,
}
PACKAGES = ("torch", "onnxruntime", "openvino", "ncnn")
# The allowed error of an fp32 result, relative to the largest value, and of a bf16 result, relative
# to the error of PyTorch eager in bf16.
FP32_ALLOWED, BF16_FACTOR = 1e-4, 2
LEAST_ROUNDS, SECONDS = 3, 30


def isa() -> str:
    """The instruction set of espan's kernels."""
    return dict(backends.available()["cpu"].details)["path"]


def random_network(architecture: Architecture) -> Network:
    """A network whose weights have about unit gain, so that nothing vanishes or overflows."""
    generator = torch.Generator().manual_seed(0)
    plain = Network(architecture).eval().requires_grad_(False)
    for parameter in plain.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    for name, parameter in plain.named_parameters():
        if name.endswith("gate_conv.bias"):
            parameter.add_(1)  # without it, products of small values become subnormal, and slow
    return plain


def espan_network(plain: Network, x: Tensor, dtype: torch.dtype | None) -> Run:
    fused = FusedNetwork(plain, device="cpu", dtype=dtype)
    return lambda: fused(x)


def in_bfloat16(plain: Network) -> Network:
    copy = Network(plain.architecture).eval().requires_grad_(False)
    copy.load_state_dict(plain.state_dict())
    return copy.to(torch.bfloat16)


def eager(plain: Network, x: Tensor) -> Run:
    plain, x = (t.to(memory_format=torch.channels_last) for t in (plain, x))  # type: ignore[misc]
    return lambda: plain(x)


def compiled(plain: Network, x: Tensor) -> Run:
    torch.compiler.reset()
    return eager(torch.compile(plain, fullgraph=True), x)  # type: ignore[arg-type]


def onnx_file(plain: Network, x: Tensor, folder: Path) -> str:
    path = folder / f"{id(plain)}.onnx"
    torch.onnx.export(plain, (x,), path, dynamo=True, external_data=False, verbose=False)
    return str(path)


def onnxruntime(plain: Network, x: Tensor, folder: Path, threads: int) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    model = onnx_file(plain, x, folder)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def openvino(plain: Network, x: Tensor, folder: Path, threads: int, precision: str) -> Run:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(onnx_file(plain, x, folder))
    config = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", config).create_infer_request()
    array = x.numpy()

    def run() -> Tensor:
        return torch.from_numpy(next(iter(request.infer([array]).values())))

    return run


def ncnn(plain: Network, x: Tensor, folder: Path, threads: int, precision: str) -> Run:
    import ncnn
    import pnnx

    stem = folder / f"ncnn{id(plain)}"
    # The converted network takes any size, but converting it takes longer for larger images.
    pnnx.export(plain, f"{stem}.pt", (x[..., :64, :64],), fp16=False)
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = precision == "bf16"
    if net.load_param(f"{stem}.ncnn.param") or net.load_model(f"{stem}.ncnn.bin"):
        raise RuntimeError("pnnx cannot convert this network")
    array = ncnn.Mat(x[0].numpy())

    def run() -> Tensor:
        extractor = net.create_extractor()
        extractor.input("in0", array)
        return torch.from_numpy(np.array(extractor.extract("out0")[1]))[None]

    return run


def runtimes(plain: Network, x: Tensor, folder: Path, threads: int) -> dict[str, Run]:
    """All runtimes that can run on this machine, by name and precision."""
    makers: dict[str, Callable[[], Run]] = {
        "espan fp32": lambda: espan_network(plain, x, torch.float32),
        "PyTorch eager fp32": lambda: eager(plain, x),
        "PyTorch compiled fp32": lambda: compiled(plain, x),
        "ONNX Runtime fp32": lambda: onnxruntime(plain, x, folder, threads),
        "OpenVINO fp32": lambda: openvino(plain, x, folder, threads, "fp32"),
        "ncnn fp32": lambda: ncnn(plain, x, folder, threads, "fp32"),
    }
    if isa() == "amx":  # elsewhere, the default is fp32
        makers = {"espan (default)": lambda: espan_network(plain, x, None), **makers}
    if torch.cpu._is_avx512_bf16_supported():  # and so on every processor with AMX
        narrow, narrow_x = in_bfloat16(plain), x.bfloat16()
        makers |= {
            "espan bf16": lambda: espan_network(plain, x, torch.bfloat16),
            "PyTorch eager bf16": lambda: eager(narrow, narrow_x),
            "PyTorch compiled bf16": lambda: compiled(narrow, narrow_x),
            "OpenVINO bf16": lambda: openvino(plain, x, folder, threads, "bf16"),
            "ncnn bf16": lambda: ncnn(plain, x, folder, threads, "bf16"),
        }
    exact = Network(plain.architecture).double().eval()
    exact.load_state_dict(plain.state_dict())
    with torch.no_grad():
        expected = exact(x.double())

    def error_of(result: Tensor) -> float:
        return ((result.double() - expected).abs().max() / expected.abs().max()).item()

    ready = {}
    for name, make in makers.items():
        try:
            run = make()
        except (ImportError, RuntimeError) as error:
            print(f"  {name}: not measured: {error}", flush=True)
            continue
        error, allowed = error_of(run()), FP32_ALLOWED
        if name.endswith("bf16"):
            allowed = BF16_FACTOR * error_of(in_bfloat16(plain)(x.bfloat16()))
        if not error <= allowed:
            print(f"  {name}: not measured: error {error:.2g} exceeds {allowed:.2g}", flush=True)
            continue
        print(f"  {name}: error {error:.2g}, at most {allowed:.2g} allowed", flush=True)
        ready[name] = run
    return ready


def measure(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """The milliseconds of each round, by name."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    first = time.perf_counter()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.perf_counter() - first > SECONDS:
            break
        random.shuffle(order)
        for name in order:
            runs[name]()
            start = time.perf_counter()
            runs[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def report(name: str, times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Print the medians, and return what is stored of each runtime."""
    medians = {runtime: statistics.median(t) for runtime, t in times.items()}
    baseline = medians["espan fp32"]
    print(f"{name}: median ms")
    for runtime, median in sorted(medians.items(), key=lambda item: item[1]):
        least = min(times[runtime])
        print(f"  {runtime:24s} {median:8.1f}  x{median / baseline:.2f}  (min {least:.1f})")
    return {
        r: {"median_ms": round(m, 2), "least_ms": round(min(times[r]), 2), "rounds": len(times[r])}
        for r, m in medians.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    # The other runtimes read it when their thread pools start.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    cases: list[dict[str, Any]] = []
    if options.output and options.output.exists():
        cases = json.loads(options.output.read_text())["cases"]
        here = of_the_host(about_machine(options.threads))
        if any(of_the_host(case["machine"]) != here for case in cases):
            parser.error(f"{options.output} has results of another machine; name a new file")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, sizes in SIZES.items():
            plain = random_network(ARCHITECTURES[name])
            for height, width in sizes:
                case = f"{name} {width}x{height}"
                if case in [c["case"] for c in cases]:
                    continue
                x = torch.rand(1, 3, height, width)
                print(f"{case}: verifying", flush=True)
                runs = runtimes(plain, x, Path(folder), options.threads)
                times = report(case, measure(runs, options.rounds))
                about = about_machine(options.threads)
                cases.append({"case": case, "machine": about, "times": times})
                if options.output:
                    text = json.dumps({"cases": cases}, indent=1, allow_nan=False)
                    options.output.write_text(text + "\n")


def about_machine(threads: int) -> dict[str, Any]:
    return {
        "processor": machine._processor(),
        "threads": threads,
        "load_when_done": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {p: version(p) for p in PACKAGES},
        "espan": machine._commit(),
        "path": isa(),
    }


def of_the_host(about: dict[str, Any]) -> tuple[Any, ...]:
    """What must be equal for times to be comparable."""
    return about["processor"], about["path"], about["threads"]


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
