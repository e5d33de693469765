"""`prefloss evaluate`: files in, a table, JSON and a report out; bad input in one line; the report in a browser."""

from __future__ import annotations

import gzip
import html.parser
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from made_pairs import made_pairs

import prefloss
from prefloss.__main__ import main

pa = pytest.importorskip("pyarrow", reason="prefloss.evaluate needs `pip install 'prefloss[evaluate]'`")
csv, parquet = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.parquet")
pytest.importorskip("tqdm")

REWARDS = ["--chosen", "a", "--rejected", "b"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def table(rows=600):
    random = np.random.default_rng(0)
    made = made_pairs(rows, 80)
    columns = {"a": made["chosen"], "b": made["rejected"], "who": [f"w{each}" for each in made["cluster"]]}
    columns |= {"kind": np.array(["<b>code</b>", "news"])[random.integers(0, 2, rows)], "w": random.gamma(2, size=rows)}
    return pa.table({**columns, "ba": 0.5 * made["chosen"], "n": np.arange(rows) % 7, "long text": ["x" * 40] * rows})


def write(path, rows):
    suffix = path.name.partition(".")[2]
    if suffix == "parquet":
        parquet.write_table(rows, path, row_group_size=100)
    elif suffix in ("arrow", "feather"):
        make = pa.ipc.new_file if suffix == "arrow" else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as file, make(file, rows.schema) as writer:
            writer.write_table(rows, max_chunksize=150)
    elif suffix.startswith("csv"):
        csv.write_csv(rows, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
    if suffix.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def refused(capsys, *arguments):
    """The one line on stderr."""
    assert main(["evaluate", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather", "csv", "csv.gz", "jsonl", "jsonl.gz"])
def test_any_file_gives_the_numbers_of_its_columns(suffix, tmp_path, capsys):
    rows, out = table(), tmp_path / "numbers.json"
    files = [write(tmp_path / f"{place}.{suffix}", rows.slice(start, 300)) for place, start in enumerate((0, 300))]
    options = [
        "--cluster",
        "who",
        "--group",
        "kind",
        "--weight",
        "w",
        "--baseline-chosen",
        "ba",
        "--baseline-rejected",
        "b",
    ]
    assert main(["evaluate", *map(str, files), *REWARDS, *options, "--json", str(out)]) == 0
    expected = prefloss.evaluate(
        rows["a"],
        rows["b"],
        cluster=rows["who"],
        group=rows["kind"],
        weight=rows["w"],
        baseline=(rows["ba"], rows["b"]),
    )
    found = json.loads(out.read_text())
    for name in ("loss", "accuracy", "difference"):
        wanted = getattr(expected, {"difference": "difference"}.get(name, name)).as_dict()
        assert found[name]["value"] == pytest.approx(wanted["value"], rel=1e-12)
        assert found[name]["interval"] == pytest.approx(wanted["interval"], rel=1e-10)
    assert found["groups"].keys() == expected.groups.keys()
    assert f"{expected.loss.value:.4f}" in capsys.readouterr().out


def test_pieces_are_merged_as_they_come(tmp_path, monkeypatch):
    """Small pieces, so that rows, bytes and merges meet each other's edges."""
    from prefloss.evaluation import command, files

    monkeypatch.setattr(files, "PIECE", 1000)
    monkeypatch.setattr(files, "BATCH", 37)
    whole = prefloss.evaluate(table()["a"], table()["b"], cluster=table()["n"])
    for suffix in ("csv", "jsonl", "parquet"):
        path = write(tmp_path / f"pairs.{suffix}", table())
        columns = {"chosen": "a", "rejected": "b", "cluster": "n"}
        assert len(list(files.pieces(path, columns))) > 5
        found = command._evaluation([path], columns, 1.0)
        assert found.clusters == 7
        assert found.loss.standard_error == pytest.approx(whole.loss.standard_error, rel=1e-10)


def test_quoted_text_may_have_line_breaks_and_look_like_rows(tmp_path, monkeypatch):
    """Pieces end within such texts, and the rest of a text is a row to who does not know that it is one."""
    from prefloss.evaluation import command, files

    monkeypatch.setattr(files, "PIECE", 500)
    path = tmp_path / "pairs.csv"
    path.write_text("a,b,text\n" + '1.0,0,"x\n2.5,0,y"\n' * 300)
    found = command._evaluation([path], {"chosen": "a", "rejected": "b"}, 1.0)
    assert found.pairs == 300
    assert found.margin.value == 1.0
    monkeypatch.undo()
    path.write_text('a,b,text\n1.0,0,"' + "x" * 2**17 + '"\n')
    assert command._evaluation([path], {"chosen": "a", "rejected": "b"}, 1.0).pairs == 1


def test_a_pair_of_weight_0_may_have_any_numbers_as_in_evaluate(tmp_path, capsys):
    path, out = tmp_path / "pairs.csv", tmp_path / "out.json"
    for number in ("nan", "inf", "1e200"):
        path.write_text(f"a,b,w,m\n{number},0,0,{number}\n2,0,1,0.5\n1,0,2,0.5\n")
        for more in ([], ["--target", "m"], ["--target", "m", "--judge", "m"]):
            assert main(["evaluate", str(path), *REWARDS, "--weight", "w", *more, "--json", str(out)]) == 0
            assert json.loads(out.read_text())["pairs"] == 2
    path.write_text("a,b,w\n,0,0\n2,0,1\n")  # a null is an error there too
    assert "row 1, column 'a': must be a finite number, is nothing" in refused(capsys, path, *REWARDS, "--weight", "w")


def test_only_the_empty_field_is_no_label(tmp_path, capsys):
    path = tmp_path / "pairs.csv"
    path.write_text("a,b,country,t\n1,0,NA,1\n2,0,DE,NA\n")
    options = [*REWARDS, "--group", "country", "--target", "t", "--judge", "b", "--json", str(tmp_path / "out.json")]
    assert main(["evaluate", str(path), *options]) == 0  # of a number, NA is nothing
    assert list(json.loads((tmp_path / "out.json").read_text())["groups"]) == ["DE", "NA"]
    path.write_text("a,b,country\n1,0,NA\n2,0,\n")
    assert "row 2, column 'country': must be a label, is nothing" in refused(
        capsys, path, *REWARDS, "--group", "country"
    )


def with_cell(path, row, column, value):
    rows = table().to_pylist()
    rows[row - 1][column] = value
    if path.suffix == ".csv":
        lines = [
            ",".join(rows[0]),
            *(",".join("" if cell is None else str(cell) for cell in each.values()) for each in rows),
        ]
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)
    return path


@pytest.mark.parametrize(
    ("suffix", "value", "says"),
    [
        ("csv", "much", "'much' is not a number"),
        ("csv", "nan", "must be a finite number, is nan"),
        ("csv", None, "must be a finite number, is nothing"),
        ("jsonl", "much", "'much' is not a number"),
        ("jsonl", None, "must be a finite number, is nothing"),
        ("parquet", float("inf"), "must be a finite number, is inf"),
        ("parquet", -1e150, "must be a number from -1e+80 to 1e+80, is -1e+150"),
        ("parquet", None, "must be a finite number, is nothing"),
    ],
)
def test_a_bad_cell_is_named_with_file_row_and_column(suffix, value, says, tmp_path, capsys, monkeypatch):
    from prefloss.evaluation import files

    path = with_cell(tmp_path / f"pairs.{suffix}", 123, "a", value)
    monkeypatch.setattr(files, "BATCH", 50)
    assert refused(capsys, path, *REWARDS) == f"prefloss: {path}: row 123, column 'a': {says}"


def test_weights_targets_and_labels_are_checked_too(tmp_path, capsys):
    path = with_cell(tmp_path / "pairs.parquet", 9, "w", -1.0)
    assert "row 9, column 'w': must be a finite number >= 0, is -1.0" in refused(
        capsys, path, *REWARDS, "--weight", "w"
    )
    assert "must be a number from 0 to 1" in refused(capsys, path, *REWARDS, "--target", "n")
    path = with_cell(tmp_path / "pairs.jsonl", 300, "who", None)
    assert "row 300, column 'who': must be a label, is nothing" in refused(capsys, path, *REWARDS, "--cluster", "who")
    path = with_cell(tmp_path / "pairs.jsonl", 300, "who", 5)
    assert "row 300, column 'who': 5 is not a string" in refused(capsys, path, *REWARDS, "--cluster", "who")


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv", "jsonl"])
def test_a_column_that_is_there_twice_is_refused_where_it_is_named(suffix, tmp_path, capsys):
    path = tmp_path / f"pairs.{suffix}"
    rows = pa.table([pa.array([1.0, 2.0])] * 4, ["a", "b", "text", "text"])
    if suffix == "jsonl":
        path.write_text('{"a": 1, "b": 0, "text": 1, "text": 2}\n')
        assert "text) was specified twice in row 0" in refused(capsys, path, "--chosen", "a", "--rejected", "text")
    else:
        write(path, rows)
        assert f"{path}: 2 columns are named 'text' (--rejected)" in refused(
            capsys, path, "--chosen", "a", "--rejected", "text"
        )
        assert main(["evaluate", str(path), *REWARDS]) == 0


def test_rows_that_have_too_few_fields_or_no_text_are_counted_without_the_header(tmp_path, capsys):
    path = tmp_path / "pairs.csv"
    path.write_text("a,b\n1,0\n2\n")
    assert "CSV parse error: row 2: Expected 2 columns, got 1" in refused(capsys, path, *REWARDS)
    path.write_bytes(b"a,b,g\n1,0,x\n2,0,caf\xe9\n")
    assert "row 2: CSV conversion error to string: invalid UTF8" in refused(capsys, path, *REWARDS, "--group", "g")


def test_labels_are_of_one_kind_in_all_files(tmp_path, capsys):
    first, second = write(tmp_path / "1.parquet", table()), write(tmp_path / "2.csv", table())
    assert refused(capsys, first, second, *REWARDS, "--group", "n") == (
        f"prefloss: {second}: column 'n': holds strings, but in {first} it holds integers; labels must be of one kind (in a CSV "
        "file all are strings)"
    )
    coded = table().set_column(2, "who", table()["who"].dictionary_encode())
    assert main(["evaluate", str(write(first, coded)), str(second), *REWARDS, "--cluster", "who"]) == 0


def test_no_file_is_overwritten_that_is_read_or_has_just_been_written(tmp_path, capsys):
    pairs, shares = write(tmp_path / "pairs.csv", table()), tmp_path / "shares.json"
    shares.write_text('{"<b>code</b>": 0.5, "news": 0.5}')
    link, out = tmp_path / "link.html", tmp_path / "out"
    link.symlink_to(pairs)
    before = pairs.read_bytes(), shares.read_bytes()
    options = [pairs, *REWARDS, "--group", "kind", "--population", shares]
    for outputs, says in (
        (["--json", pairs], f"{pairs}: --json would overwrite this file, which is read"),
        (["--json", shares], f"{shares}: --json would overwrite this file, which is read"),
        (["--report", link], f"{link}: --report would overwrite this file, which is read"),
        (
            ["--json", out, "--report", tmp_path / "." / "out"],
            f"{out}: --report would overwrite this file, which --json",
        ),
    ):
        assert says in refused(capsys, *options, *outputs)
    assert (pairs.read_bytes(), shares.read_bytes()) == before
    assert not out.exists()


def test_files_that_cannot_be_read_are_named(tmp_path, capsys):
    good = write(tmp_path / "pairs.parquet", table())
    damaged, broken = tmp_path / "damaged.parquet", tmp_path / "broken.jsonl"
    deep = tmp_path / "deep.jsonl"
    deep.write_text('{"a": 1, "b": 0, "c": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    damaged.write_bytes(good.read_bytes()[:-9])
    broken.write_text('{"a": 1, "b": 0}\n{"a": 1, "b"\n')
    cut = write(tmp_path / "cut.csv.gz", table())
    cut.write_bytes(cut.read_bytes()[:400])
    for path, says in (
        (tmp_path / "none.csv", "none.csv: cannot be read: "),
        (tmp_path / "pairs.txt", "the name must end in one of .parquet, .csv"),
        (damaged, "damaged.parquet: cannot be read: "),
        (broken, "broken.jsonl: row 2: not valid JSON: "),
        (deep, "deep.jsonl: row 1: not valid JSON: maximum recursion depth"),
        (cut, "cut.csv.gz: cannot be read: "),
    ):
        assert says in refused(capsys, path, *REWARDS)
    assert "no column 'c' (--chosen); there are: a, b, who" in refused(capsys, good, "--chosen", "c", "--rejected", "b")
    lines = tmp_path / "lines.csv"
    lines.write_text('"two\nlines",b\n1,0\n')
    assert "no column 'a' (--chosen); there are: two lines, b" in refused(capsys, lines, *REWARDS)
    assert "column 'kind': must hold numbers" in refused(capsys, good, "--chosen", "kind", "--rejected", "b")
    assert "given together" in refused(capsys, good, *REWARDS, "--baseline-chosen", "ba")
    assert "cannot be written there" in refused(capsys, good, *REWARDS, "--json", tmp_path / "no" / "out.json")
    assert "--level must be between 0 and 1" in refused(capsys, good, *REWARDS, "--level", "95")
    assert "--beta must be a finite number, got inf" in refused(capsys, good, *REWARDS, "--beta", "inf")


def test_a_population_reweights_and_names_who_is_missing(tmp_path, capsys):
    path, shares = write(tmp_path / "pairs.parquet", table()), tmp_path / "shares.json"
    shares.write_text('{"<b>code</b>": 0.2, "news": 0.6, "poems": 0.2}')
    arguments = [
        str(path),
        *REWARDS,
        "--group",
        "kind",
        "--population",
        str(shares),
        "--json",
        str(tmp_path / "out.json"),
    ]
    assert main(["evaluate", *arguments]) == 0
    assert "There are no pairs of poems: 20.0% of the population." in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    whole = prefloss.evaluate(table()["a"], table()["b"], group=table()["kind"]).reweighted(
        {"<b>code</b>": 0.25, "news": 0.75}
    )
    assert found["loss"]["value"] == pytest.approx(whole.loss.value, rel=1e-12)
    shares.write_text('{"news": 0.6}')
    assert "add up to 1" in refused(capsys, *arguments)
    for text, says in (
        ('{"news": NaN}', "with shares >= 0 that add up to 1"),
        ('{"news": true}', "with shares >= 0 that add up to 1"),
        ('{"news": 1e400}', "with shares >= 0 that add up to 1"),
        ('{"news": 1' + "0" * 400 + "}", "with shares >= 0 that add up to 1"),
        ("[" * 100_000, "no shares can be read from it: maximum recursion depth"),
        ('{"news": 0.5, "poems": 0.5, "news": 0.5}', "no shares can be read from it: 'news' is there 2 times"),
        ('{"news": 0.5', "no shares can be read from it: Expecting ',' delimiter"),
    ):
        shares.write_text(text)
        assert f"prefloss: {shares}: " in (line := refused(capsys, *arguments))
        assert says in line
    shares.write_text('{"poems": 1}')
    assert "none of its groups is in the data" in refused(capsys, *arguments)
    assert "--population needs --group" in refused(capsys, path, *REWARDS, "--population", shares)


def test_json_has_null_where_nothing_is_known(tmp_path):
    path = write(tmp_path / "pairs.csv", table().slice(0, 1))
    assert main(["evaluate", str(path), *REWARDS, "--json", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["loss"]["standard_error"] is None


def test_a_closed_pipe_is_no_error(monkeypatch, tmp_path, capsys):
    path = write(tmp_path / "pairs.parquet", table())
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        assert main(["evaluate", str(path), *REWARDS, "--group", "kind"]) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_closed_pipe_is_no_error_of_the_process_either(tmp_path):
    path = write(tmp_path / "pairs.parquet", table())
    command = f'"{sys.executable}" -m prefloss evaluate "{path}" --chosen a --rejected b --group kind | true'
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert result.stderr == ""


# ---- The report ----


@pytest.fixture
def report(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.html"
    pairs = write(tmp_path / "pairs.parquet", table())
    options = ["--weight", "w", "--group", "kind", "--cluster", "who", "--report", str(path)]
    assert main(["evaluate", str(pairs), *REWARDS, *options]) == 0
    return path


class Outline(html.parser.HTMLParser):
    """Which elements there are, whether each is closed, and what it refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.references = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag != "meta":
            assert self.open.pop() == tag


def test_the_report_stands_alone_and_is_well_formed(report):
    text = report.read_text()
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert outline.seen.count("svg") == 4
    assert "script" not in outline.seen
    assert all(reference.startswith("#") for reference in outline.references)  # nothing is fetched
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "&lt;b&gt;code&lt;/b&gt;" in text
    assert "<b>code" not in text
    for heading in ("What to worry about", "What was assumed", "What the words mean"):
        assert heading in text


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_the_report_at_full_and_at_phone_width(report, width, tmp_path):
    """The DOM after layout: all pictures have a size, and nothing is wider than the window but what scrolls inside its own
    frame."""
    probe = (
        "<script>window.onload = () => { document.title = JSON.stringify({"
        "wide: document.documentElement.scrollWidth, window: window.innerWidth,"
        "pictures: [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)}); };</script>"
    )
    page = tmp_path / "probed.html"
    page.write_text(report.read_text().replace("</body>", probe + "</body>"))
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    command = [CHROMIUM, *flags.split(), "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},2000", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = json.loads(re.search(r"<title>(.*?)</title>", dom)[1].replace("&quot;", '"'))
    assert found["window"] == width
    assert found["wide"] <= width
    assert len(found["pictures"]) == 4
    assert min(found["pictures"]) > 0.3 * min(width, 1000)
