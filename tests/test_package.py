"""The package as it is installed: stub, version, import errors, instruction sets, what an import brings and what a call leaves."""

from __future__ import annotations

import ast
import doctest
import importlib.metadata
import inspect
import io
import json
import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ON_HOST
from fresh_processes import run

import prefloss
from prefloss import _core, reference

PACKAGE = Path(prefloss.__file__).parent
INSTRUCTION_SETS = ["baseline", "avx2", "avx512"]
COMPILED_FOR_GPUS = _core.cuda is not None and _core.cuda[1] != ON_HOST


def printed(*arguments, **environment):
    """What a process that must not fail prints."""
    result = run(*arguments, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


# What imports of the package say that must fail, from folders and with instruction sets asked for; torch is imported once for all.
FAILING = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[2])  # an editable install gets no say
sys.meta_path[:] = [finder for finder in sys.meta_path if finder.__module__.startswith(("_frozen_importlib", "zipimport"))]
import torch, traceback
said = {}
for name, (folder, os.environ["PREFLOSS_CPU"]) in json.loads(sys.argv[1]).items():
    sys.path.insert(0, folder)
    try:
        import prefloss
    except ImportError:
        said[name] = traceback.format_exc()
    for module in [module for module in sys.modules if module.partition(".")[0] == "prefloss"]:
        del sys.modules[module]
    del sys.path[0]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def import_errors(tmp_path_factory):
    """{what is wrong with a copy of the package: the last line of its failed import, which must be the only error}."""
    compiled, folders = Path(_core.__file__).name, {}
    for kind in ("missing", "broken", "another version", "whole"):
        folders[kind] = tmp_path_factory.mktemp("package")
        files = folders[kind] / "prefloss"
        shutil.copytree(PACKAGE, files, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyd"))
        if kind == "broken":
            (files / compiled).write_bytes(b"not a library")
        elif kind != "missing":
            shutil.copy(_core.__file__, files)
    init = folders["another version"] / "prefloss" / "__init__.py"
    init.write_text(re.sub(r'__version__ = ".*"', '__version__ = "77.0"', init.read_text()))
    cases = {kind: (str(folder), "") for kind, folder in folders.items()}
    # Once a copy has been loaded, the instruction set is settled for all.
    cases = {"AVX2": (cases.pop("whole")[0], "AVX2"), **cases}
    said = json.loads(printed(FAILING, json.dumps(cases), json.dumps(sys.path)))
    assert not any("During handling" in text for text in said.values())
    return {name: text.splitlines()[-1] for name, text in said.items()}


def arguments_and_result(function):
    return [argument.arg for argument in function.args.args], ast.unparse(function.returns)


def stubbed():
    """What _core.pyi declares: {name: type}, {function: ([arguments], result)}, {class: {attribute}}."""
    body = ast.parse((PACKAGE / "_core.pyi").read_text()).body
    constants = {node.target.id: ast.unparse(node.annotation) for node in body if isinstance(node, ast.AnnAssign)}
    functions = {node.name: arguments_and_result(node) for node in body if isinstance(node, ast.FunctionDef)}
    classes = {node.name: {line.target.id for line in node.body} for node in body if isinstance(node, ast.ClassDef)}
    return constants, functions, classes


def test_the_stub_declares_what_the_compiled_module_has():
    types = {
        str: "str",
        bool: "bool",
        int: "int",
        tuple: "tuple[str, str] | None",
        type(None): "tuple[str, str] | None",
    }
    constants, functions, classes = {}, {}, {}
    for name, value in vars(_core).items():
        if inspect.isclass(value):
            classes[name] = {member for member, its in vars(value).items() if inspect.isgetsetdescriptor(its)}
        elif callable(value):
            signature = re.sub(r": [\w.]*_core\.", ": ", value.__doc__.splitlines()[0])
            signature = re.sub(r"-> ([\w.]*_core\.)?", "-> ", signature)
            arguments, result = arguments_and_result(ast.parse(f"def {signature}: ...").body[0])
            functions[name] = arguments, result
        elif not name.startswith("__") or name == "__version__":
            constants[name] = f"Final[{types[type(value)]}]"
    assert stubbed() == (constants, functions, classes)


def test_there_is_one_version():
    assert prefloss.__version__ == importlib.metadata.version("prefloss") == _core.__version__


def test_graphs_compiled_with_another_version_are_not_taken_for_ours():
    """torch keeps them on disk, by the full names of their operators."""
    from prefloss.operators.paired import paired_forward

    version = "v" + re.sub(r"\W", "_", prefloss.__version__)
    assert paired_forward.operator.name() == f"prefloss::paired_forward.{version}"
    assert paired_forward.plain.name() == f"prefloss::plain_paired_forward.{version}"


def test_the_type_information_is_installed():
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "_core.pyi").is_file()


def test_a_missing_compiled_module_is_one_clear_error(import_errors):
    error = import_errors["missing"]
    assert error.startswith("ImportError: prefloss has no compiled module (prefloss._core)")
    assert "pip install ." in error


def test_a_broken_compiled_module_is_not_called_missing(import_errors):
    error = import_errors["broken"]
    assert error.startswith("ImportError: ")
    assert "no compiled module" not in error


def test_a_compiled_module_of_another_version_is_one_clear_error(import_errors):
    error = import_errors["another version"]
    assert error.startswith(
        f"ImportError: prefloss 77.0 (Python files) found a compiled module of version {_core.__version__}"
    )
    assert "pip install --force-reinstall" in error


def test_build_info_says_what_a_bug_report_needs():
    info = prefloss.build_info()
    assert info.keys() == {"version", "compiler", "cpu", "cuda", "gpu", "torch", "torch_cuda"}
    assert all(re.search(rf"\b{key}\b", prefloss.build_info.__doc__) for key in info)
    assert json.loads(json.dumps(info)) == info
    assert (info["version"], info["torch"]) == (prefloss.__version__, torch.__version__)
    assert re.match(r"(gcc|clang|msvc) \d+", info["compiler"])
    assert info["cpu"] in INSTRUCTION_SETS
    cuda = "toolkit {}, architectures {}".format(*_core.cuda) if _core.cuda else "none: built without nvcc"
    assert info["cuda"].startswith(cuda)
    assert info["gpu"].startswith("none: ") != (torch.cuda.is_available() and _core.cuda is not None)
    assert info["torch_cuda"] == torch.version.cuda


# This machine's GPUs, where it has any, are hidden.
FRESH = """
import json, sys, torch
before = set(sys.modules)
import prefloss
said = {"modules": sorted(set(sys.modules) - before), "info": prefloss.build_info()}
said["loss"] = prefloss.bradley_terry_loss(torch.zeros(3), torch.zeros(3)).item()
for name in [name for name in sys.modules if name.partition(".")[0] == "prefloss"]:
    del sys.modules[name]
try:
    import prefloss
except ImportError as error:
    said["second error"] = str(error)
else:
    said["second loss"] = prefloss.bradley_terry_loss(torch.zeros(4), torch.zeros(4)).item()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def fresh():
    """What a process says that has torch and imports prefloss, twice; no instruction set is asked for."""
    return json.loads(printed(FRESH, CUDA_VISIBLE_DEVICES="", PREFLOSS_CPU=""))


def test_without_a_gpu_the_package_works_and_says_why_there_is_none(fresh):
    assert fresh["loss"] == pytest.approx(math.log(2), rel=1e-7)
    why = r"cudaError\w+ \(.+\)" if COMPILED_FOR_GPUS else "built without CUDA|torch.cuda.is_available.. is False.*"
    assert re.fullmatch(f"none: ({why})", fresh["info"]["gpu"]), fresh["info"]["gpu"]


def test_what_is_installed_compresses_to_less_than_8_megabytes(tmp_path):
    """As a wheel does it, of which `make wheel-check` asks this with the CUDA kernels of all seven architectures."""
    size = Path(shutil.make_archive(str(tmp_path / "package"), "zip", PACKAGE)).stat().st_size
    assert size < 8e6


@pytest.fixture(scope="module")
def accepted(import_errors):
    """The instruction sets of this processor, from the error for one that no processor has."""
    error = import_errors["AVX2"]
    found = re.fullmatch(
        r"ImportError: environment variable PREFLOSS_CPU is 'AVX2'; this processor accepts (.*), or composed, .*", error
    )
    assert found, error
    return found[1].split(", ")


def test_an_instruction_set_that_the_processor_does_not_have_is_refused(accepted):
    """Those that it has are in use where the variable names them: test_instruction_sets.py runs on each."""
    assert accepted[0] == "baseline"
    assert set(accepted) <= set(INSTRUCTION_SETS)
    for name in set(INSTRUCTION_SETS) - set(accepted):
        result = run("import prefloss", PREFLOSS_CPU=name)
        assert result.returncode == 1
        assert f"PREFLOSS_CPU is '{name}'; this processor accepts {', '.join(accepted)}" in result.stderr


def test_the_best_instruction_set_is_the_default(accepted, fresh):
    assert fresh["info"]["cpu"] == accepted[-1]


def test_an_import_after_torch_brings_no_other_package(fresh):
    """So that it takes some 50 ms: what costs is what torch and others import, its compiler most of all."""
    packages = {name.partition(".")[0] for name in fresh["modules"]}
    assert packages - sys.stdlib_module_names <= {"prefloss", "numpy", "torch", "array_api_compat"}
    assert "torch._dynamo" not in fresh["modules"]


def test_it_may_be_imported_while_something_is_traced_with_fake_tensors():
    code = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    import prefloss
rewards = torch.zeros(4, requires_grad=True)
for options in ({}, {"beta": 0.5}, {"denominator": torch.tensor(4)}):
    loss = prefloss.bradley_terry_loss(rewards, torch.zeros(4), **options)
    loss.backward()
prefloss.bradley_terry_loss_grouped(rewards[None], torch.arange(4)[None]).backward()
prefloss.bradley_terry_loss_indexed(rewards, torch.tensor([0]), torch.tensor([1])).backward()
print(type(loss).__name__, loss.item())
"""
    name, loss = printed(code).split()
    assert name == "Tensor"
    assert float(loss) == pytest.approx(math.log(2), rel=1e-7)


def test_a_second_import_works_or_is_one_clear_error(fresh):
    if "second error" in fresh:
        assert fresh["second error"].startswith("prefloss")
    else:
        assert fresh["second loss"] == pytest.approx(math.log(2), rel=1e-7)


def test_the_public_names_are_all_that_a_user_sees():
    """`from prefloss import *` takes those alone that need nothing but torch."""
    assert set(dir(prefloss)) - set(prefloss.__all__) == {"Estimate", "Evaluation", "evaluate"}
    assert set(prefloss.__all__) <= set(dir(prefloss))


def documented():
    for module in (prefloss, reference):
        for name in dir(prefloss) if module is prefloss else module.__all__:
            value = getattr(module, name)
            yield f"{module.__name__}.{name}", value
            if inspect.isclass(value):
                for member, function in vars(value).items():
                    if not member.startswith("_") and (
                        callable(function) or isinstance(function, property | classmethod)
                    ):
                        yield f"{module.__name__}.{name}.{member}", function


@pytest.mark.parametrize("value", [pytest.param(value, id=name) for name, value in documented()])
def test_what_is_public_is_documented(value):
    assert inspect.getdoc(value)


@pytest.mark.parametrize("name", sorted(set(dir(prefloss)) - {"reference"}))
def test_the_documentation_has_an_example_that_gives_what_it_says(name):
    (documentation,) = doctest.DocTestFinder(recurse=False).find(getattr(prefloss, name), name, globs={})
    assert documentation.examples
    output = io.StringIO()
    assert doctest.DocTestRunner().run(documentation, out=output.write).failed == 0, output.getvalue()


def state():
    """What the package's modules hold: the objects, the entries of containers, and how often tensors were written."""
    found = {}
    for module in [name for name in sys.modules if name.partition(".")[0] == "prefloss"]:
        for name, value in vars(sys.modules[module]).items():
            entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            found[module, name] = [
                (id(entry), entry._version if isinstance(entry, torch.Tensor) else None) for entry in list(entries)
            ]
    return found


def test_a_call_leaves_nothing_behind():
    chosen, rejected = torch.randn(2, 50_000, requires_grad=True)
    calls = [
        {},
        {"beta": 0.5, "weight": torch.rand(50_000), "return_stats": True},
        {"reduction": "none", "margin": 1.0},
        {"denominator": torch.tensor(7)},
        {"beta": "wrong"},
    ]

    def results():
        found = []
        for options in calls:
            try:
                loss = prefloss.bradley_terry_loss(chosen, rejected, **options)
            except TypeError:
                continue
            loss = loss[0] if isinstance(loss, tuple) else loss
            found += [loss.detach(), *torch.autograd.grad(loss.sum(), (chosen, rejected))]
        return found

    torch_state = (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
    before, first = state(), results()
    assert state() == before
    assert torch_state == (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
    for one, other in zip(first, results(), strict=True):
        assert torch.equal(one, other)
