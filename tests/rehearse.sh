#!/usr/bin/env bash
# Runs the tests marked gpu without a GPU.  The host code of csrc/cuda and torch's CUDA build run
# unchanged on a replacement of the CUDA runtime that uses host memory; the kernels run on
# emulators.  Requires a Python with a CUDA build of torch and the dependencies of espan and its
# tests; nvcc; g++ on x86-64.  Takes a quarter of an hour.
#   PYTHON=python3 tests/rehearse.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=$(command -v "${PYTHON:-python3}")
work=$root/build/rehearsal
mkdir -p "$work/objects"
cuda=$("$python" -c 'import torch; print(torch.version.cuda or "")')
[ -n "$cuda" ] || { echo "the torch of $python is not a CUDA build"; exit 1; }
torch=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib")')
command -v nvcc > /dev/null || { echo "there is no nvcc on PATH"; exit 1; }
toolkit=$(nvcc --dryrun -c x.cu 2>&1 | sed -n 's/^#\$ TOP=//p')
runtime=libcudart.so.${cuda%%.*}

# Functions that torch's libraries need and runtime.cpp lacks return "not supported" (801).
flags=(-O1 -march=native -std=c++17 -fPIC -w "-I$toolkit/include" -I"$work/include")
g++ "${flags[@]}" -c tests/rehearsal/runtime.cpp -o "$work/runtime.o"
nm -g --defined-only "$work/runtime.o" | awk '{print $3}' | sort -u > "$work/defined"
nm -D --undefined-only "$torch"/lib*.so |
  sed -n "s/.* \(_*cuda[A-Za-z0-9_]*\)@$runtime\$/\1/p" | sort -u > "$work/wanted"
comm -13 "$work/defined" "$work/wanted" |
  sed 's/.*/extern "C" int &() { return 801; }/' > "$work/not_supported.cpp"
echo "$runtime { global: *; };" > "$work/version"
g++ -shared "$work/runtime.o" -fPIC -x c++ "$work/not_supported.cpp" -ldl -o "$work/$runtime" \
  "-Wl,-soname,$runtime,--version-script,$work/version"
ln -sf "$runtime" "$work/libcuda.so.1"

# The kernels.  Each file defines its own threadIdx, so their symbols must be kept apart.
mkdir -p "$work/include"
ln -sfn "$root/csrc/cuda" "$work/include/cuda"
ln -sfn "$root/tests/emulator" "$work/include/emulator"
flags+=(-shared -fno-gnu-unique -Wl,-Bsymbolic -Itests/emulator -Icsrc)
builds=()
for name in tensor_cores frequency_loss gate; do
  g++ "${flags[@]}" "tests/rehearsal/kernels_$name.cpp" tests/emulator/{machine,ordering}.cpp \
    -o "$work/kernels_$name.so" &
  builds+=($!)
done
for build in "${builds[@]}"; do wait "$build"; done

# The usual extension, except that the linker finds the replacement of the runtime first.
echo "INPUT($work/$runtime)" > "$work/libcudart_static.a"
LDFLAGS="-L$work" ESPAN_BUILD=cuda TORCH_CUDA_ARCH_LIST=9.0 "$python" setup.py -q build_ext \
  --build-lib "$work/tree" --build-temp "$work/objects" > "$work/build.log" 2>&1 ||
  { cat "$work/build.log"; exit 1; }
cp -r espan_kernels/*.py espan_kernels/{packing,triton} "$work/tree/espan_kernels"
ln -sfn "$root/espan" "$work/tree/espan"
ln -sfn "$root/tests" "$work/tree/tests"
ln -sf "$root/pyproject.toml" "$work/tree"
cd "$work/tree"
export LD_PRELOAD="$work/$runtime" LD_LIBRARY_PATH="$work" PYTHONPATH="$work/tree"
export ESPAN_REHEARSAL_RUNTIME="$work/$runtime" ESPAN_REHEARSAL_GPUS=2
# Name the files, because collecting the others may require packages that are not installed.
[ $# -gt 0 ] || mapfile -t files < <(grep -rl "mark.gpu" tests --include="test_*.py")
exec "$python" -m pytest -p tests.rehearsal.host_ops -m gpu ${files[@]+"${files[@]}"} "$@"
