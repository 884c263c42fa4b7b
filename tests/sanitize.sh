#!/usr/bin/env bash
# Tests the CPU ops under AddressSanitizer and UBSan: builds the extension with both in a temporary
# directory and runs the op tests there.   tests/sanitize.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
# setuptools reads these to compile and link.  The vptr check would need libtorch's RTTI.
export CFLAGS="$flags -fno-sanitize=vptr" LDFLAGS="$flags" ESPAN_BUILD=cpu
"$python" setup.py -q build_ext --build-lib "$work" --build-temp "$work/objects"
cp -r espan_kernels/*.py espan_kernels/{packing,triton} "$work/espan_kernels"
ln -s "$PWD"/{espan,tests,pyproject.toml} "$work"
cd "$work"
# Python itself is not built with the sanitizers, so their libraries must be preloaded, and
# libstdc++ with them, so that they can intercept exceptions.  Leak detection is off because Python
# frees little at exit.
libraries="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
libraries+=" $(g++ -print-file-name=libstdc++.so.6)"
# pytest puts this directory first on sys.path.  torch.compile tests are excluded because they would
# run a compiler under LD_PRELOAD.
LD_PRELOAD="$libraries" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  "$python" -m pytest -m "not slow" -k "not compile and not export and not photographs" \
  tests/kernels/test_{gate,conv3x3,frequency_loss,network,network_cpu,winograd_cpu,winograd_bf16_cpu,amx_cpu}.py "$@"
