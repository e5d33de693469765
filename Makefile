# One command for each thing that is done with a checkout. Needs Python >= 3.10, a C++17 compiler and a network; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
CXX ?= g++

, := ,
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
CXX_SOURCES := $(wildcard $(foreach suffix,h cpp cu cuh,csrc/*.$(suffix) csrc/*/*.$(suffix) csrc/*/*/*.$(suffix)) tests/cuda_on_host/* tests/arm64_sweep.cpp)
PACKAGE := pyproject.toml constraints.txt CMakeLists.txt $(CXX_SOURCES) $(wildcard python/prefloss/*.py python/prefloss/*.pyi python/prefloss/*/*.py)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-random test-composed test-clients bench bench-check coverage docs lint exact sanitize cuda-on-host cuda-sanitize planted-bugs cuda-report gpu-report wheel wheel-check thread-sanitize arm64-check clean

help:  ## show this list
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 13
	@echo 'Variables: PYTHON (python3), VENV (.venv), CXX (g++). On Linux without a GPU,'
	@echo 'PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves a download of gigabytes.'

# One environment serves every target. The package is reinstalled where its sources changed.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "prefloss needs Python 3.10 or newer, this is " + sys.version.split()[0] + "; make PYTHON=... names another")'
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(BIN)/python $(PACKAGE)
	@echo 'What is needed is fetched and compiled now, which takes some minutes and prints nothing:'
	$(BIN)/python -m pip install --quiet -c constraints.txt '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## build the package and train a reward model with it
	$(BIN)/python examples/train_reward_model.py $(ARGS)

# A process a core. A file's tests stay together, so that what the file sets up at length is set up once. tests/conftest.py has
# the longest first; pytest-xdist would start with those of most tests, and end with one that is long and has few.
PARALLEL := -n logical --dist loadfile --no-loadscope-reorder
test: $(INSTALLED)  ## run the tests
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-random: $(INSTALLED)  ## the tests whose inputs Hypothesis draws, with new seeds and many more examples
	HYPOTHESIS_PROFILE=random $(BIN)/python -m pytest $(PARALLEL) -m hypothesis $(ARGS)

COMPOSED_TESTS := $(addprefix tests/test_,$(addsuffix .py,composed paired_values paired_digits half_precision dpo bpr grouped grouped_calls relevance_and_mask indexed merged_comparisons \
  option_values stats standard_error autograd module arguments arguments_of_layouts friendly_arguments \
  not_plain every_way transforms))
test-composed: $(INSTALLED)  ## the tests of values, errors and statistics, with losses composed as on a device without kernels
	PREFLOSS_CPU=composed $(BIN)/python -m pytest $(PARALLEL) $(COMPOSED_TESTS) $(ARGS)

# Without what the last ones ask for: old versions of it, and a torchvision that does not go with this torch.
test-clients: $(INSTALLED)  ## install the packages that integrations are for (TRL, Lightning, Ray, XGBoost, JAX, ...), and run the tests against them
	$(BIN)/python -m pip install --quiet -c constraints.txt '.[clients]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps recbole libauc allRank openrlhf
	$(BIN)/python -m pytest -m clients --ignore tests/test_jax.py $(ARGS)
	$(BIN)/python -m pytest -m clients tests/test_jax.py $(ARGS) # by itself: where JAX is loaded it warns of the forks of others

bench: $(INSTALLED)  ## time everything, write benchmarks/results.json and draw docs/*.svg
	$(BIN)/python benchmarks/report.py --json benchmarks/results.json --charts docs $(ARGS)

bench-check: $(INSTALLED)  ## hold the benchmarks' results against the reference, without timing
	$(BIN)/python -m pytest benchmarks --benchmark-disable $(ARGS)

coverage: $(INSTALLED)  ## how often intervals hold the truth, by design of collection; draws docs/coverage.svg (minutes)
	$(BIN)/python benchmarks/coverage.py --svg docs/coverage.svg $(ARGS)

docs: $(INSTALLED)  ## build the documentation site, build/docs/html, and look at it in a browser where there is Chromium
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs build/docs/html $(ARGS)
	$(BIN)/python -m pytest -q -m site tests/test_pages.py

lint: $(INSTALLED)  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

exact: $(INSTALLED)  ## every float32 there is, on each instruction set (minutes)
	$(BIN)/python -m pytest -s -m exhaustive $(ARGS)

# Other builds of the package, each in a folder of its own that PYTHONPATH puts first; pip is all they need. Python is not
# built with the sanitizers, so their runtime must be loaded before it, and libstdc++ with it, or exceptions are not seen.
install_in = rm -rf $(1) && $(BIN)/python -m pip install --quiet --no-deps --target $(1) . --config-settings=build-dir=$(1).build \
  $(addprefix --config-settings=cmake.define.,$(2)) && touch $(1)/installed
runtime = $(shell $(CXX) -print-file-name=lib$(1).so) $(shell $(CXX) -print-file-name=libstdc++.so)
ASAN := LD_PRELOAD='$(call runtime,asan)' ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
# Torch is not built with the thread sanitizer, which would see what its threads share, but not how they wait for each other.
TSAN := LD_PRELOAD='$(call runtime,tsan)' TSAN_OPTIONS=halt_on_error=1:report_signal_unsafe=0:ignore_noninstrumented_modules=1
ON_HOST_TESTS := $(addprefix tests/test_,$(addsuffix .py,cuda_kernels paired_values paired_digits stats standard_error every_way autograd module transforms \
  not_plain option_values grouped grouped_calls relevance_and_mask indexed cuda_long_lists))

build/sanitized/installed: $(BIN)/python $(PACKAGE)
	$(call install_in,$(@D),PREFLOSS_SANITIZE=address$(,)undefined PREFLOSS_CUDA=OFF)

build/on_host/installed: $(BIN)/python $(PACKAGE)
	$(call install_in,$(@D),PREFLOSS_CUDA_ON_HOST=ON)

build/on_host_%/installed: $(BIN)/python $(PACKAGE)
	$(call install_in,$(@D),PREFLOSS_CUDA_ON_HOST=ON PREFLOSS_SANITIZE=$(subst address,address$(,)undefined,$*))

# A build with the sanitizers is larger than a wheel may be, and a browser does not start beside them.
NOT_SANITIZED := --deselect tests/test_package.py::test_what_is_installed_compresses_to_less_than_8_megabytes \
  --deselect tests/test_evaluate_command.py::test_a_browser_shows_the_report_at_full_and_at_phone_width

sanitize: $(INSTALLED) build/sanitized/installed  ## run the tests with the address and undefined-behaviour sanitizers (GCC, Linux)
	$(ASAN) PYTHONPATH=build/sanitized $(BIN)/python -m pytest $(PARALLEL) $(NOT_SANITIZED) $(ARGS)

SEEDS ?= 0 1 $(shell shuf -i 2-9999 -n 1)
cuda-on-host: $(INSTALLED) build/on_host/installed  ## run the CUDA kernels on the CPU, threads in order, reversed and shuffled (needs nvcc's headers)
	set -e; for seed in $(SEEDS); do echo "CUDA_ON_HOST_SEED=$$seed"; CUDA_ON_HOST_SEED=$$seed PYTHONPATH=build/on_host $(BIN)/python -m pytest -q $(PARALLEL) $(ON_HOST_TESTS) $(ARGS); done

cuda-sanitize: $(INSTALLED) build/on_host_address/installed build/on_host_thread/installed  ## the same with the address and undefined-behaviour sanitizers, and its edges with the thread sanitizer
	$(ASAN) PYTHONPATH=build/on_host_address $(BIN)/python -m pytest -q $(PARALLEL) $(ON_HOST_TESTS) $(ARGS)
	set -e; for seed in 0 1 5; do CUDA_ON_HOST_SEED=$$seed $(TSAN) PYTHONPATH=build/on_host_thread $(BIN)/python -m pytest -q tests/test_cuda_kernels.py $(ARGS); done

build/threads/installed: $(BIN)/python $(PACKAGE)
	$(call install_in,$(@D),PREFLOSS_SANITIZE=thread PREFLOSS_CUDA=OFF)

thread-sanitize: $(INSTALLED) build/threads/installed  ## the tests of threads, a call's own and Python's, slow ones too, with the thread sanitizer (GCC, Linux)
	$(TSAN) PYTHONPATH=build/threads $(BIN)/python -m pytest -s $(PARALLEL) -m 'not exhaustive' -k 'threads and not two_threads' $(ARGS)

planted-bugs: $(INSTALLED)  ## show that the tests find bugs planted in the CUDA kernels (minutes)
	$(BIN)/python -m pytest -q -m planted tests/test_planted_bugs.py $(ARGS)

cuda-report: $(INSTALLED)  ## registers, spills, bytes and instructions a pair of the kernels, and what they allow, into docs/cuda_kernels.md (needs nvcc)
	$(BIN)/python -m pip install --quiet nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	$(BIN)/python benchmarks/cuda_static.py --markdown docs/cuda_kernels.md

gpu-report:  ## on a machine with a GPU: build for it, run the tests and the GPU benchmark; OUT= names the folder
	PYTHON=$(PYTHON) benchmarks/gpu_report.sh $(or $(OUT),build/gpu_report/out)

# The flags of the CPU's kernels are those of CMakeLists.txt; -static, so that the emulator needs no arm64 system.
KERNEL_FLAGS = $(shell sed -nE 's/^ *set\(kernel_flags (-O3 .*)\)$$/\1/p' CMakeLists.txt)
ARM64_CXX ?= aarch64-linux-gnu-g++
STEP ?= 251
build/arm64/sweep: $(CXX_SOURCES) CMakeLists.txt
	@mkdir -p $(@D)
	$(ARM64_CXX) -std=c++17 $(KERNEL_FLAGS) -Wall -Wextra -Wshadow -Wconversion -Wno-unknown-pragmas -Werror -static -DPREFLOSS_CPU_PATH=baseline \
	  -DPREFLOSS_CPU_NAME='"baseline"' tests/arm64_sweep.cpp csrc/cpu/long_list/long_list.cpp \
	  $(addprefix csrc/cpu/,table.cpp paired.cpp indexed.cpp grouped.cpp evaluation.cpp) -o $@

arm64-check: build/arm64/sweep  ## every STEP-th float32 on arm64's kernels, cross-compiled and emulated (needs g++-aarch64-linux-gnu, qemu-user)
	qemu-aarch64 $< $(STEP)

wheel: $(INSTALLED)  ## build dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls -l dist

wheel-check:  ## build sdist and wheel, repair and check them, and test each in an environment of its own (Linux)
	PYTHON=$(PYTHON) tests/wheel_check.sh $(or $(OUT),build/wheel_check)

clean:  ## remove everything that is built, the virtual environment too
	rm -rf $(VENV) build dist docs/examples docs/generated docs/sg_execution_times.rst .mypy_cache .pytest_cache .ruff_cache .benchmarks .hypothesis
