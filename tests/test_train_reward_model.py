"""The training example, run as its users run it: a known world, files, bad input, and real pairs where they are."""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import subprocess
import sys
import types
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import prefloss

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "train_reward_model.py"
DATA = Path(os.environ.get("PREFLOSS_DATA", ROOT.parent / "shared" / "data"))

for package in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(package, reason="the example needs `pip install '.[examples]'`")


def write_pairs(path, count):
    """JSON lines of answers that differ in what they always say."""
    records = (
        {"prompt": f"Question {n}?", "chosen": f"Of course: {n}, said Jane.", "rejected": f"I will not tell, {n}."}
        for n in range(count)
    )
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def metrics(folder):
    return json.loads((folder / "reward_model" / "metrics.json").read_text())


@pytest.fixture
def example(monkeypatch):
    """The example's modules by name, as in example("preference_data")."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module


def train(patch, folder, *options):
    """The script in this process, which has imported torch already, in a folder of its own."""
    patch.syspath_prepend(SCRIPT.parent)
    patch.chdir(folder)
    patch.setattr(sys, "argv", [SCRIPT.name, *map(str, options)])
    importlib.import_module("train_reward_model").main()


@pytest.fixture
def train_here(monkeypatch, tmp_path):
    return partial(train, monkeypatch, tmp_path)


@pytest.fixture
def refused(train_here, capsys):
    """Gives the only line on stderr, but for the progress, of a run that must end with the exit code 2."""

    def run(*options):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            train_here(*options)
        assert exit_.value.code == 2
        written = capsys.readouterr().err
        (line,) = (each for each in written.splitlines() if each and not each.startswith("training:"))
        return line

    return run


# ---- A known world ----


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, what was printed to stdout, and to stderr) of a run without --data."""
    folder, printed, said = tmp_path_factory.mktemp("world"), io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(said):
        train(patch, folder, "--repeats", 100, "--epochs", 10)
    return folder, printed.getvalue(), said.getvalue()


def test_the_held_out_interval_holds_the_expected_loss_and_the_training_loss_is_below_it(world):
    found = metrics(world[0])
    low, high = found["held_out"]["interval_95"]
    assert low < found["expected"]["loss"] < high
    assert found["training"]["interval_95"][1] < found["expected"]["loss"]
    assert found["expected"]["least_loss"] < found["expected"]["loss"] < math.log(2)
    assert found["training"]["pairs"] == found["held_out"]["pairs"] == 500


def test_the_interval_closes_as_one_over_the_root_of_n_and_holds_as_often_as_it_says(world):
    rows = metrics(world[0])["intervals"]["uniform"]
    constants = [row["half_width"] * math.sqrt(row["pairs"]) for row in rows]
    assert rows[-1]["pairs"] == 256 * rows[0]["pairs"]
    # A half-width of 100 pairs, the fewest, varies by 7 %; the mean of 100 of them by 0.7 %.
    assert max(constants) < 1.04 * min(constants)
    # 5 x 100 intervals: one standard deviation of their share is 0.01.
    assert np.mean([row["coverage"] for row in rows]) == pytest.approx(0.95, abs=0.03)


def test_a_narrow_collection_misses_however_large_and_the_weight_repairs_it(world):
    found = metrics(world[0])
    narrow, weighted = found["intervals"]["narrow"], found["intervals"]["weighted"]
    assert all(row["coverage"] < 0.01 for row in narrow[1:])
    assert narrow[-1]["half_width"] < 0.1 * narrow[0]["half_width"]
    assert np.mean([row["coverage"] for row in weighted[2:]]) == pytest.approx(0.95, abs=0.04)
    expected = found["narrow"]["expected_loss"]
    low, high = found["narrow"]["held_out_weighted"]["interval_95"]
    assert found["narrow"]["held_out"]["interval_95"][1] < low < expected < high
    # Weights 1/6 for 90 % of the pairs and 17/2 for the others: (sum w)^2 / sum w^2 is about n / 7.25.
    assert weighted[-1]["effective_sample_size"] == pytest.approx(weighted[-1]["pairs"] / 7.25, rel=0.02)
    # Trained with the weight, the head is better for the population, and not only better measured.
    assert found["narrow"]["trained_weighted"]["expected_loss"] < expected - 0.1


def test_groups_find_the_narrow_collection_out_and_known_shares_or_a_classifier_repair_it(world):
    found = metrics(world[0])["narrow"]
    assert found["groups"]["experts"]["interval"][1] < found["groups"]["others"]["interval"][0]
    low, high = found["reweighted"]["interval"]
    assert low < found["expected_loss"] < high
    # The classifier sees prompts, not who is asked, so its weights are not the true ones; they must do more than half of the way.
    missing = [
        found["expected_loss"] - found[name][key] for name, key in (("held_out", "loss"), ("classified", "value"))
    ]
    assert abs(missing[1]) < 0.5 * missing[0]
    assert "reweighted to known shares" in world[1]


def test_where_prompts_repeat_the_table_has_a_line_by_prompt(train_here, capsys, tmp_path):
    answers = (
        {"prompt": f"Question {n // 4}?", "chosen": f"Of course: {n}.", "rejected": f"Not {n}, {n}."} for n in range(80)
    )
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in answers))
    train_here("--epochs", "2", "--data", data)
    assert "  by prompt: 5 clusters" in capsys.readouterr().out


def test_the_table_says_what_the_metrics_say(world):
    folder, printed, said = world
    found = metrics(folder)
    for line, part in (("training pairs", found["training"]), ("held-out pairs", found["held_out"])):
        assert f"{line:36}{part['pairs']:7}{part['loss']:9.4f}" in printed
    assert f"expected (known exactly){found['expected']['loss']:28.4f}" in printed
    assert printed.count("MISSES") == 2  # the training line, and the narrow collection's
    # Progress must not get into a redirected table.
    assert "100%" in said
    assert "100%" not in printed


def test_the_head_loads_into_a_linear_layer_and_has_the_loss_that_was_printed(world, example):
    folder, *_ = world
    synthetic = example("synthetic_preferences")
    head = torch.nn.Linear(synthetic.WIDTH, 1, bias=False)
    head.load_state_dict(torch.load(folder / "reward_model" / "reward_head.pt", weights_only=True))
    expected = synthetic.World(0).expected_loss(head.weight[0])
    assert expected == pytest.approx(metrics(folder)["expected"]["loss"], rel=1e-6)


def test_the_picture_is_a_png_and_the_metrics_name_the_versions(world):
    folder, *_ = world
    assert (folder / "reward_model" / "reward_model.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert metrics(folder)["versions"] == {"prefloss": prefloss.__version__, "torch": torch.__version__}
    assert len(metrics(folder)["curve"]) == metrics(folder)["settings"]["epochs"] + 1
    assert metrics(folder)["curve"][0]["training"] == pytest.approx(math.log(2))


def test_the_expected_loss_of_the_world_is_the_average_over_very_many_pairs(example):
    world = example("synthetic_preferences").World(3)
    head = torch.randn(world.features.shape[1], generator=torch.Generator().manual_seed(4)) / 5
    values = world.rewards(head)
    for narrow in (False, True):
        sample = world.collect(400_000, narrow=narrow)
        _, stats = prefloss.bradley_terry_loss(
            values[sample.chosen], values[sample.rejected], weight=sample.ratio, return_stats=True
        )
        assert abs(stats.loss - world.expected_loss(head)) < 4 * stats.standard_error
        assert stats.standard_error < 0.005
        assert stats.total_weight == pytest.approx(stats.count, rel=0.02)  # a density ratio has the mean 1


# ---- Files ----


def test_pairs_of_one_prompt_stay_on_one_side_of_the_split(example):
    split = example("train_reward_model").split
    FeaturePairs = example("preference_data").FeaturePairs  # noqa: N806
    prompt = np.repeat(np.arange(50), 4)
    pairs = FeaturePairs(np.zeros((200, 2)), np.zeros((200, 2)), prompt, "")
    training, held_out = split(pairs, 0.25, seed=6)
    assert sorted([*training.tolist(), *held_out.tolist()]) == list(range(200))
    assert not set(prompt[training.numpy()]) & set(prompt[held_out.numpy()])
    assert 50 <= len(held_out) < 54
    # All of one prompt: there must be pairs on both sides all the same.
    training, held_out = split(FeaturePairs(np.zeros((8, 2)), np.zeros((8, 2)), np.zeros(8, int), ""), 0.25, seed=6)
    assert (len(training), len(held_out)) == (6, 2)


def test_text_is_trained_on_without_a_model_or_a_network(train_here, tmp_path):
    train_here("--epochs", "5", "--data", write_pairs(tmp_path / "pairs.jsonl", 80))
    found = metrics(tmp_path)
    assert (found["training"]["pairs"], found["held_out"]["pairs"]) == (60, 20)
    assert found["held_out"]["accuracy"] == 1.0
    assert found["held_out"]["loss"] < 0.6
    assert "hashed" in found["features"]
    assert (tmp_path / "reward_model" / "reward_model.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


class StubOfAModel:
    def __init__(self, name):
        if name == "no/such-model":
            raise OSError(name + " is not a local folder\nand not a valid model identifier")

    def encode(self, texts, **options):
        assert texts[0] == "Question 0?\n\nOf course: 0, said Jane.", texts[0]
        return np.array([[len(text), text.count("Jane"), 1.0] for text in texts])


def test_text_goes_through_the_embedding_model_that_is_named(train_here, refused, monkeypatch, tmp_path):
    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = StubOfAModel
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    data = write_pairs(tmp_path / "pairs.jsonl", 40)
    train_here("--embedding-model", "some/model", "--data", data)
    assert metrics(tmp_path)["features"] == "3 numbers from some/model"
    assert metrics(tmp_path)["held_out"]["accuracy"] == 1.0
    head = torch.load(tmp_path / "reward_model" / "reward_head.pt", weights_only=True)
    assert head["weight"].shape == (1, 3)
    assert head["weight"][0, 1] > 0  # only the chosen ones say "Jane"

    assert refused("--embedding-model", "no/such-model", "--data", data) == (
        "train_reward_model.py: --embedding-model no/such-model: cannot be loaded: no/such-model is not a local folder"
    )


# ---- Bad input ----


@pytest.mark.parametrize(
    ("lines", "last", "message"),
    [
        (0, "", ": no preference pairs in it"),
        (3, "", ": 3 preference pairs are too few: 4 are needed to train on 2 and hold out 2"),
        (5, "{\n", ":6: not valid JSON: "),
        (5, '{"chosen": "a"}\n', ":6: field 'rejected' is missing; there is 'chosen'"),
    ],
)
def test_bad_input_is_refused_in_one_line(refused, tmp_path, lines, last, message):
    path = write_pairs(tmp_path / "pairs.jsonl", lines)
    path.write_text(path.read_text() + last)
    assert refused("--data", path).startswith(f"{SCRIPT.name}: {path}{message}")


@pytest.mark.slow
def test_bad_input_ends_the_process_with_code_2_and_no_traceback(tmp_path):
    command = [sys.executable, "-W", "error", SCRIPT, "--data", tmp_path / "pairs.jsonl"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 2
    assert result.stderr == f"{SCRIPT.name}: {tmp_path / 'pairs.jsonl'}: no such file\n"
    assert result.stdout == ""


def test_a_package_that_is_not_there_is_named(refused, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    path = write_pairs(tmp_path / "pairs.jsonl", 8)
    line = refused("--data", path, "--embedding-model", "some/model")
    assert line.endswith("needs sentence-transformers, which is not installed: pip install sentence-transformers")


def test_an_embedding_model_is_refused_for_vectors(refused, tmp_path):
    path = tmp_path / "pairs.npz"
    np.savez(path, chosen=np.eye(8), rejected=np.zeros((8, 8)))
    line = refused("--data", path, "--embedding-model", "some/model")
    assert line == f"{SCRIPT.name}: {path}: holds feature vectors already; --embedding-model is for text"


def test_a_loss_that_is_no_longer_finite_is_said_to_be_so(refused, tmp_path):
    line = refused(
        "--data", write_pairs(tmp_path / "pairs.jsonl", 8), "--learning-rate", "1000", "--weight-decay", "1000"
    )
    assert line.endswith("--learning-rate 1000: the loss is no longer finite; lower it")


def test_an_output_that_cannot_be_a_folder_is_refused_before_the_work(refused, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused("--output", tmp_path / "file")
    assert line == f"{SCRIPT.name}: --output {tmp_path / 'file'}: File exists"


# ---- Real pairs ----


def test_on_real_pairs_the_held_out_loss_falls_below_log_2_and_the_accuracy_rises_above_55_percent(
    train_here, tmp_path
):
    data = DATA / "hh_harmless_minilm_train.npz"
    if not data.exists():
        pytest.skip(f"{data} is not there; PREFLOSS_DATA names the folder of the data")
    train_here("--data", data)
    found = metrics(tmp_path)
    assert found["training"]["pairs"] + found["held_out"]["pairs"] == 1800
    assert found["held_out"]["interval_95"][1] < math.log(2)
    assert found["held_out"]["accuracy"] > 0.55
    assert found["training"]["loss"] < found["held_out"]["loss"]
