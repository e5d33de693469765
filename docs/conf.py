"""Sphinx's configuration of the documentation site; `make docs` builds it."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from sphinx.application import Sphinx

import prefloss
from prefloss.__main__ import main

HERE = Path(__file__).parent
OUTPUT = HERE.parent / "build" / "docs" / "examples"  # what the examples write while they run for the site

# ---- Pages ----

project, author, copyright = "prefloss", "the prefloss authors", "the prefloss authors, Apache License 2.0"
version = release = prefloss.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery"]
exclude_patterns = ["examples/*.py", "examples/*.ipynb", "sg_execution_times.rst", "generated"]
suppress_warnings = ["config.cache"]  # the two functions below are values of the configuration
myst_heading_anchors = 3
html_static_path, html_css_files = ["_static"], ["site.css"]
html_theme, html_title = "furo", f"prefloss {version}"
html_show_sphinx = False
html_copy_source = html_show_sourcelink = False
nitpicky = True
highlight_language = "none"  # of blocks that do not say; Python says so

# ---- Docstrings ----

# Single backticks: a link where the name is one of ours, code where it is not.
default_role = "py:obj"
nitpick_ignore_regex = [("py:obj", ".*"), ("py:class", r"(torch|numpy|np|pa|pyarrow|ray|matplotlib)\..*")]
autodoc_typehints = "none"  # docstrings say what is accepted; overloads of types would hide the arguments' names
autodoc_member_order = "bysource"
autodoc_mock_imports = ["ray", "trl", "transformers", "torchmetrics"]  # gigabytes for a few signatures
napoleon_numpy_docstring = False
napoleon_use_rtype = False  # results are described by shapes, which are no links


def as_plain_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are written for people: |z| is no substitution, and "Number of pairs: ..." of an attribute is no type."""
    lines[:] = [re.sub(r"\|(\w+)\|", r"\\|\1\\|", line) for line in lines]
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]  # an empty comment, after which napoleon takes the rest as it is


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", as_plain_text, priority=1)  # before napoleon


# ---- Examples: the same scripts that users run, with arguments that make them short ----


def picture_scraper(block: Any, variables: dict[str, Any], gallery: dict[str, Any]) -> str:
    """Show the pictures that an example has written since the last time."""
    from sphinx_gallery.scrapers import figure_rst

    shown = []
    for picture in sorted(OUTPUT.glob("**/*.png")):
        target = next(variables["image_path_iterator"])
        picture.rename(target)
        shown.append(str(target))
    text: str = figure_rst(shown, gallery["src_dir"])
    return text


def short_arguments(gallery: dict[str, Any], variables: dict[str, Any]) -> list[str]:
    """What each example is run with here; the site is built in CI, and has to be short."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    return {
        "auc.py": "--examples 3000 --seeds 3",
        "bpr.py": "--users 200 --items 150 --epochs 5",
        "leaderboard.py": f"--picture {OUTPUT / 'leaderboard.png'}",
        "narrow_collection.py": "--pairs 6000",
        "train_reward_model.py": f"--repeats 20 --output {OUTPUT}",
    }.get(Path(variables["src_file"]).name, "").split()


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "examples",
    "filename_pattern": r"(auc|bpr|leaderboard|narrow_collection|train_reward_model)\.py",
    "ignore_pattern": r"(narrow_repair|preference_data|reward_model_figure|reward_model_table|synthetic_preferences)\.py",
    "image_scrapers": (picture_scraper,),
    "reset_argv": short_arguments,
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "copyfile_regex": "",
    "remove_config_comments": True,
}

# ---- The command line's own help, as it is printed ----


def help_of(*arguments: str) -> str:
    """What `prefloss ... --help` prints, 84 columns wide."""
    printed = io.StringIO()
    with mock.patch.dict("os.environ", COLUMNS="84", NO_COLOR="1"), redirect_stdout(printed), suppress(SystemExit):
        main([*arguments, "--help"])
    return printed.getvalue()


generated = HERE / "generated"
generated.mkdir(exist_ok=True)
(generated / "evaluate_help.txt").write_text(help_of("evaluate"), encoding="utf-8")
