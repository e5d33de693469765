"""A reward model of some thousand random weights, its tokenizer and pairs, and two processes to train it: nothing is downloaded."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import torch

WORDS = 20
PAD = 0


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": PAD, "<eos>": 1, "<unk>": 2} | {str(word): word for word in range(3, WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=64
    )


def sizes():
    return {
        **{"vocab_size": WORDS, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": PAD},
    }


def reward_model(seed=0, **config):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(LlamaConfig(**sizes(), **{"num_labels": 1, **config}))
    with torch.no_grad():
        model.score.weight.mul_(20)  # rewards of about 1, so that options and orders of adding up show
    return model


def pairs(count, seed=0, margin=False):
    """Token ids of unequal lengths, a list of rows."""
    draw = random.Random(seed)

    def ids():
        return [draw.randrange(3, WORDS) for _ in range(draw.randrange(2, 7))]

    rows = [{"chosen_ids": ids(), "rejected_ids": ids(), "margin": draw.random()} for _ in range(count)]
    return rows if margin else [{name: row[name] for name in ("chosen_ids", "rejected_ids")} for row in rows]


def of_two_processes(code, *arguments):
    """What the first of two processes of torch.distributed prints as JSON after FOUND; argv is this folder, and these."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(Path(__file__).parent), *arguments],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][1][-3000:] + said[1][1][-3000:]
    (line,) = (line for line in said[0][0].splitlines() if line.startswith("FOUND"))
    return json.loads(line.removeprefix("FOUND"))
