"""What all tests share: tiny models of every family, and the real data where it is at hand."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

# Tests never reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

TINY = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 64, "max_position_embeddings": 64},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64,
                   "max_position_embeddings": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64,
             "bos_token_id": 1, "eos_token_id": 1},
}  # fmt: skip
TINY["roberta"] = {**TINY["bert"], "max_position_embeddings": 66}
TINY["electra"] = {**TINY["bert"], "embedding_size": 16}


@pytest.fixture
def tiny_model() -> Callable[..., PreTrainedModel]:
    """A randomly initialised two-layer classifier of a family, in eval mode, the same every time."""

    def build(family: str, **changes: object) -> PreTrainedModel:
        config = AutoConfig.for_model(
            family, **{"vocab_size": 100, "pad_token_id": 0, **TINY[family], **changes}
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return AutoModelForSequenceClassification.from_config(config).eval()

    return build


@pytest.fixture
def tiny_bert(tiny_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """The tiny BERT classifier."""
    return tiny_model("bert")


@pytest.fixture
def shared() -> Path:
    """The folder of real data and models beside the checkout; skips where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the real data and models in ../shared")
    return folder
