# One command for each thing that is done with a checkout. Needs Python >= 3.10, a C++17 compiler and a network; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
CXX ?= g++

BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
CXX_SOURCES := $(wildcard csrc/*.h csrc/*.cpp csrc/cpu/*.h csrc/cpu/*.cpp)
PACKAGE := pyproject.toml constraints.txt CMakeLists.txt $(CXX_SOURCES) $(wildcard python/prefloss/*.py python/prefloss/*.pyi)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test bench bench-check lint exact sanitize wheel clean

help:  ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 13
	@echo 'Variables: PYTHON (python3), VENV (.venv), CXX (g++). On Linux without a GPU,'
	@echo 'PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves a download of gigabytes.'

# One environment serves every target. It is made anew where its Python has gone, and the package reinstalled where its sources changed.
$(INSTALLED): $(PACKAGE)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "prefloss needs Python 3.10 or newer, this is " + sys.version.split()[0] + "; make PYTHON=... names another")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## build the package and train a reward model with it
	$(BIN)/python examples/train_reward_model.py $(ARGS)

test: $(INSTALLED)  ## run the tests
	$(BIN)/python -m pytest $(ARGS)

bench: $(INSTALLED)  ## time everything, write benchmarks/results.json and draw docs/*.svg
	$(BIN)/python benchmarks/report.py --json benchmarks/results.json --charts docs $(ARGS)

bench-check: $(INSTALLED)  ## hold the benchmarks' results against the reference, without timing
	$(BIN)/python -m pytest benchmarks --benchmark-disable $(ARGS)

lint: $(INSTALLED)  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

exact: $(INSTALLED)  ## every float32 there is, on each instruction set (minutes)
	$(BIN)/python -m pytest -s -m exhaustive $(ARGS)

# Python is not built with the sanitizers, so their runtime must be loaded before it, and libstdc++ with it, or exceptions are not seen.
SANITIZED := build/sanitized
SANITIZERS = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)

$(SANITIZED)/installed: $(INSTALLED)
	rm -rf $(SANITIZED)
	$(BIN)/python -m pip install --quiet --no-deps --target $(SANITIZED) . -C cmake.define.PREFLOSS_SANITIZE=address,undefined -C cmake.define.PREFLOSS_CUDA=OFF -C cmake.build-type=RelWithDebInfo -C build-dir=build/sanitize
	@touch $@

sanitize: $(SANITIZED)/installed  ## run the tests with the address and undefined-behaviour sanitizers (GCC, Linux)
	LD_PRELOAD='$(SANITIZERS)' ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$(SANITIZED) $(BIN)/python -m pytest $(ARGS)

wheel: $(INSTALLED)  ## build dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls -l dist

clean:  ## remove everything that is built, the virtual environment too
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .benchmarks .hypothesis
