"""The training example's reading: every format says the same thing, and bad input is one line that names the place."""

from __future__ import annotations

import gzip
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the example needs `pip install '.[examples]'`")
pyarrow = pytest.importorskip("pyarrow", reason="the example needs `pip install '.[examples]'`")

EXAMPLES = Path(__file__).parent.parent / "examples"

# What people wrote: two answers each to some prompts, the better one first.
RECORDS = [
    (["Is the shop open on Sunday?"], f"Yes, from {hour} to noon.", f"No idea, {hour} perhaps.") for hour in range(9)
] + [(["Hello", "Hello! What is it?", "Who wrote Emma?"], "Jane Austen did, in 1815.", "Look it up.")]


@pytest.fixture
def preference_data(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("preference_data")


# ---- Formats ----


def spoken(turns):
    speakers = ("Human", "Assistant")
    return "".join(f"\n\n{speakers[place % 2]}: {turn}" for place, turn in enumerate(turns))


def messages(turns, start=0):
    roles = ("user", "assistant")
    return [{"role": roles[(start + place) % 2], "content": turn} for place, turn in enumerate(turns)]


def hh(prompt, chosen, rejected):
    return {"chosen": spoken([*prompt, chosen]), "rejected": spoken([*prompt, rejected])}


def hh_with_prompt(prompt, chosen, rejected):
    return {"prompt": spoken([*prompt, ""]), **hh(prompt, chosen, rejected)}


def explicit(prompt, chosen, rejected):
    return {"prompt": spoken([*prompt, ""]), "chosen": f" {chosen}", "rejected": f" {rejected}"}


def chat(prompt, chosen, rejected):
    return {"chosen": messages([*prompt, chosen]), "rejected": messages([*prompt, rejected])}


def chat_explicit(prompt, chosen, rejected):
    start = len(prompt)
    return {
        "prompt": messages(prompt),
        "chosen": messages([chosen], start),
        "rejected": messages([rejected], start),
    }


FORMATS = [hh, hh_with_prompt, explicit, chat, chat_explicit]
SUFFIXES = [".jsonl", ".jsonl.gz", ".parquet"]


def write_records(path, records):
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(records), path)
        return path
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("layout", FORMATS)
def test_every_format_gives_the_same_pairs_and_features(preference_data, tmp_path, layout, suffix):
    as_meant = [preference_data.TextPair(tuple(prompt), chosen, rejected) for prompt, chosen, rejected in RECORDS]
    expected = preference_data.hash_n_grams(as_meant)
    pairs = preference_data.load(write_records(tmp_path / f"pairs{suffix}", [layout(*r) for r in RECORDS]), None)
    assert len(pairs) == len(RECORDS)
    assert (pairs.chosen != expected.chosen).nnz == 0
    assert (pairs.rejected != expected.rejected).nnz == 0
    assert (pairs.chosen != pairs.rejected).nnz > 0
    # Nine of the pairs share a prompt, and must be split as one.
    assert pairs.prompt.tolist() == [0] * 9 + [1]


@pytest.mark.parametrize("layout", FORMATS)
def test_every_format_is_read_as_the_same_prompt_and_answers(preference_data, layout):
    for prompt, chosen, rejected in RECORDS:
        found = preference_data.read_pair(layout(prompt, chosen, rejected), "here")
        assert found == preference_data.TextPair(tuple(prompt), chosen, rejected)


def test_plain_strings_have_no_prompt_and_conversations_may_part_before_their_last_turn(preference_data):
    plain = preference_data.read_pair({"chosen": "Yes.", "rejected": "No."}, "here")
    assert plain == preference_data.TextPair((), "Yes.", "No.")
    parted = {"chosen": spoken(["a", "b", "c", "d"]), "rejected": spoken(["a", "x", "y", "z"])}
    assert preference_data.read_pair(parted, "here") == preference_data.TextPair(("a",), "b\n\nc\n\nd", "x\n\ny\n\nz")
    equal = preference_data.read_pair({"chosen": spoken(["a", "b"]), "rejected": spoken(["a", "b"])}, "here")
    assert equal == preference_data.TextPair(("a",), "b", "b")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_vectors_are_read_as_they_are(preference_data, tmp_path, dtype):
    chosen, rejected = np.random.default_rng(5).normal(size=(2, 12, 3)).astype(dtype)
    np.savez(tmp_path / "pairs.npz", chosen=chosen, rejected=rejected)
    pairs = preference_data.load(tmp_path / "pairs.npz", None)
    np.testing.assert_array_equal(pairs.chosen, chosen.astype(np.float32))
    np.testing.assert_array_equal(pairs.rejected, rejected.astype(np.float32))
    assert len(set(pairs.prompt.tolist())) == 12


# ---- Bad input ----

GOOD = json.dumps(hh(*RECORDS[0])) + "\n"


def npz(**arrays):
    def write(path):
        np.savez(path, **arrays)

    return write


def parquet(*records):
    return lambda path: write_records(path, list(records))


def packed(text, keep=None):
    return gzip.compress(text.encode())[:keep]


VECTORS = np.ones((6, 2), np.float32)
HOLE = np.where(np.arange(12).reshape(6, 2) == 7, np.nan, VECTORS)

# name of the file, its content (None: it is missing), what the message says after the file's name
BAD = {
    "missing file": ("pairs.jsonl", None, ": no such file"),
    "other format": (
        "pairs.csv",
        "chosen,rejected\n",
        ": the name must end in one of .jsonl, .jsonl.gz, .parquet, .npz",
    ),
    "empty": ("pairs.jsonl", "", ": no preference pairs in it"),
    "only blank lines": ("pairs.jsonl", "\n  \n", ": no preference pairs in it"),
    "broken line": ("pairs.jsonl", GOOD + GOOD + '{"chosen": "a", \n', ":3: not valid JSON: "),
    "broken line after a blank": (
        "pairs.jsonl",
        GOOD + "\n" + "no\n",
        ":3: not valid JSON: Expecting value at column 1",
    ),
    "endless number": ("pairs.jsonl", GOOD + '{"chosen": ' + "1" * 5000 + "}\n", ":2: not valid JSON: "),
    "not UTF-8": ("pairs.jsonl", GOOD.encode() + b'{"chosen": "\xff"}\n', ":2: not UTF-8 text"),
    "not an object": (
        "pairs.jsonl",
        GOOD + "[1, 2]\n",
        ":2: expected an object with 'chosen' and 'rejected', got a list",
    ),
    "field missing": (
        "pairs.jsonl",
        GOOD + '{"prompt": "a", "chosen": "b"}\n',
        ":2: field 'rejected' is missing; there is 'prompt', 'chosen'",
    ),
    "field null": (
        "pairs.jsonl",
        GOOD + '{"chosen": null, "rejected": "b"}\n',
        ":2: field 'chosen' must be a string or",
    ),
    "message without text": (
        "pairs.jsonl",
        GOOD + '{"chosen": [{"role": "user"}], "rejected": "b"}\n',
        ":2: field 'chosen', message 1: expected 'role' and 'content' with text",
    ),
    "compressed, broken line": ("pairs.jsonl.gz", packed(GOOD + "{\n"), ":2: not valid JSON: "),
    "compressed, cut short": ("pairs.jsonl.gz", packed(GOOD * 9, 60), ": cannot be read: "),
    "not compressed": ("pairs.jsonl.gz", GOOD, ": cannot be read: "),
    "Parquet, not": ("pairs.parquet", GOOD, ": row 1: not valid Parquet: "),
    "Parquet, no column": ("pairs.parquet", parquet({"chosen": "a"}), ": row 1: field 'rejected' is missing"),
    "Parquet, null": (
        "pairs.parquet",
        parquet({"chosen": "a", "rejected": "b"}, {"chosen": "a", "rejected": None}),
        ": row 2: field 'rejected' is missing",
    ),
    "npz, not": ("pairs.npz", GOOD, ": not a valid .npz file of numbers: "),
    "npz, empty file": ("pairs.npz", "", ": cannot be read: "),
    "npz, no array": ("pairs.npz", npz(chosen=VECTORS), ": array 'rejected' is missing; there is 'chosen'"),
    "npz, shapes": ("pairs.npz", npz(chosen=VECTORS, rejected=VECTORS[:5]), ": 'chosen' and 'rejected' must both be"),
    "npz, no pairs": ("pairs.npz", npz(chosen=VECTORS[:0], rejected=VECTORS[:0]), ": no preference pairs in it"),
    "npz, words": ("pairs.npz", npz(chosen=VECTORS.astype(str), rejected=VECTORS), ": 'chosen' must hold real numbers"),
    "npz, objects": ("pairs.npz", npz(chosen=VECTORS.astype(object), rejected=VECTORS), ": not a valid .npz file of"),
    "npz, nan": ("pairs.npz", npz(chosen=VECTORS, rejected=HOLE), ": 'rejected', row 4: not finite"),
}


def place(folder, name, content):
    path = folder / name
    if callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_names_the_file_and_the_place(preference_data, tmp_path, case):
    name, content, message = BAD[case]
    path = place(tmp_path, name, content)
    with pytest.raises(preference_data.InputError) as error:
        preference_data.load(path, None)
    assert str(error.value).startswith(f"{path}{message}")
    assert len(str(error.value).splitlines()) == 1
