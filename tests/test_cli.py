"""The command line as a user meets it."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from lightning_compress.cli import main as cli
from lightning_compress.data import TextClassificationDataModule
from lightning_compress.models.masks import masks_of
from lightning_compress.modules import FineTuningModule
from lightning_compress.saving import load_compressed, save_compressed

RECIPE = """
trainer:
  accelerator: cpu
  max_epochs: 2
  logger: {{init_args: {{save_dir: {folder}/logs}}}}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{monitor: val_accuracy, mode: max}}
    - class_path: lightning_compress.callbacks.CompressionBenchmark
      init_args: {{runtimes: [eager], precisions: [fp32], latency_examples: 5, seconds: 0.05}}
    - class_path: lightning_compress.callbacks.IterativeMagnitudePruning
      init_args: {{sparsity: 0.5}}
model:
  config:
    model_type: bert
    hidden_size: 16
    num_hidden_layers: 1
    num_attention_heads: 2
    intermediate_size: 32
    max_position_embeddings: 32
  learning_rate: 1e-3
data:
  path: {folder}
  tokenizer: {folder}/tokenizer
  max_length: 32
  batch_size: 8
  cache_dir: {folder}/cache
"""


@pytest.fixture
def recipe(text_files):
    path = text_files / "recipe.yaml"
    path.write_text(RECIPE.format(folder=text_files))
    return path


def test_the_overview_names_every_command(run):
    code, printed = run("--help")
    assert code == 0
    assert all(command in printed for command in cli.COMMANDS)
    code, printed = run("fitt")
    assert code == 2
    assert "invalid choice: 'fitt'" in printed


@pytest.mark.slow
def test_fit_ends_with_the_report_and_a_model_that_reloads(recipe, text_files, run):
    code, printed = run("fit", "--config", recipe)
    assert code == 0, printed
    assert "Warning" not in printed
    folder = text_files / "logs" / "recipe" / "version_0"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.yaml", "checkpoints", "model", "dense", "report.json", "report.md"}
    assert any(name.startswith("events.out.tfevents") for name in names)
    report = json.loads((folder / "report.json").read_text())
    assert [row["model"] for row in report["rows"]] == ["dense", "compressed"]
    model = load_compressed(folder / "model")
    pruned = sum(int((~mask).sum()) for mask in masks_of(model).values())
    total = sum(mask.numel() for mask in masks_of(model).values())
    assert abs(pruned - total / 2) <= 1
    weights = dict(model.named_parameters())
    assert all((weights[name][~mask] == 0).all() for name, mask in masks_of(model).items())

    again = text_files / "again"
    options = {
        "--baseline": folder / "dense",
        "--data.path": text_files,
        "--data.max_length": 32,
        "--data.cache_dir": text_files / "cache",
        "--measure.runtimes": "[eager]",
        "--measure.precisions": "[fp32]",
        "--measure.seconds": 0.05,
        "--output": again,
    }
    pairs = [part for pair in options.items() for part in pair]
    code, printed = run("benchmark", folder / "model", *pairs)
    assert code == 0, printed
    rows = json.loads((again / "report.json").read_text())["rows"]
    for one, other in zip(rows, report["rows"], strict=True):
        same = ("model", "techniques", "metrics", "nonzero_parameters", "macs", "size_bytes")
        assert [one[key] for key in same] == [other[key] for key in same]
    assert rows[1]["techniques"] == ["magnitude_pruning"]

    best = (folder / "checkpoints").glob("epoch*.ckpt")
    checkpoint = max(best, key=lambda path: path.stat().st_mtime)
    for command in ("validate", "test", "predict"):
        code, printed = run(command, "--config", recipe, "--ckpt_path", checkpoint)
        assert code == 0, printed
    (predictions,) = text_files.glob("logs/recipe/*/predictions.jsonl")
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert len(rows) == 40
    assert rows[0].keys() == {"row", "example_id", "class", "label", "probabilities", "logits"}
    assert [row["row"] for row in rows] == list(range(40))
    assert [row["row"] for row in rows] == [row["example_id"] % 2**40 for row in rows]
    assert all(row["label"] == ["bad", "good"][row["class"]] for row in rows)
    right = sum((row["example_id"] % 2) == row["class"] for row in rows) / len(rows)
    assert right == pytest.approx(report["rows"][1]["metrics"]["accuracy"])


@pytest.mark.slow
def test_the_command_printed_after_ctrl_c_resumes_in_the_same_folder(recipe, text_files, run):
    command = [sys.executable, "-c", "from lightning_compress.cli.main import main; main()"]
    command += ["fit", "--config", str(recipe), "--trainer.max_epochs", "2000"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Tests that run in the background start with Ctrl-C ignored, and so would the run.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    folder = text_files / "logs" / "recipe" / "version_0"
    deadline = time.monotonic() + 180
    while not list(folder.glob("checkpoints/*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    found = re.search(r"lightning-compress (fit --resume \S+)", printed)
    assert found, printed
    state = torch.load(folder / "checkpoints" / "latest.ckpt")
    epochs = state["epoch"] + 2
    code, printed = run(*found[1].split(), "--trainer.max_epochs", epochs)
    assert code == 0, printed
    assert (folder / "report.json").is_file()
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.write_bytes(b"PK not a checkpoint"), "damaged or no checkpoint"),
        (lambda path: torch.save({"a": 1}, path), "not a Lightning checkpoint"),
    ],
)
def test_a_bad_checkpoint_is_named_before_anything_is_built(
    recipe, text_files, run, damage, message
):
    path = text_files / "a.ckpt"
    damage(path)
    code, printed = run("fit", "--config", recipe, "--ckpt_path", path)
    assert code == 2
    assert (
        f"error: ckpt_path: {path}" in printed
        or f"error: ckpt_path: there is no file {path}" in printed
    )
    assert message in printed
    assert "Traceback" not in printed
    assert not (text_files / "logs").exists()


def test_a_truncated_checkpoint_is_named(recipe, text_files, run):
    path = text_files / "a.ckpt"
    torch.save({"state_dict": {"w": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    code, printed = run("test", "--config", recipe, "--ckpt_path", path)
    assert code == 2
    assert "was it cut off" in printed


def test_a_callback_given_twice_is_named(recipe, run, text_files):
    again = text_files / "again.yaml"
    again.write_text(
        "trainer: {callbacks+: {class_path: lightning_compress.callbacks."
        "IterativeMagnitudePruning, init_args: {sparsity: 0.5}}}"
    )
    code, printed = run("fit", "--config", recipe, "--config", again)
    assert code == 2
    assert "IterativeMagnitudePruning" in printed
    assert "twice" in printed


def test_a_log_folder_that_cannot_be_written_is_named(recipe, run, text_files):
    (text_files / "logs").write_text("a file")
    code, printed = run("fit", "--config", recipe)
    assert code == 2
    assert "trainer.logger" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--data.path", "nowhere.csv", "data.path"),
        ("--data.label", "colour", "data.label"),
        ("--model.pretrained", "no/such", "model.pretrained"),
        ("--trainer.callbacks.sparsity", "1.5", "sparsity"),
        ("--trainer.accelerator", "cuda", "accelerator"),
        ("--trainer.precision", "17", "precision"),
    ],
)
def test_a_wrong_option_is_one_clear_line(recipe, run, option, value, named):
    code, printed = run("fit", "--config", recipe, option, value)
    assert code == 2
    assert named in printed
    assert "Traceback" not in printed


def test_a_loss_that_is_not_a_number_is_one_line_and_the_state_before_it(recipe, run, text_files):
    options = {"--model.learning_rate": 1e38, "--trainer.gradient_clip_val": "null"}
    code, printed = run("fit", "--config", recipe, *[part for o in options.items() for part in o])
    assert code == 2
    assert re.search(r"error: the loss is \w+ at step 1 .*model\.learning_rate", printed)
    (path,) = text_files.glob("logs/recipe/version_0/checkpoints/latest.ckpt")
    assert torch.load(path)["global_step"] == 1


def test_without_a_logger_the_run_still_has_its_folder(recipe, run, text_files, monkeypatch):
    monkeypatch.chdir(text_files)
    before = {path.name for path in text_files.iterdir()}
    options = ["--trainer.logger", "false", "--trainer.max_steps", "1"]
    code, printed = run("fit", "--config", recipe, "--trainer.fast_dev_run", "true", *options)
    assert code == 0, printed
    assert {path.name for path in text_files.iterdir()} - before <= {"cache"}


def test_benchmark_names_a_tokenizer_that_does_not_fit(tiny_model, text_files, run):
    names = {0: "bad", 1: "good"}
    tiny_model("bert", vocab_size=50, id2label=names).save_pretrained(text_files / "model")
    options = {
        "--data.path": text_files,
        "--data.tokenizer": text_files / "tokenizer",
        "--data.max_length": 32,
        "--data.cache_dir": text_files / "cache",
        "--output": text_files / "out",
    }
    pairs = [part for pair in options.items() for part in pair]
    code, printed = run("benchmark", text_files / "model", *pairs)
    assert code == 2
    assert "data.tokenizer" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("command", ["benchmark", "export"])
def test_ctrl_c_ends_in_a_line(command, run, monkeypatch):
    def stopped(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"lightning_compress.cli.{command}.run_{command}", stopped)
    code, printed = run(command, "model")
    assert code == 130
    assert printed == "\ninterrupted\n"


def test_there_is_one_copy_of_the_callbacks():
    code = (
        "import sys; sys.path.insert(0, ''); "
        "import lightning_compress.cli.trainer, lightning_compress.callbacks; "
        "assert 'callbacks' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


DISTILLATION = """
trainer:
  accelerator: cpu
  max_epochs: 2
  logger: {{init_args: {{save_dir: {folder}/logs}}}}
  callbacks:
    - class_path: lightning_compress.callbacks.CompressionBenchmark
      init_args: {{baseline: {folder}/teacher, seconds: 0.05}}
model:
  class_path: lightning_compress.modules.DistillationModule
  init_args:
    config:
      model_type: bert
      hidden_size: 16
      num_hidden_layers: 2
      num_attention_heads: 2
      intermediate_size: 32
      max_position_embeddings: 32
    teacher: {folder}/teacher
    cache_dir: {folder}/cache
    learning_rate: 1e-2
    {options}
data:
  path: {folder}
  tokenizer: {folder}/tokenizer
  max_length: 24
  batch_size: 8
  cache_dir: {folder}/cache
"""


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("losses: {soft_targets: {temperature: -1}}",
         r"losses\.soft_targets\.temperature.*positive.*-1"),
        ("losses: {soft_targets: {temperature: [2, 0]}}", r"losses\.soft_targets\.temperature"),
        ("losses: {hidden_states: {layers: {0: 9}}}", r"layer 9 of the teacher.*layers 0 to 1"),
        ("losses: {hidden_states: {layers: every}}", r"layers"),
        ("losses: {task: null, soft_targets: null}", r"model\.losses are all null"),
        ("losses: {softtargets: {weight: 1}}", r"softtargets"),
        ("teacher_cache: sometimes", r"teacher_cache"),
        ("top_k: 0", r"model\.top_k must be at least 1"),
        ("every_nth_layer: 2", r"model\.every_nth_layer.*model\.config\.model_type.*one of them"),
        ("", r"model\.teacher is no better than chance.*fine-tune it"),
    ],
)  # fmt: skip
def test_what_cannot_be_distilled_is_one_clear_line(tiny_bert, text_files, run, options, named):
    tiny_bert.config.id2label = {0: "bad", 1: "good"}
    tiny_bert.save_pretrained(text_files / "teacher")
    recipe = text_files / "distil.yaml"
    recipe.write_text(DISTILLATION.format(folder=text_files, options=options))
    code, printed = run("fit", "--config", recipe)
    assert code == 2
    errors = [line for line in printed.splitlines() if "error: " in line]
    assert len(errors) == 1, printed
    assert re.search(named, printed.split("error: ")[1], re.DOTALL), printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_a_recipe_that_distils(text_files, run, quiet_trainer, caplog):
    data = TextClassificationDataModule(
        path=str(text_files), tokenizer=str(text_files / "tokenizer"), max_length=24, batch_size=8
    )
    torch.manual_seed(0)
    config = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2,
              "num_attention_heads": 4, "intermediate_size": 64,
              "max_position_embeddings": 32}  # fmt: skip
    teacher = FineTuningModule(config=config, learning_rate=3e-3)
    quiet_trainer(max_epochs=15).fit(teacher, datamodule=data)
    save_compressed(teacher.model, text_files / "teacher", data.tokenizer)
    recipe = text_files / "distil.yaml"
    options = (
        "losses: {task: {weight: [1, 0.1]}, soft_targets: {temperature: [4, 1]}, "
        "hidden_states: {layers: {1: 0}}}"
    )
    recipe.write_text(DISTILLATION.format(folder=text_files, options=options))
    arguments = ["--config", recipe, "--trainer.callbacks.runtimes", "[eager]",
                 "--trainer.callbacks.precisions", "[fp32]",
                 "--trainer.callbacks.seconds", "0.05"]  # fmt: skip
    code, printed = run("fit", *arguments)
    assert code == 0, printed
    assert "Warning" not in printed
    assert "The teacher on the validation split: accuracy" in caplog.text
    folder = text_files / "logs" / "distil" / "version_0"
    rows = json.loads((folder / "report.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {"dense", "compressed"}
    student = load_compressed(folder / "model")
    assert student.config.hidden_size == 16
    (checkpoint,) = (folder / "checkpoints").glob("epoch*.ckpt")
    for arguments_of in (["test", *arguments], ["fit", *arguments, "--trainer.max_epochs", "3"]):
        code, printed = run(*arguments_of, "--ckpt_path", checkpoint)
        assert code == 0, printed


def test_options_changed_for_a_resume_are_refused_and_the_recipe_tells_the_truth(
    recipe, text_files, run
):
    quick = ("--trainer.max_epochs", 1, "--trainer.limit_train_batches", 2)
    code, printed = run("fit", "--config", recipe, *quick, "--trainer.limit_test_batches", 1)
    assert code == 0, printed
    folder = next((text_files / "logs").rglob("config.yaml")).parent
    before = (folder / "config.yaml").read_text()
    checkpoint = next(folder.rglob("*.ckpt"))
    for option, value, named in (
        ("--trainer.callbacks.sparsity", 0.75, "began with sparsity: 0.5 and cannot go on"),
        ("--model.learning_rate", 0.5, "began with learning_rate: 0.001 and cannot go on"),
    ):
        changed = (*quick, option, value, "--ckpt_path", checkpoint)
        code, printed = run("fit", "--config", recipe, *changed)
        assert code == 2
        assert named in printed
        assert (folder / "config.yaml").read_text() == before


def test_a_run_that_ends_before_its_target_exits_with_one_and_reports_it(recipe, text_files, run):
    options = ("--trainer.max_time", "00:00:00:01", "--trainer.limit_test_batches", 1)
    missed = "IterativeMagnitudePruning: the run ended at step"
    with pytest.warns(UserWarning, match=missed):
        code, _ = run("fit", "--config", recipe, "--trainer.max_epochs", 9999, *options)
    assert code not in (0, 2)
    assert missed in str(code)
    report = json.loads(next((text_files / "logs").rglob("report.json")).read_text())
    assert [note[: len(missed)] for note in report["notes"]] == [missed]
    assert not list((text_files / "logs").rglob("model"))  # it is dense


@pytest.mark.slow
@pytest.mark.parametrize("single", [True, False])
def test_one_file_of_ones_own_and_no_test_split(single, recipe, text_files, run, caplog):
    options = ["--data.path", text_files / "train.csv"] if single else [
        "--data.splits", "{train: train.csv}"]  # fmt: skip
    code, printed = run("fit", "--config", recipe, *options)
    assert code == 0, printed
    folder = text_files / "logs" / "recipe" / "version_0"
    assert load_compressed(folder / "model").config.id2label == {0: "bad", 1: "good"}
    assert (folder / "report.json").is_file() == single
    assert ("there will be no report" in caplog.text) != single
