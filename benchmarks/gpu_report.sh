#!/usr/bin/env bash
# Builds the package with its CUDA kernels, runs the tests and the GPU benchmark, and leaves logs, figures and charts in OUT.
#
# benchmarks/gpu_report.sh OUT
#
# Needs a GPU, no network, and in the Python that is called `python3` (or $PYTHON): torch, numpy, pip, pybind11 and
# scikit-build-core; nvcc and CMake >= 3.24 beside it. Nothing is installed into that Python: the package goes to
# build/gpu_report. Ends within ten minutes. TESTS (default: tests) names what pytest runs, BENCHMARK holds arguments of
# benchmarks/gpu.py. The exit status is 2 where
# something needed is missing, and 1 where the build, a test or a result of the benchmark failed.
set -euo pipefail

readonly BUILD_SECONDS=150 TEST_SECONDS=160 BENCHMARK_SECONDS=240
readonly PYTHON=${PYTHON:-python3}

main() {
  [[ $# -eq 1 ]] || stop "usage: benchmarks/gpu_report.sh OUT"
  mkdir -p "$1"
  out=$(cd "$1" && pwd)
  rm -f "$out"/{gpu.json,gpu_speed_up.svg,gpu_calls.svg,gpu_bandwidth.svg,build.log,tests.log,tests.xml,benchmark.log}
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  site=$PWD/build/gpu_report/site
  status=0
  need
  build
  export PYTHONPATH=$site
  "$PYTHON" -c 'import sys, prefloss; print(prefloss.build_info()); sys.exit(not prefloss.__file__.startswith(sys.argv[1]))' \
    "$site" || stop "the package in $site does not import, or another (an editable installation?) comes before it"
  run_tests || status=1
  echo "== benchmark"
  bounded "$BENCHMARK_SECONDS" "$PYTHON" benchmarks/gpu.py --json "$out/gpu.json" --charts "$out" ${BENCHMARK:-} 2>&1 |
    tee "$out/benchmark.log" || status=1
  ls -l "$out"
  exit "$status"
}

stop() {
  echo "benchmarks/gpu_report.sh: $1" >&2
  exit 2
}

bounded() { timeout --signal=INT --kill-after=10 "$@"; } # interrupted, pytest still says what failed so far

has() { "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

need() {
  local module missing=()
  command -v "$PYTHON" >/dev/null || stop "there is no $PYTHON"
  for module in torch numpy pip pybind11 scikit_build_core; do
    has "$module" || missing+=("the Python module $module")
  done
  export CUDACXX=${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)} # CMake looks no further than the PATH
  [[ -x $CUDACXX ]] || missing+=(nvcc)
  command -v cmake >/dev/null || has cmake || missing+=(cmake)
  [[ ${#missing[@]} -eq 0 ]] || stop "missing here: $(printf '%s; ' "${missing[@]}")see the head of this script"
  "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || stop "torch finds no CUDA GPU here"
}

build() {
  echo "== build"
  rm -rf "$site"
  if ! bounded "$BUILD_SECONDS" "$PYTHON" -m pip install --no-index --no-build-isolation --no-deps --target "$site" \
    --config-settings={build-dir=build/gpu_report/build,cmake.define.PREFLOSS_CUDA=ON} \
    --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=native -v . >"$out/build.log" 2>&1; then
    tail -n 60 "$out/build.log"
    echo "the build failed or took more than $BUILD_SECONDS s: $out/build.log" >&2
    exit 1
  fi
}

run_tests() {
  local module file options=(-q --continue-on-collection-errors "--junitxml=$out/tests.xml")
  echo "== tests"
  if ! has pytest; then
    echo "NOT RUN: pytest is not installed"
    return 1
  fi
  for module in hypothesis mpmath matplotlib sklearn; do
    has "$module" && continue
    for file in $(grep -lE "^(from|import) $module\b" tests/*.py || true); do
      echo "left out, for want of $module: $file"
      options+=("--ignore=$file")
    done
  done
  has xdist && options+=(-n 16 -p no:benchmark) # which warns beside xdist, and a warning is an error
  if ! PREFLOSS_REQUIRE_CUDA=1 bounded "$TEST_SECONDS" "$PYTHON" -m pytest ${TESTS:-tests} "${options[@]}" \
    >"$out/tests.log" 2>&1; then
    tail -n 60 "$out/tests.log"
    echo "TESTS FAILED, or took more than $TEST_SECONDS s: $out/tests.log"
    return 1
  fi
  tail -n 15 "$out/tests.log"
}

main "$@"
