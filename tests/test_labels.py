"""Labels of every form in every command: scores and predictions are by the model's own names."""
# mypy: disable-error-code="union-attr,operator,arg-type,no-untyped-call,index"

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from lightning_compress.cli.benchmark import run_benchmark
from lightning_compress.cli.export import run_export
from lightning_compress.data import TextClassificationDataModule
from lightning_compress.errors import InputError
from lightning_compress.models import remove_heads_
from lightning_compress.modules import DistillationModule, FineTuningModule
from lightning_compress.saving import save_compressed

WORDS = ["zero", "one", "two"]  # the text is a word, the class is its number
SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 16}  # fmt: skip
# The names of a model's outputs 0, 1 (and 2), and the labels of texts of these classes.
FORMS: dict[str, tuple[list[str], list[Any]]] = {
    "names": (["zebra", "ant"], ["zebra", "ant"]),
    "other case": (["zebra", "ant"], ["Zebra", "ANT"]),
    "indices": (["zebra", "ant"], [0, 1]),
    "numbers": (["LABEL_0", "LABEL_1"], [0, 1]),
    "strings": (["LABEL_0", "LABEL_1"], ["0", "1"]),
    "floats": (["LABEL_0", "LABEL_1"], [0.0, 1.0]),
    "booleans": (["LABEL_0", "LABEL_1"], [False, True]),
    "stars": (["5", "1"], [5, 1]),
    "three": (["c", "a", "b"], ["c", "a", "b"]),
    "lists": (["c", "a", "b"], [["c"], ["a"], ["b", "a"]]),
    "vectors": (["c", "a", "b"], [[1.0, 0, 0], [0, 1.0, 0], [0, 1.0, 1.0]]),
    "regression": (["LABEL_0"], [1, 5]),
}
FAST = ["names", "vectors"]
# Untrained models, and one class alone.
pytestmark = pytest.mark.filterwarnings("ignore:The variance of predictions or target")
forms = pytest.mark.parametrize(
    "form", [pytest.param(f, marks=[] if f in FAST else [pytest.mark.slow]) for f in FORMS]
)


def perfect_model(folder: Path, form: str) -> Path:
    """A model that gives every text its labels, by the names of its outputs."""
    names, labels = FORMS[form]
    kind = {"lists": "multi_label_classification", "regression": "regression"}
    config = BertConfig(
        **SIZES, vocab_size=9, id2label=dict(enumerate(names)),
        problem_type=kind.get("lists" if form == "vectors" else form), hidden_dropout_prob=0.0,
        initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(3)  # one that tells the words well apart, so that small weights do
    model = BertForSequenceClassification(config).eval()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "x", *WORDS]))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_max_length=16)
    with torch.no_grad():  # solve for a head that separates the pooled outputs
        texts = tokenizer(WORDS[: len(labels)], return_tensors="pt")
        pooled = model.bert(**texts).pooler_output
        if form == "regression":
            wanted = torch.tensor([[1.0], [5.0]])
        elif form in ("lists", "vectors"):
            wanted = torch.tensor([[2.0, -2, -2], [-2, 2, -2], [-2, 2, 2]])
        else:
            wanted = 4 * torch.eye(len(names)) - 2
        model.classifier.weight.copy_((torch.linalg.pinv(pooled) @ wanted).T)
        model.classifier.bias.zero_()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def write(folder: Path, labels: list[Any], split: str, rows: int = 24) -> None:
    (folder / "data").mkdir(exist_ok=True)
    lines = [
        {"text": WORDS[row % len(labels)], "label": labels[row % len(labels)]}
        for row in range(rows)
    ]
    (folder / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))


def data_of(folder: Path, **options: Any) -> TextClassificationDataModule:
    return TextClassificationDataModule(
        path=str(folder / "data"), tokenizer=str(folder / "model"), max_length=8, batch_size=8,
        cache_dir=str(folder / "cache"), **options,
    )  # fmt: skip


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        str(folder / "model"), "--data.path", str(folder / "data"), "--data.max_length", "8",
        "--data.cache_dir", str(folder / "cache"), "--output", str(folder / "out"), *more,
    ]  # fmt: skip


METRIC = {"regression": "spearman", "lists": "f1", "vectors": "f1"}
QUICK = ["--measure.runtimes", "[eager]", "--measure.precisions", "[fp32]", "--measure.seconds",
         "0.01", "--measure.latency_examples", "2"]  # fmt: skip


@forms
def test_a_trained_model_is_measured_by_its_own_labels(form, tmp_path, quiet_trainer):
    perfect_model(tmp_path, form)
    labels = FORMS[form][1]
    write(tmp_path, labels, "test")
    metric = METRIC.get(form, "accuracy")
    run_benchmark(arguments(tmp_path, *QUICK))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rows"][0]["metrics"][metric] == pytest.approx(1, abs=1e-4)
    module = FineTuningModule(pretrained=str(tmp_path / "model"))
    (found,) = quiet_trainer().test(module, data_of(tmp_path), verbose=False)
    assert found[f"test_{metric}"] == pytest.approx(1, abs=1e-4)
    if form != "regression":  # a file in which all classes but one do not occur
        write(tmp_path, labels[1:2], "test")
        texts = tmp_path / "data" / "test.jsonl"
        texts.write_text(texts.read_text().replace("zero", "one"))
        (found,) = quiet_trainer().test(module, data_of(tmp_path), verbose=False)
        assert found["test_accuracy"] == 1


@forms
def test_continued_training_and_checkpoints_keep_the_labels(form, tmp_path, quiet_trainer):
    perfect_model(tmp_path, form)
    names, labels = FORMS[form]
    for split in ("train", "test"):
        write(tmp_path, labels, split)
    metric = METRIC.get(form, "accuracy")
    module = FineTuningModule(pretrained=str(tmp_path / "model"), learning_rate=1e-9)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, data_of(tmp_path, validation_fraction=0.5))  # rows of every label
    assert trainer.callback_metrics[f"val_{metric}"] == pytest.approx(1, abs=1e-4)
    assert list(module.model.config.id2label.values()) == names
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    # The checkpoint says what its outputs mean, not the folder that it started from.
    config = {"model_type": "bert", **SIZES}
    loaded = FineTuningModule.load_from_checkpoint(tmp_path / "a.ckpt")
    for fresh in (FineTuningModule(config=config), loaded):
        fresh.restored_from = str(tmp_path / "a.ckpt")  # as the command line does
        (found,) = quiet_trainer().test(
            fresh, data_of(tmp_path), ckpt_path=tmp_path / "a.ckpt", verbose=False
        )
        assert found[f"test_{metric}"] == pytest.approx(1, abs=1e-4)
    if form == "names":  # in Python, where nobody has named it before the data were read
        with pytest.raises(InputError, match="the checkpoint has the labels zebra, ant"):
            quiet_trainer().test(
                FineTuningModule(config=config), data_of(tmp_path), ckpt_path=tmp_path / "a.ckpt"
            )
    texts = data_of(tmp_path, splits={"predict": "test.jsonl"})
    fresh = FineTuningModule(config=config)
    fresh.restored_from = str(tmp_path / "a.ckpt")
    found = quiet_trainer().predict(fresh, texts, ckpt_path=tmp_path / "a.ckpt")
    assert found[0]["logits"].shape == (8, len(names))


@forms
def test_a_student_learns_the_labels_of_its_teacher(form, tmp_path, quiet_trainer):
    perfect_model(tmp_path, form)
    names, labels = FORMS[form]
    write(tmp_path, labels, "train", rows=48)
    write(tmp_path, labels, "validation")
    student = DistillationModule(
        config={"model_type": "bert", **SIZES}, teacher=str(tmp_path / "model"),
        teacher_cache="never",
    )  # fmt: skip
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(student, data_of(tmp_path))
    metric = f"val_teacher_{METRIC.get(form, 'accuracy')}"
    assert trainer.callback_metrics[metric] == pytest.approx(1, abs=1e-4)
    assert list(student.model.config.id2label.values()) == names


@pytest.mark.slow
@forms
def test_exports_take_data_with_labels_of_every_form(form, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    perfect_model(tmp_path, form)
    write(tmp_path, FORMS[form][1], "test")
    run_export(arguments(tmp_path, "--format", "onnx"))
    assert (tmp_path / "out" / "README.md").is_file()


@pytest.mark.parametrize("compressed", [False, True])
def test_another_number_of_labels_gets_an_untrained_head(compressed, tmp_path, quiet_trainer):
    perfect_model(tmp_path, "names")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "model")
    if compressed:
        remove_heads_(model, {0: [1]})
        save_compressed(model, tmp_path / "model")
    write(tmp_path, ["c", "a", "b"], "train")
    start = str(tmp_path / "model")
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"), model_max_length=16)
    tokenizer.save_pretrained(start)
    with pytest.raises(InputError, match=r"'b'.* knows only 'zebra', 'ant'.*model\.num_labels"):
        quiet_trainer(max_steps=1).fit(FineTuningModule(pretrained=start), data_of(tmp_path))
    module = FineTuningModule(pretrained=start, num_labels=3, learning_rate=1e-9)
    quiet_trainer(max_steps=1).fit(module, data_of(tmp_path))
    assert module.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert module.model.classifier.weight.shape == (3, 16)
    own = module.model.bert.encoder.layer[0].attention.self.value.weight
    assert torch.allclose(own, model.bert.encoder.layer[0].attention.self.value.weight, atol=1e-6)


@pytest.mark.parametrize("num_labels", [None, 1])
@pytest.mark.parametrize("labels", [[1, 5], ["1", "5"], [1.0, 5.0], [False, True]])
def test_whole_numbers_of_a_regression(labels, num_labels, tmp_path, quiet_trainer):
    perfect_model(tmp_path, "regression")
    write(tmp_path, labels, "train")
    module = FineTuningModule(
        config={"model_type": "bert", **SIZES}, problem_type="regression", num_labels=num_labels
    )
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, data_of(tmp_path))
    assert trainer.callback_metrics["val_mse"] > 0
    assert module.model.config.num_labels == 1


def test_models_of_other_labels_are_not_compared(tmp_path):
    perfect_model(tmp_path, "names")
    write(tmp_path, FORMS["names"][1], "test")
    other = BertForSequenceClassification.from_pretrained(
        tmp_path / "model", id2label={0: "ant", 1: "zebra"}
    )
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="in the same order"):
        run_benchmark(arguments(tmp_path, *QUICK, "--baseline", str(tmp_path / "other")))


def test_names_given_by_hand_must_be_as_many_as_the_outputs(tmp_path, quiet_trainer):
    perfect_model(tmp_path, "numbers")
    write(tmp_path, ["neg", "pos"], "test")
    start = str(tmp_path / "model")
    with pytest.raises(InputError, match=r"only numbered.*model\.config\.id2label"):
        quiet_trainer().test(FineTuningModule(pretrained=start), data_of(tmp_path))
    named = FineTuningModule(pretrained=start, config={"id2label": {0: "neg", 1: "pos"}})
    (found,) = quiet_trainer().test(named, data_of(tmp_path), verbose=False)
    assert found["test_accuracy"] == 1
    both = FineTuningModule(pretrained=start, num_labels=3, config={"id2label": {0: "a", 1: "b"}})
    trainer: L.Trainer = quiet_trainer()
    with pytest.raises(InputError, match=r"id2label names 2 labels and model\.num_labels is 3"):
        trainer.test(both, data_of(tmp_path))
