# make demo       upscale a sample photograph with the bundled weights
# make test       run the tests, except those marked slow; make test-full: run all tests
# make test-oldest  test ops and engines with the oldest torch that espan supports
# make lint       check formatting, ruff, mypy
# make bench      run the benchmarks
# make sanitize   test the CPU kernels with the address and undefined-behaviour sanitizers
# make rehearse   run the GPU tests on an emulator; the torch of PYTHON must be a CUDA build
# make clean      delete .venv, the demo and what was built
# make gpu        on a machine with an NVIDIA GPU: build for it, test, benchmark, write one JSON;
#                 uses the torch of PYTHON and installs nothing
#
# All except clean, rehearse and gpu create .venv and install their dependencies there, once.
# To use another torch: make TORCH="torch==2.11.0" demo

PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

# Each test process computes in one thread.
IN_PARALLEL := OMP_NUM_THREADS=1
WORKERS := -n logical --maxprocesses=8 --dist=worksteal

.PHONY: demo test test-full test-oldest lint bench sanitize rehearse gpu clean FORCE
.DELETE_ON_ERROR:

demo: .venv/.espan
	@$(BIN)/python examples/demo.py demo

test: .venv/.tools
	$(IN_PARALLEL) $(BIN)/python -m pytest -m "not slow" $(WORKERS)

test-full: .venv/.tools
	$(BIN)/python -m pytest

# With the library that was built for $(TORCH): it uses libtorch's stable ABI only.
test-oldest: .venv/oldest/.tools
	PYTHONPATH="$(CURDIR)" $(IN_PARALLEL) .venv/oldest/bin/python -m pytest -m "not slow" $(WORKERS) \
	  $(patsubst %,tests/kernels/test_%.py,backends gate frequency_loss conv3x3 head spab tail upsample network \
	    network_cpu cpu_threads) $(patsubst %,tests/test_%.py,engines fused losses)

lint: .venv/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -type f)

bench: .venv/.tools
	$(BIN)/python -m pytest benchmarks --benchmark-only

sanitize: .venv/.tools
	PYTHON=$(BIN)/python bash tests/sanitize.sh

rehearse:
	PYTHON="$(PYTHON)" bash tests/rehearse.sh

gpu:
	$(PYTHON) benchmarks/gpu.py

clean:
	rm -rf .venv build dist demo espan.egg-info espan_kernels/_C.*.so .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# The file records what was installed, so that only another TORCH or kind of build reinstalls.
WANTED := $(TORCH) $(ESPAN_BUILD) $(TORCH_CUDA_ARCH_LIST) $(CXX) $(CUDA_HOME)

# A .venv keeps its Python: another one that is given is an error, the default is not.
.venv/.torch: FORCE
	@[ $(origin PYTHON) = file ] || [ ! -x $(BIN)/python ] || { set -e; \
	  has=$$($(BIN)/python -V); given=$$($(PYTHON) -V); [ "$$has" = "$$given" ] \
	    || { echo ".venv has $$has, but $(PYTHON) is $$given: delete .venv first"; exit 1; }; }
	@echo '$(WANTED)' | cmp -s - $@ 2>/dev/null || { set -e; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "espan needs Python 3.10 or later: make PYTHON=python3.12 ..."; exit 1; }; \
	  echo "installing $(TORCH) into .venv ..."; \
	  $(BIN)/python -m pip -V > /dev/null 2>&1 || $(PYTHON) -m venv .venv; \
	  $(BIN)/python -m pip install -q --upgrade pip "setuptools>=77" wheel ninja; \
	  $(BIN)/python -m pip install -q "$(TORCH)" numpy; \
	  echo '$(WANTED)' > $@; }

.venv/.espan: .venv/.torch setup.py pyproject.toml $(shell find csrc -type f)
	@echo "building and installing espan ..."
	@$(BIN)/python -m pip install -q --no-build-isolation -e .
	@touch $@

.venv/.tools: .venv/.espan
	@echo "installing the dependencies of tests and linting ..."
	@$(BIN)/python -m pip install -q --group test --group build --group lint
	@$(BIN)/python -m pip install -q --no-deps spandrel einops
	@touch $@

OLDEST := $(shell sed -n 's/.*"torch>=\([0-9.]*\)".*/torch==\1.0/p' pyproject.toml)

# espan's dependencies alone: pytest takes the modules of this folder.
.venv/oldest/.tools: .venv/.espan
	@echo "installing $(OLDEST) into .venv/oldest ..."
	@$(PYTHON) -m venv .venv/oldest
	@.venv/oldest/bin/python -m pip install -q --upgrade pip
	@$(BIN)/python -c 'from importlib.metadata import requires; \
	  print(*(r for r in requires("espan") if "extra ==" not in r), sep="\n")' > $(@D)/requirements.txt
	@.venv/oldest/bin/python -m pip install -q -r $(@D)/requirements.txt --group test "$(OLDEST)"
	@touch $@
