"""The pages of the documentation: every block of Python in them and in the README runs, and shows what it says.

A page's blocks share their names, from top to bottom. Blocks with ``>>>`` are doctests.
"""

from __future__ import annotations

import functools
import http.server
import json
import re
import runpy
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

import prefloss

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])
SITE = ROOT / "build" / "docs" / "html"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytest.importorskip("pyarrow", reason="the pages use prefloss.evaluate: `pip install 'prefloss[evaluate]'`")
sybil = pytest.importorskip("sybil", reason="runs the pages' code: `pip install '.[test]'`")
myst = pytest.importorskip("sybil.parsers.myst")


def examples(page):
    """The page's blocks of Python, those that are not shown too."""
    parser = myst.PythonCodeBlockParser()
    return list(sybil.Sybil(parsers=[parser]).parse(page).examples())


def test_the_page_of_the_api_has_every_public_name():
    lines = (ROOT / "docs" / "api.md").read_text().splitlines()
    assert {*dir(prefloss)} <= {line.split("::")[-1].strip().removeprefix("prefloss.") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_and_shows_what_the_page_says(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for example in examples(page):
        example.evaluate()


def test_no_block_of_python_escapes():
    """Fences that the parser does not see would never run."""
    for page in PAGES:
        fences = len(re.findall(r"^```py", page.read_text(encoding="utf-8"), re.MULTILINE))
        shown = {example.line for example in examples(page)}
        hidden = page.read_text(encoding="utf-8").count("invisible-code-block")
        assert len(shown) >= fences + hidden, page


def test_the_readme_s_links_lead_to_files_and_can_be_made_absolute():
    """On PyPI a relative link leads nowhere, and a relative picture is not shown."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    places = re.findall(r"\]\(([^)]*)\)", text)
    assert places
    for place in places:
        assert "://" in place or (ROOT / place.partition("#")[0]).exists(), place
    absolute = runpy.run_path(str(ROOT / ".ci" / "absolute_links"))["absolute"]
    assert all(place.startswith("https://") for place in re.findall(r"\]\(([^)]*)\)", absolute(text, "we/it", "v1")))
    for given, expected in (
        ("a [b](docs/c.md#d)", "a [b](https://github.com/we/it/blob/v1/docs/c.md#d)"),
        ("![b, c](docs/d.svg)", "![b, c](https://raw.githubusercontent.com/we/it/v1/docs/d.svg)"),
        ("[b](#c) [d](https://e.org/f)", "[b](#c) [d](https://e.org/f)"),
    ):
        assert absolute(given, "we/it", "v1") == expected


# ---- The site, as `make docs` has built it ----


@pytest.fixture
def served(tmp_path):
    """(address, folder of the browser's own) of a server of the built pages, each in a frame as wide as is asked for."""
    pages = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
    assert {"index.html", "good_estimate.html", "examples/leaderboard.html"} <= set(pages)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if not self.path.startswith("/frames-"):
                return super().do_GET()
            frames = "".join(
                f'<iframe src="/{page}" style="width:{self.path[8:]}px;height:800px"></iframe>' for page in pages
            )
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f"<!doctype html>{frames}<script>{PROBE}</script>".encode())
            return None

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


PROBE = """
window.onload = () => { document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
  const page = frame.contentDocument, root = page.documentElement;
  return {page: frame.src, width: root.clientWidth, wide: root.scrollWidth,
          broken: [...page.images].filter(image => !image.naturalWidth).map(image => image.src),
          cut: [...page.querySelectorAll("article img")].filter(image => image.getBoundingClientRect().right > root.clientWidth + 1)
               .map(image => image.src)};
})); };
"""


@pytest.mark.site
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_a_phone_or_a_desktop_and_no_picture_is_missing_or_cut(width, served, tmp_path):
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-sync"
    command = [CHROMIUM, *flags.split(), "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    found = subprocess.run([*command, f"{served}/frames-{width}"], capture_output=True, text=True, timeout=120)
    pages = json.loads(re.search(r"<title>(.*?)</title>", found.stdout)[1].replace("&quot;", '"'))
    assert len(pages) > 10
    for page in pages:
        assert page["width"] <= width, page
        assert page["wide"] <= page["width"], page
        assert page["broken"] == page["cut"] == [], page
