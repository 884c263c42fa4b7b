# make demo       upscale a sample photograph with the bundled weights
# make test       all tests that finish within minutes; make test-full: all tests
# make test-oldest  the tests of ops and engines with the oldest torch that espan supports
# make lint       formatting, ruff, mypy
# make bench      the benchmarks
# make sanitize   the CPU kernels' tests under the address and undefined-behaviour sanitizers
# make rehearse   the GPU tests without a GPU, under emulation; PYTHON's torch must be a CUDA build
# make gpu        for a machine with an NVIDIA GPU: builds for it, tests, times, writes one JSON;
#                 with the torch of PYTHON, and without installing anything
#
# Each makes .venv and installs what it needs, once.  Another torch: make TORCH="torch==2.11.0" demo

PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
# Official weights and test sets, which the project may not ship; tests that need them skip.
ifneq ($(wildcard ../shared/testsets),)
export ESPAN_TESTDATA ?= $(abspath ../shared)
endif

.PHONY: demo test test-full test-oldest lint bench sanitize rehearse gpu FORCE
.DELETE_ON_ERROR:

demo: .venv/.espan
	@$(BIN)/python examples/demo.py demo

test: .venv/.tools
	$(BIN)/python -m pytest -m "not slow"

test-full: .venv/.tools
	$(BIN)/python -m pytest

# With the library that was built for $(TORCH): it uses libtorch's stable ABI only.
test-oldest: .venv/oldest/.tools
	.venv/oldest/bin/python -m pytest -m "not slow" \
	  $(patsubst %,tests/kernels/test_%.py,backends gate frequency_loss head spab tail network \
	    network_cpu) $(patsubst %,tests/test_%.py,engines fused losses)

lint: .venv/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*')

bench: .venv/.tools
	$(BIN)/python -m pytest benchmarks --benchmark-only

sanitize: .venv/.tools
	PYTHON=$(BIN)/python bash tests/sanitize.sh

rehearse:
	PYTHON=$(PYTHON) bash tests/rehearse.sh

gpu:
	$(PYTHON) benchmarks/gpu.py

# What was installed last stands in the file, so that another TORCH or another kind of build
# installs again and the same one does not.
WANTED := $(TORCH) $(ESPAN_BUILD) $(TORCH_CUDA_ARCH_LIST)

.venv/.torch: FORCE
	@echo '$(WANTED)' | cmp -s - $@ 2>/dev/null || { set -e; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "espan needs Python 3.10 or later: make PYTHON=python3.12 ..."; exit 1; }; \
	  echo "installing $(TORCH) into .venv ..."; \
	  $(PYTHON) -m venv .venv; \
	  $(BIN)/python -m pip install -q --upgrade pip "setuptools>=77" wheel ninja; \
	  $(BIN)/python -m pip install -q "$(TORCH)" numpy; \
	  echo '$(WANTED)' > $@; }

.venv/.espan: .venv/.torch setup.py pyproject.toml $(shell find csrc -type f)
	@echo "building and installing espan ..."
	@$(BIN)/python -m pip install -q --no-build-isolation -e .
	@touch $@

.venv/.tools: .venv/.espan
	@echo "installing what tests and linting need ..."
	@$(BIN)/python -m pip install -q --group test --group build --group lint
	@touch $@

OLDEST := $(shell sed -n 's/.*"torch>=\([0-9.]*\)".*/torch==\1.0/p' pyproject.toml)

# The package is installed for its dependencies alone: pytest takes the modules of this folder.
.venv/oldest/.tools: .venv/.espan
	@echo "installing $(OLDEST) into .venv/oldest ..."
	@$(PYTHON) -m venv .venv/oldest
	@.venv/oldest/bin/python -m pip install -q --upgrade pip
	@.venv/oldest/bin/python -m pip install -q --group build
	@ESPAN_BUILD=none .venv/oldest/bin/python -m pip install -q --no-build-isolation \
	  --group test "$(OLDEST)" .
	@touch $@
