"""Tokenizers with more tokens than the model, gaps in their ids, and large ids."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForSequenceClassification

from lightning_compress.data import TextClassificationDataModule
from lightning_compress.data.tokenizer import vocabulary_size
from lightning_compress.errors import InputError
from lightning_compress.models import set_masks_
from lightning_compress.modules import FineTuningModule
from lightning_compress.modules.tokens import resize_embeddings_
from lightning_compress.quantization import quantize_
from lightning_compress.saving import load_compressed, save_compressed

from .conftest import QUIET, STUDENT, write_tokenizer

SIZES = {name: value for name, value in STUDENT.items() if name != "model_type"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``model``, and ``tokenizer`` with one token more; ``texts`` that have it."""
    tokenizer = AutoTokenizer.from_pretrained(
        write_tokenizer(tmp_path / "tokenizer", ["good", "bad", "film"])
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES, vocab_size=len(tokenizer)))
    model.save_pretrained(tmp_path / "model")
    tokenizer.add_tokens(["<user>"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "texts").mkdir()
    lines = ["text,label", *["good film <user>,1", "bad film,0"] * 20]
    for split in ("train", "test"):
        (tmp_path / "texts" / f"{split}.csv").write_text("\n".join(lines))
    return tmp_path


def data(folder: Path) -> TextClassificationDataModule:
    return TextClassificationDataModule(
        path=str(folder / "texts"),
        tokenizer=str(folder / "tokenizer"),
        max_length=8,
        cache_dir=str(folder / "cache"),
    )


def fit(folder: Path, **options: object) -> FineTuningModule:
    module = FineTuningModule(pretrained=str(folder / "model"), learning_rate=1e-2, **options)  # type: ignore[arg-type]
    L.Trainer(**QUIET, max_epochs=20).fit(module, datamodule=data(folder))
    return module


def test_more_tokens_than_embeddings_are_refused_with_the_remedy(folder: Path) -> None:
    with pytest.raises(InputError, match=r"9 tokens and the model 8.*model\.resize_embeddings"):
        fit(folder)


def test_added_embeddings_are_trained_saved_and_loaded(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        module = fit(folder, resize_embeddings=True)
    model = module.model.eval()
    assert "1 embeddings are new" in caplog.text
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 9
    ids = torch.tensor([[2, 5, 7, 8, 3]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    save_compressed(model, folder / "saved", AutoTokenizer.from_pretrained(folder / "tokenizer"))
    with torch.no_grad():
        assert torch.equal(load_compressed(folder / "saved")(input_ids=ids).logits, expected)
    (found,) = L.Trainer(**QUIET).test(module, datamodule=data(folder), verbose=False)
    assert found["test_accuracy"] == 1


def test_known_tokens_keep_their_embeddings() -> None:
    model = BertForMaskedLM(BertConfig(**SIZES, vocab_size=50)).eval()
    ids = torch.tensor([[4, 9, 30]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        resize_embeddings_(model, 53)
        after = model(input_ids=ids).logits
    assert after.shape[-1] == 53
    torch.testing.assert_close(after[..., :50], before)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    resize_embeddings_(model, 10)
    assert model.config.vocab_size == 53


def test_compressed_embeddings_are_not_resized() -> None:
    def model() -> BertForMaskedLM:
        return BertForMaskedLM(BertConfig(**SIZES, vocab_size=50))

    quantized = model()
    quantize_(quantized, "int8-weight")
    with pytest.raises(InputError, match=r"is quantized.*dense model"):
        resize_embeddings_(quantized, 53)
    pruned = model()
    name = "bert.embeddings.word_embeddings.weight"
    set_masks_(pruned, {name: torch.ones_like(pruned.get_parameter(name), dtype=torch.bool)})
    with pytest.raises(InputError, match=r"are pruned.*dense model"):
        resize_embeddings_(pruned, 53)


def test_gaps_and_large_ids_are_counted(folder: Path) -> None:
    file = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["film"] = 70_000
    file.write_text(json.dumps(content))
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert len(tokenizer) == 9
    assert vocabulary_size(tokenizer) == 70_001
    module = fit(folder, resize_embeddings=True)
    assert module.model.config.vocab_size == 70_001
    loader = data(folder)
    loader.setup("test")
    batch = next(iter(loader.test_dataloader()))
    assert (batch["input_ids"] == 70_000).any(1).all()
