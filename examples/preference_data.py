"""Preference pairs from files, and as feature vectors: JSONL, Parquet or npz in, a matrix for each side out.

A pair of texts is {"chosen": ..., "rejected": ...} with or without "prompt", each a string or a list of chat messages
({"role": ..., "content": ...}): the formats of Anthropic's hh-rlhf and of TRL.
"""

from __future__ import annotations

import gzip
import importlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

Matrix = Any  # (n, d) float32, one row a response: a NumPy array, or a SciPy CSR matrix where most features are 0

HASHED_FEATURES = 2**13
TURN = re.compile(r"\n\n(?:Human|Assistant):")  # how hh-rlhf writes a conversation into one string
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".npz")


class InputError(Exception):
    """What the user has to put right, in one line that names the file and the place in it."""


@dataclass(frozen=True)
class TextPair:
    prompt: tuple[str, ...]  # turn by turn, without the names of the speakers
    chosen: str
    rejected: str


@dataclass(frozen=True)
class FeaturePairs:
    """Row i of `chosen` was preferred to row i of `rejected`; `prompt[i]` (int64) says which pairs share a prompt."""

    chosen: Matrix
    rejected: Matrix
    prompt: np.ndarray[Any, Any]
    description: str  # of the features
    weight: Tensor | None = None  # (n,), how much each pair counts, in training and in measuring; None is 1

    def __len__(self) -> int:
        return len(self.prompt)


def load(path: Path, embedding_model: str | None) -> FeaturePairs:
    """The pairs of the file as feature vectors; text through `embedding_model`, or hashed where that is None.

    Raises:
        InputError: the file, a line of it, or a package that it needs, is missing or broken.
    """
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if suffix is None:
        raise InputError(f"{path}: the name must end in one of {', '.join(SUFFIXES)}")
    try:
        if suffix == ".npz":
            if embedding_model is not None:
                raise InputError(f"{path}: holds feature vectors already; --embedding-model is for text")
            return _load_vectors(path)
        pairs = list(_parquet_pairs(path) if suffix == ".parquet" else _jsonl_pairs(path, suffix == ".jsonl.gz"))
    except (OSError, EOFError, zlib.error) as error:  # EOFError and zlib.error: gzip cut short, or damaged
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: cannot be read: {reason}") from error
    if not pairs:
        raise InputError(f"{path}: no preference pairs in it")
    return embed(pairs, embedding_model) if embedding_model is not None else hash_n_grams(pairs)


def require(module: str, package: str, purpose: str) -> ModuleType:
    """Import what only some inputs need."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.split(".")[0]):
            raise  # it is there, and something that it needs is not: its own message says what
        raise InputError(f"{purpose} needs {package}, which is not installed: pip install {package}") from error


# ---- Files ----


def _jsonl_pairs(path: Path, compressed: bool) -> Iterator[TextPair]:
    with gzip.open(path) if compressed else path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                record = json.loads(text)
            except UnicodeDecodeError as error:
                raise InputError(f"{place}: not UTF-8 text") from error
            except json.JSONDecodeError as error:
                raise InputError(f"{place}: not valid JSON: {error.msg} at column {error.colno}") from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
                raise InputError(f"{place}: not valid JSON: {error}") from error
            yield read_pair(record, place)


def _parquet_pairs(path: Path) -> Iterator[TextPair]:
    arrow = require("pyarrow", "pyarrow", f"{path}: Parquet")
    parquet = require("pyarrow.parquet", "pyarrow", f"{path}: Parquet")
    row = 0
    try:
        file = parquet.ParquetFile(path)
        columns = [name for name in ("prompt", "chosen", "rejected") if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=columns):
            for record in batch.to_pylist():
                row += 1
                # A column that other rows fill is null here: the row has no such field.
                present = {name: value for name, value in record.items() if value is not None}
                yield read_pair(present, f"{path}: row {row}")
    except arrow.ArrowException as error:
        raise InputError(f"{path}: row {row + 1}: not valid Parquet: {_first_line(error)}") from error


def _load_vectors(path: Path) -> FeaturePairs:
    sides = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in ("chosen", "rejected"):
                if name not in archive.files:
                    raise InputError(
                        f"{path}: array '{name}' is missing; there is {', '.join(map(repr, archive.files)) or 'none'}"
                    )
                sides[name] = archive[name]
    except (
        ValueError,
        AttributeError,
        TypeError,
        zipfile.BadZipFile,
    ) as error:  # pickled objects; one array, no archive
        raise InputError(f"{path}: not a valid .npz file of numbers: {_first_line(error)}") from error
    chosen, rejected = sides["chosen"], sides["rejected"]
    if chosen.ndim != 2 or chosen.shape != rejected.shape:
        raise InputError(
            f"{path}: 'chosen' and 'rejected' must both be (pairs, features), got {chosen.shape} and {rejected.shape}"
        )
    if 0 in chosen.shape:
        raise InputError(f"{path}: no preference pairs in it: the arrays are of shape {chosen.shape}")
    for name, array in sides.items():
        if array.dtype.kind not in "fiu":
            raise InputError(f"{path}: '{name}' must hold real numbers, got {array.dtype}")
        with np.errstate(over="ignore"):
            sides[name] = array.astype(np.float32)
        broken = np.flatnonzero(~np.isfinite(sides[name]).all(axis=1))
        if len(broken):
            raise InputError(f"{path}: '{name}', row {broken[0] + 1}: not finite in float32")
    count, width = chosen.shape
    return FeaturePairs(sides["chosen"], sides["rejected"], np.arange(count), f"{width} numbers a response, as given")


# ---- Records ----


def read_pair(record: object, place: str) -> TextPair:
    """One record as prompt and two answers; an implicit prompt is the turns that both conversations begin with."""
    if not isinstance(record, dict):
        raise InputError(f"{place}: expected an object with 'chosen' and 'rejected', got {_kind(record)}")
    for name in ("chosen", "rejected"):
        if name not in record:
            raise InputError(f"{place}: field '{name}' is missing; there is {', '.join(map(repr, record)) or 'none'}")
    chosen, rejected = (_read_turns(record[name], f"{place}: field '{name}'") for name in ("chosen", "rejected"))
    # The last turn of each is its answer, even where the two are equal or one conversation continues the other.
    turns = zip(chosen[:-1], rejected[:-1], strict=False)
    shared = sum(1 for _ in takewhile(lambda turn: turn[0] == turn[1], turns))
    prompt = list(filter(None, chosen[:shared]))
    if record.get("prompt") is not None:
        # hh-rlhf's ends in an empty turn of the assistant's. Some sets say the prompt twice.
        explicit = list(filter(None, _read_turns(record["prompt"], f"{place}: field 'prompt'")))
        prompt = prompt if prompt[: len(explicit)] == explicit else explicit + prompt
    answers = ("\n\n".join(side[shared:]).strip() for side in (chosen, rejected))
    return TextPair(tuple(prompt), *answers)


def _read_turns(value: object, place: str) -> list[str]:
    """A conversation's turns, at least one: of chat messages, or of one string as hh-rlhf writes it."""
    if isinstance(value, str):
        return [_clean(turn) for turn in (TURN.split(value)[1:] if TURN.match(value) else [value])]
    if not isinstance(value, list) or not value:
        raise InputError(f"{place} must be a string or a list of chat messages, got {_kind(value)}")
    turns = []
    for number, message in enumerate(value, start=1):
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str):
            raise InputError(
                f"{place}, message {number}: expected 'role' and 'content' with text, got {_kind(message)}"
            )
        turns.append(_clean(content))
    return turns


def _clean(text: str) -> str:
    return text.strip().encode(errors="replace").decode()  # JSON can spell half a surrogate pair; no tokenizer takes it


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    text = json.dumps(value, default=str)
    return f"{names.get(type(value), 'the value')} {text if len(text) <= 60 else text[:57] + '...'}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# ---- Features ----


def hash_n_grams(pairs: list[TextPair]) -> FeaturePairs:
    """Counts of hashed words and word pairs of the answers, each row of length 1: needs no model and no vocabulary.

    The prompt is left out: a linear head adds the same to both rewards for it, and the loss sees their difference.
    """
    text = require("sklearn.feature_extraction.text", "scikit-learn", "text without --embedding-model")
    vectorizer = text.HashingVectorizer(n_features=HASHED_FEATURES, ngram_range=(1, 2), dtype=np.float32)
    chosen, rejected = (vectorizer.transform(getattr(pair, side) for pair in pairs) for side in ("chosen", "rejected"))
    return FeaturePairs(chosen, rejected, _number_prompts(pairs), f"{HASHED_FEATURES} hashed words and word pairs")


def embed(pairs: list[TextPair], model: str) -> FeaturePairs:
    """Sentence embeddings of the prompt's last turn with the answer; models read some 256 tokens, so not of all turns."""
    library = require("sentence_transformers", "sentence-transformers", "--embedding-model")
    try:
        encoder = library.SentenceTransformer(model)
    except (
        Exception
    ) as error:  # a name, a download, a folder's content: the library raises what each of its parts raises
        raise InputError(f"--embedding-model {model}: cannot be loaded: {_first_line(error)}") from error
    questions = [pair.prompt[-1] if pair.prompt else "" for pair in pairs]
    answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    texts = [f"{question}\n\n{answer}".strip() for question, answer in zip(questions * 2, answers, strict=True)]
    vectors = np.asarray(encoder.encode(texts, show_progress_bar=True, convert_to_numpy=True), dtype=np.float32)
    chosen, rejected = vectors[: len(pairs)], vectors[len(pairs) :]
    return FeaturePairs(chosen, rejected, _number_prompts(pairs), f"{vectors.shape[1]} numbers from {model}")


def _number_prompts(pairs: Iterable[TextPair]) -> np.ndarray[Any, Any]:
    """The same number for the same prompt. A pair without one shares nothing."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(pair.prompt or place, len(numbers)) for place, pair in enumerate(pairs)])


# ---- Matrices ----


def rows(matrix: Matrix, index: Tensor) -> Tensor:
    """Some rows as a dense tensor."""
    picked = matrix[index.numpy()]
    return torch.from_numpy(picked if isinstance(picked, np.ndarray) else picked.toarray())


def rewards(matrix: Matrix, weight: Tensor) -> Tensor:
    """The linear head's reward of every row, without making a sparse matrix dense."""
    return torch.from_numpy(matrix @ weight.detach().numpy())


def typical_distance(pairs: FeaturePairs, index: Tensor) -> float:
    """Root mean square of the distance between a chosen and its rejected feature vector; 1 where all are equal."""
    difference = pairs.chosen[index.numpy()] - pairs.rejected[index.numpy()]
    values = difference if isinstance(difference, np.ndarray) else difference.data
    distance = float(np.sqrt(np.square(values, dtype=np.float64).sum() / len(index)))
    return distance or 1.0
