#!/usr/bin/env bash
# The CPU ops under AddressSanitizer and UBSan: builds the extension with both into a folder of its
# own and runs the op tests there.   tests/sanitize.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
# setuptools compiles and links with these; a vptr check would need libtorch's type information.
export CFLAGS="$flags -fno-sanitize=vptr" LDFLAGS="$flags" ESPAN_BUILD=cpu
"$python" setup.py -q build_ext --build-lib "$work" --build-temp "$work/objects"
cp -r espan_kernels/*.py espan_kernels/{packing,triton} "$work/espan_kernels"
ln -s "$PWD"/{espan,tests,pyproject.toml} "$work"
cd "$work"
# Python itself is not built with the sanitizers: their libraries must come first, and libstdc++
# with them, whose exceptions they watch.  Python frees little at exit: leaks are not looked for.
libraries="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
libraries+=" $(g++ -print-file-name=libstdc++.so.6)"
# pytest puts this folder first on the path; torch.compile would start a compiler under LD_PRELOAD.
LD_PRELOAD="$libraries" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  "$python" -m pytest -m "not slow" -k "not compile and not export and not photographs" \
  tests/kernels/test_{gate,frequency_loss,network,network_cpu,winograd_cpu,amx_cpu}.py "$@"
