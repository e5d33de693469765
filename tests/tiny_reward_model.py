"""A reward model of some thousand random weights, a tokenizer of digits, and pairs for them: nothing is downloaded."""

from __future__ import annotations

import random

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
