"""Embeddings of texts from the files to the report: training, compression, commands, folders."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.nn import functional
from transformers import AutoModel, BertModel

from lightning_compress.callbacks import CompressionBenchmark, StructuredPruning
from lightning_compress.data import SentencePairDataModule, TextClassificationDataModule
from lightning_compress.distillation.hidden_states import Embeddings
from lightning_compress.distillation.objective import Losses
from lightning_compress.distillation.soft_targets import SoftTargets
from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of
from lightning_compress.models.forward import logits_in
from lightning_compress.modules import DistillationModule, FineTuningModule
from lightning_compress.saving import load_compressed, save_compressed

from .compressions import COMPRESSIONS
from .families import ALL, tiny_config, tiny_options

CONFIG = {**tiny_options("bert", num_hidden_layers=4), "vocab_size": 100}


@pytest.fixture
def paired(text_files: Path) -> Path:
    """A folder with train.csv, test.csv and a tokenizer: the score is the share of common words."""
    draw = random.Random(0)
    for name, count in (("train", 320), ("test", 60)):
        lines = ["sentence1,sentence2,score"]
        for _ in range(count):
            first = draw.sample(range(1, 95), draw.randint(4, 9))
            common = draw.randint(0, len(first))
            second = first[:common] + draw.sample(range(1, 95), len(first) - common)
            draw.shuffle(second)
            texts = (" ".join(f"w{word}" for word in words) for words in (first, second))
            lines.append(",".join([*texts, str(round(5 * common / len(first), 2))]))
        (text_files / f"{name}.csv").write_text("\n".join(lines))
    return text_files


def data_in(folder: Path, **options: Any) -> SentencePairDataModule:
    return SentencePairDataModule(
        path=str(folder), tokenizer=str(folder / "tokenizer"), max_length=24, batch_size=16,
        cache_dir=str(folder / "cache"), **{"score_range": (0, 5), **options},
    )  # fmt: skip


def module_of(**options: Any) -> FineTuningModule:
    options = options or {"config": CONFIG}
    return FineTuningModule(task="sentence-similarity", learning_rate=2e-3, **options)


def test_it_learns_how_similar_texts_are(
    paired: Path, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    L.seed_everything(0)
    trainer, module, data = quiet_trainer(max_epochs=3), module_of(), data_in(paired)
    (before,) = trainer.test(module, data, verbose=False)
    trainer.fit(module, data)
    (after,) = trainer.test(module, data, verbose=False)
    assert after["test_spearman"] > max(0.7, before["test_spearman"])
    assert after["test_loss"] < before["test_loss"]
    assert not module.model.get_parameter("pooler.dense.weight").requires_grad


def test_it_learns_which_texts_belong_together(
    paired: Path, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    draw = random.Random(0)
    for name, count in (("train", 320), ("test", 60)):
        lines = ["sentence1,sentence2"]
        for _ in range(count):  # w1 belongs to w31, w2 to w32, ...
            words = draw.sample(range(1, 31), 4)
            texts = (" ".join(f"w{word + more}" for word in words) for more in (0, 30))
            lines.append(",".join(texts))
        (paired / f"{name}.csv").write_text("\n".join(lines))
    L.seed_everything(0)
    trainer, data = quiet_trainer(max_epochs=5), data_in(paired, score=None)
    module = module_of(config={**CONFIG, "num_hidden_layers": 1})
    (before,) = trainer.test(module, data, verbose=False)
    trainer.fit(module, data)
    (after,) = trainer.test(module, data, verbose=False)
    assert after["test_mrr"] > 2 * before["test_mrr"]
    assert after["test_accuracy"] <= after["test_mrr"] <= 1


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings_do_not_depend_on_padding_and_batch(pooling: Any) -> None:
    model = BertModel._from_config(tiny_config("bert")).eval().double()
    model.config.sentence_embedding = {"pooling": pooling, "normalize": True, "files": {}}
    ids = torch.randint(5, 50, (3, 12))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    with torch.no_grad():
        inputs = {"input_ids": ids, "attention_mask": mask}
        together = logits_in(model(**inputs), model, inputs)
        alone = {"input_ids": ids[:1, :7]}
        expected = logits_in(model(**alone), model, alone)
        states = model(**alone).last_hidden_state[0]
    by_hand = states.mean(0) if pooling == "mean" else states[0]
    assert torch.allclose(together[:1], expected, atol=1e-10, rtol=0)
    assert torch.allclose(expected[0], functional.normalize(by_hand, dim=0), atol=1e-10, rtol=0)


def test_the_files_of_sentence_transformers_are_read_and_kept(
    paired: Path, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    source = paired / "encoder"
    AutoModel.from_config(tiny_config("bert")).save_pretrained(source)
    write_files(source, ["Transformer", "Pooling"], pooling_mode_cls_token=True)
    prompts = {"prompts": {"query": "query: "}, "similarity_fn_name": "cosine"}
    (source / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    data, callbacks = data_in(paired), [StructuredPruning(removed_macs_fraction=0.2)]
    module = module_of(pretrained=str(source))
    quiet_trainer(max_epochs=1, callbacks=callbacks).fit(module, data)
    target = save_compressed(module.model, paired / "saved", data.tokenizer)
    modules = json.loads((target / "modules.json").read_text())
    assert [one["type"].split(".")[-1] for one in modules] == ["Transformer", "Pooling"]
    modes = json.loads((target / modules[1]["path"] / "config.json").read_text())
    assert modes["pooling_mode_cls_token"]
    assert not modes["pooling_mode_mean_tokens"]
    assert modes["word_embedding_dimension"] == module.model.config.hidden_size
    assert json.loads((target / "config_sentence_transformers.json").read_text()) == prompts
    again = module_of(pretrained=str(target))
    quiet_trainer(max_epochs=0).fit(again, data)
    assert again.model.config.sentence_embedding == module.model.config.sentence_embedding
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(again.eval()(batch), module.eval()(batch))


def test_a_configuration_names_no_other_files(tmp_path: Path) -> None:
    model = BertModel._from_config(tiny_config("bert"))
    files = {"../outside.json": 1, "sub/other.json": 1, "sentence_bert_config.json": {"a": 1}}
    model.config.sentence_embedding = {"pooling": "mean", "normalize": True, "files": files}
    saved = save_compressed(model, tmp_path / "place" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    names = {str(path.relative_to(saved)) for path in saved.rglob("*.json")}
    kept = {"config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"}
    assert names == kept


def write_files(folder: Path, kinds: list[str], **modes: bool) -> None:
    paths = ["", "1_Pooling", *(f"{place}_{kind}" for place, kind in enumerate(kinds[2:], 2))]
    modules = [
        {"idx": place, "name": str(place), "path": path,
         "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))


@pytest.mark.parametrize(
    ("kinds", "modes", "message"),
    [
        (["Transformer", "Pooling", "Dense"], {"pooling_mode_mean_tokens": True},
         r"is a sentence-transformers model of Transformer, Pooling, Dense: supported are"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True},
         r"pools by pooling_mode_max_tokens: supported are the mean over the tokens and"),
        (["Transformer", "Pooling"],
         {"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, "pools by"),
    ],
)  # fmt: skip
def test_other_modules_are_refused(
    kinds: list[str], modes: dict[str, bool], message: str, paired: Path,
    quiet_trainer: Callable[..., L.Trainer],
) -> None:  # fmt: skip
    AutoModel.from_config(tiny_config("bert")).save_pretrained(paired / "encoder")
    write_files(paired / "encoder", kinds, **modes)
    module = module_of(pretrained=str(paired / "encoder"))
    with pytest.raises(InputError, match=rf"model\.pretrained: .*{message}"):
        quiet_trainer(max_epochs=1).fit(module, data_in(paired))


def test_options_for_other_tasks_are_refused(
    paired: Path, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    texts = TextClassificationDataModule(
        path=str(paired), tokenizer=str(paired / "tokenizer"), text="sentence1", label="score"
    )
    with pytest.raises(InputError, match=r"model\.pooling is cls, and BertForSequenceClass"):
        quiet_trainer(max_epochs=1).fit(FineTuningModule(config=CONFIG, pooling="cls"), texts)
    with pytest.raises(InputError, match=r"model\.pooling is 'max': it must be one of mean, cls"):
        quiet_trainer(max_epochs=1).fit(module_of(config=CONFIG, pooling="max"), data_in(paired))


def test_a_student_of_another_width_is_told_to_use_a_projection(
    paired: Path, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    AutoModel.from_config(tiny_config("bert", hidden_size=64)).save_pretrained(paired / "teacher")
    student = DistillationModule(
        teacher=str(paired / "teacher"), task="sentence-similarity", config=CONFIG
    )
    message = r"losses\.soft_targets: embeddings of 64 numbers and of 32 cannot be compared"
    with pytest.raises(InputError, match=message):
        quiet_trainer(max_epochs=1).fit(student, data_in(paired))


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["never", "always"])
@pytest.mark.parametrize(
    "losses",
    [Losses(soft_targets=SoftTargets()), Losses(soft_targets=None, embeddings=Embeddings())],
    ids=["logits", "embeddings"],
)
def test_a_student_learns_the_teachers_embeddings(
    paired: Path, cache: Any, losses: Losses, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    L.seed_everything(0)
    teacher, data = module_of(), data_in(paired)
    quiet_trainer(max_epochs=4).fit(teacher, data)
    save_compressed(teacher.model, paired / "teacher")
    student = DistillationModule(
        teacher=str(paired / "teacher"), task="sentence-similarity", config=CONFIG,
        losses=losses,
        learning_rate=2e-3, teacher_cache=cache, cache_dir=str(paired / "cache"),
    )  # fmt: skip
    trainer = quiet_trainer(max_epochs=4)
    trainer.fit(student, data_in(paired))
    assert trainer.callback_metrics["val_teacher_spearman"] > 0.7
    assert trainer.callback_metrics["val_spearman"] > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("technique", COMPRESSIONS)
def test_every_technique_works_and_is_reported(
    paired: Path, technique: str, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    report = CompressionBenchmark(
        runtimes=["eager"], precisions=["fp32"], latency_examples=4, seconds=0.02
    )
    trainer = quiet_trainer(
        max_epochs=4, callbacks=[COMPRESSIONS[technique](), report], default_root_dir=paired / "run"
    )
    module, data = module_of(), data_in(paired)
    trainer.fit(module, data)
    (tested,) = trainer.test(module, data, verbose=False)
    assert manifest_of(module.model)
    (path,) = (paired / "run").rglob("report.json")
    told = json.loads(path.read_text())
    assert told["task"]["metric"] == "spearman"
    dense, compressed = told["rows"]
    assert (dense["model"], compressed["model"]) == ("dense", "compressed")
    assert compressed["metrics"]["spearman"] == pytest.approx(tested["test_spearman"], abs=1e-4)
    again = load_compressed(str(path.parent / "model"))
    batch = next(iter(data.test_dataloader()))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        one, other = again(**inputs), module.model.eval()(**inputs)
        assert torch.equal(one.last_hidden_state, other.last_hidden_state)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in ALL if family not in ("vit", "deit")])
def test_every_family_has_the_task(
    paired: Path, family: str, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    trainer = quiet_trainer(max_epochs=2, callbacks=[StructuredPruning(removed_macs_fraction=0.2)])
    AutoModel.from_config(tiny_config(family)).save_pretrained(paired / "body")
    module, data = module_of(pretrained=str(paired / "body")), data_in(paired)
    trainer.fit(module, data)
    assert manifest_of(module.model)
    assert trainer.callback_metrics["val_spearman"] > 0.2
    save_compressed(module.model, paired / "saved", data.tokenizer)
    again = module_of(pretrained=str(paired / "saved"))
    quiet_trainer(max_epochs=0).fit(again, data_in(paired))
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(again.eval()(batch), module.eval()(batch))


@pytest.mark.slow
def test_commands_on_a_saved_model(paired: Path, run: Callable[..., tuple[object, str]]) -> None:
    data = [
        "--data", "lightning_compress.data.SentencePairDataModule", "--data.path", paired,
        "--data.max_length", 24, "--data.cache_dir", paired / "cache", "--data.score_range",
        "[0, 5]",
    ]  # fmt: skip
    model = ["--model.task", "sentence-similarity", "--model.config", json.dumps(CONFIG),
             "--model.learning_rate", 2e-3, "--data.tokenizer", paired / "tokenizer"]  # fmt: skip
    trainer = ["--trainer.accelerator", "cpu", "--trainer.logger.save_dir", paired / "logs",
               "--trainer.callbacks+", "lightning_compress.callbacks.CompressionBenchmark",
               "--trainer.callbacks.runtimes", "[eager]", "--trainer.callbacks.seconds", 0.02,
               "--trainer.callbacks.precisions", "[fp32]"]  # fmt: skip
    code, printed = run("fit", *data, *model, *trainer, "--trainer.max_epochs", 2)
    assert code == 0, printed
    folder = paired / "logs" / "fit" / "version_0"
    (checkpoint,) = folder.rglob("epoch*.ckpt")

    lines = {}
    for name, more in (("pairs", []), ("texts", ["--data.second", "null"])):
        saved = ["--trainer.logger.save_dir", paired / name]
        code, printed = run(
            "predict", *data, *more, *model, *trainer, *saved, "--ckpt_path", checkpoint
        )
        assert code == 0, printed
        (path,) = (paired / name).rglob("predictions.jsonl")
        lines[name] = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["row"] for line in lines[name]] == list(range(60))
    assert all(-1 <= line["similarity"] <= 1.0001 for line in lines["pairs"])
    assert {len(line["embedding"]) for line in lines["texts"]} == {32}

    timing = ["--measure.seconds", 0.02, "--measure.latency_examples", 4]
    run("benchmark", folder / "model", *data, "--measure.runtimes", "[eager]",
        "--measure.precisions", "[fp32]", *timing, "--output", paired / "measured")  # fmt: skip
    told = json.loads((paired / "measured" / "report.json").read_text())
    ours = json.loads((folder / "report.json").read_text())
    assert told["rows"][0]["metrics"] == pytest.approx(ours["rows"][0]["metrics"], abs=1e-5)

    pytest.importorskip("onnxruntime")
    target = ["--format", "onnx", "--output", paired / "onnx"]
    _, printed = run("export", folder / "model", *data, *target)
    assert "the logits differ from PyTorch's by at most" in printed
