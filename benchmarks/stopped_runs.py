"""Runs that are stopped at random moments: is anything lost, unequal or left behind?

    python benchmarks/stopped_runs.py [--kills 216] [--seed 0] [--recipes heads qat ...]
        [--two-processes 12]

Each technique trains a tiny BERT on 320 short texts by ``lightning-compress fit``, once without a
stop. Then it is stopped again and again, at a random moment between its start and its end: by
SIGKILL, by SIGTERM, by Ctrl-C, and by Ctrl-C twice; of two processes all of the group get the
signal, but SIGKILL goes to the first alone. It goes on with ``fit --resume`` where a checkpoint was
written, else it starts again. In the end there must be a report, and the same weights, bit for bit.

Counted are: runs that could not go on or had no report (lost), other weights (unequal), processes
that are alive 10 seconds after the end of the first (orphans), and files in the temporary folder or
unfinished ones in the run's after the second run (left-overs). The seconds are those from the first
signal to the end of the process.

Prints a table. Runs are forked from a process that has imported everything.
"""

import argparse
import json
import multiprocessing.util
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from safetensors.torch import load_file

from lightning_compress.cli.main import main as command
from lightning_compress.cli.trainer import run_trainer  # noqa: F401  # imports all, once

MARK = "STOPPED_RUNS_ID"
ROWS = {"train": 320, "test": 40}
WORDS = 95
TINY = {
    "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 32, "max_position_embeddings": 32,
}  # fmt: skip
BENCHMARK = {
    "class_path": "lightning_compress.callbacks.CompressionBenchmark",
    "init_args": {"runtimes": ["eager"], "precisions": ["fp32"], "seconds": 0.1,
                  "latency_examples": 8},
}  # fmt: skip
SIGNALS = ("SIGKILL", "SIGTERM", "Ctrl-C", "Ctrl-C twice")


def callback(name, **options):
    """A callback as it stands in a recipe."""
    return {"class_path": f"lightning_compress.callbacks.{name}", "init_args": options}


def module(name, **options):
    """The options of another module than FineTuningModule."""
    return {"class_path": f"lightning_compress.modules.{name}", "init_args": options}


STEPS = {"pruning_steps": 3, "warmup": 0.2, "recovery": 0.2, "calibration_examples": 32}
RECIPES: dict[str, dict[str, Any]] = {
    "dense": {},
    "magnitude": {"callbacks": [callback("IterativeMagnitudePruning", sparsity=0.5)]},
    "heads": {"callbacks": [callback("HeadPruning", removed_fraction=0.5, **STEPS)]},
    "neurons": {"callbacks": [callback("NeuronPruning", removed_fraction=0.5, **STEPS)]},
    "layers": {"callbacks": [callback("LayerPruning", removed_count=2, warmup=0.2,
                                      calibration_examples=32)]},
    "structured": {"callbacks": [callback("StructuredPruning", removed_macs_fraction=0.3,
                                          **STEPS)]},
    "post-training pruning": {"callbacks": [callback("PostTrainingPruning",
                                                     removed_macs_fraction=0.3)]},
    "post-training quantization": {"callbacks": [
        callback("PostTrainingQuantization", quantization={"scheme": "int8-static"})]},
    "quantization-aware": {"callbacks": [
        callback("QuantizationAwareTraining", quantization={"scheme": "int8-dynamic"},
                 start=0.3)]},
    "substitution": {"callbacks": [callback("EncoderBlockSubstitution", num_groups=1,
                                            layers_per_group=2, width=16, distil_steps=100,
                                            calibration_examples=64)]},
    "distillation": {"model": ("DistillationModule", {"teacher": "teacher"})},
    "distilled, pruned, quantized": {
        "model": ("QATModule", {"teacher": "teacher", "start": 0.6,
                                "quantization": {"scheme": "int8-dynamic"}}),
        "callbacks": [
            callback("StructuredPruning", removed_macs_fraction=0.3, **STEPS | {"recovery": 0.5})
        ],
    },
    "exported": {"runtimes": ["eager", "onnxruntime"]},
}  # fmt: skip


@dataclass
class Found:
    """What became of the stopped runs of a technique."""

    stops: int = 0
    faults: Counter = field(default_factory=Counter)
    seconds: dict = field(default_factory=lambda: defaultdict(list))
    details: list = field(default_factory=list)


def write_texts(folder):
    """Texts with two classes, and a tokenizer of whole words."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    for name, count in ROWS.items():
        lines = ["text,label"]
        for _ in range(count):
            words = [draw.randint(3, WORDS - 1) for _ in range(draw.randint(4, 20))]
            label = draw.choice(["good", "bad"])
            words[draw.randrange(len(words))] = 1 if label == "good" else 2
            lines.append(" ".join(f"w{word}" for word in words) + f",{label}")
        (folder / f"{name}.csv").write_text("\n".join(lines))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.txt").write_text("\n".join([*special, *(f"w{i}" for i in range(WORDS))]))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    options = dict(zip(names, special, strict=True))
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({**options, "tokenizer_class": "BertTokenizer", "model_max_length": 64})
    )


def recipe_of(name, texts, processes, epochs=4):
    """The whole recipe of a technique."""
    found = RECIPES[name]
    options = {"config": TINY, "learning_rate": 1e-3}
    model: Any = options
    if "model" in found:
        kind, more = found["model"]
        model = module(kind, **options, **more | {"teacher": str(texts / "teacher")})
    benchmark = json.loads(json.dumps(BENCHMARK))
    benchmark["init_args"]["runtimes"] = found.get("runtimes", ["eager"])
    best = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"monitor": "val_loss"}}  # fmt: skip
    return {
        "trainer": {
            "max_epochs": epochs, "accelerator": "cpu", "devices": processes,
            "strategy": "auto" if processes == 1 else "ddp",
            "enable_progress_bar": False, "enable_model_summary": False,
            "callbacks": [*found.get("callbacks", []), best, benchmark],
        },
        "model": model,
        "data": {"path": str(texts), "tokenizer": str(texts / "tokenizer"), "max_length": 32,
                 "batch_size": 16, "cache_dir": "cache"},
    }  # fmt: skip


class Process:
    """``lightning-compress`` in a folder of its own, in a session of its own.

    Args:
        place: working directory; its folder ``tmp`` is the temporary folder.
        arguments: of the command.
        forked: from this process, or started anew.
    """

    def __init__(self, place, arguments, forked=True):
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        (place / "tmp").mkdir(exist_ok=True)
        changes = {
            MARK: self.mark, "TMPDIR": str(place / "tmp"), "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(place / "inductor"),
        }  # fmt: skip
        self.output = place / f"output-{len(list(place.glob('output-*')))}.txt"
        if forked:
            self.pid = os.fork()
            if self.pid == 0:
                self._become(place, arguments, changes)
        else:
            # A file, which Lightning starts again for each further process.
            script = str(Path(sys.executable).with_name("lightning-compress"))
            started = subprocess.Popen(
                [sys.executable, script, *arguments], cwd=place, env=os.environ | changes,
                stdout=self.output.open("w"), stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            self.pid = started.pid
            self._popen = started  # keeps the pid

    def _become(self, place, arguments, changes):
        """Run the command in the child process, and never return."""
        status = 1
        try:
            os.setsid()
            os.chdir(place)
            os.environ.update(changes)
            tempfile.tempdir = None
            handle = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(handle, stream)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.argv = ["lightning-compress", *arguments]
            torch.set_num_threads(1)
            command()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:  # noqa: BLE001  # the process ends here, whatever it was
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            multiprocessing.util._exit_function()  # what Python does at the end of a process
            os._exit(status)

    def wait(self, seconds):
        """The exit status, negative for a signal; None if it is still running."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        return None

    def send(self, name):
        """Send a signal: Ctrl-C to the whole group as a terminal does, others to the process."""
        if name.startswith("Ctrl-C"):
            os.killpg(self.pid, signal.SIGINT)
            if name.endswith("twice"):
                time.sleep(0.2)
                os.killpg(self.pid, signal.SIGINT)
        else:
            os.kill(self.pid, getattr(signal, name))

    def alive(self, patience_s=10.0):
        """Processes that this one has started and that are still there after a while."""
        end = time.monotonic() + patience_s
        while (found := list(self._others())) and time.monotonic() < end:
            time.sleep(0.1)
        for one in found:
            one.kill()
        return found

    def _others(self):
        for one in psutil.process_iter():
            try:
                marked = one.environ().get(MARK) == self.mark
                ours = one.pid != self.pid and (marked or os.getsid(one.pid) == self.pid)
                if ours and one.status() != psutil.STATUS_ZOMBIE:
                    yield one
            except (psutil.Error, OSError):
                continue


def weights_of(place):
    """The tensors of the model that the only run in a folder has led to; None without a report."""
    runs = list(place.glob("logs/recipe/version_*"))
    if len(runs) != 1 or not (runs[0] / "report.json").is_file():
        return None
    (file,) = (runs[0] / "model").glob("*model*.safetensors")
    return load_file(file)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def left_over(place):
    """Files in the temporary folder, and unfinished ones beside the results."""
    # ONNX Runtime keeps a file of its own there.
    temporary = [path for path in (place / "tmp").iterdir() if path.name != ".ses"]
    hidden = [path for path in (place / "logs").rglob(".*") if not path.name.startswith(".gitkeep")]
    return [*temporary, *hidden]


def stopped(place, arguments, name, moment_s, forked, found, whole):
    """Stop a run, let it go on, and count what is wrong."""
    process = Process(place, arguments, forked)
    status = process.wait(moment_s)
    if status is not None:
        return False  # it was faster this time
    begun = time.monotonic()
    process.send(name)
    status = process.wait(60)
    seconds = time.monotonic() - begun
    if status is None:
        found.faults["hung"] += 1
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    found.stops += 1
    found.seconds[name].append(seconds)
    faults = []
    if process.alive():
        faults.append("orphans")
    runs = list(place.glob("logs/recipe/version_*"))
    resumable = runs and list((runs[0] / "checkpoints").glob("*.ckpt"))
    again = ["fit", "--resume", str(runs[0])] if resumable else arguments
    if not resumable:
        shutil.rmtree(place / "logs", ignore_errors=True)
    second = Process(place, again, forked)
    status = second.wait(300)
    weights = weights_of(place) if status == 0 else None
    if weights is None:
        faults.append("lost")
    elif not same(weights, whole):
        faults.append("unequal")
    elif left := left_over(place):
        faults.append("left-overs")
        found.details.append(f"{name} at {moment_s:.2f} s: {[path.name for path in left][:3]}")
    if "Traceback" in process.output.read_text() + second.output.read_text():
        faults.append("tracebacks")
    found.faults.update(faults)
    if faults:
        kept = place.with_name(f"{place.name}-{'-'.join(faults)}-{time.monotonic_ns()}")
        shutil.copytree(place, kept, symlinks=True)
        found.details.append(f"{name} at {moment_s:.2f} s: {', '.join(faults)}, see {kept.name}")
    return True


def study(name, root, texts, kills, processes, draw, found):
    """Stop one technique so many times."""
    forked = processes == 1
    place = root / f"{name.replace(', ', '-').replace(' ', '-')}-{processes}"
    place.mkdir(parents=True)
    recipe = place / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_of(name, texts, processes)))
    arguments = ["fit", "--config", str(recipe)]
    begun = time.monotonic()
    process = Process(place, arguments, forked)
    if process.wait(300) != 0:
        raise SystemExit(f"{name} fails without a stop:\n{process.output.read_text()[-2000:]}")
    duration = time.monotonic() - begun
    whole = weights_of(place)
    done = 0
    while done < kills:
        for kept in ("logs", "cache", "tmp"):
            shutil.rmtree(place / kept, ignore_errors=True)
        signal_name = SIGNALS[done % len(SIGNALS)]
        done += stopped(
            place, arguments, signal_name, draw.uniform(0, duration), forked, found, whole
        )
    print(f"{name}, {processes} process(es): {found.stops} stops, {dict(found.faults)}", flush=True)


def teacher(root, texts):
    """Train the teacher of the recipes that have one."""
    place = root / "teacher"
    place.mkdir()
    recipe = place / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_of("dense", texts, 1, epochs=20)))
    if Process(place, ["fit", "--config", str(recipe)]).wait(300) != 0:
        raise SystemExit("the teacher could not be trained")
    (model,) = place.glob("logs/recipe/version_0/model")
    shutil.copytree(model, texts / "teacher")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=216, help="in a single process, of all")
    parser.add_argument("--two-processes", type=int, default=12, help="stops of two processes")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    root = Path(tempfile.mkdtemp(prefix="stopped-runs-"))
    texts = root / "texts"
    write_texts(texts)
    teacher(root, texts)
    share = -(-arguments.kills // len(arguments.recipes))
    results = {}
    try:
        every_study(arguments, root, texts, share, draw, results)
    finally:
        show(results)


def every_study(arguments, root, texts, share, draw, results):
    """Stop all techniques, and one of two processes."""
    for name in arguments.recipes:
        results[name] = Found()
        study(name, root, texts, share, 1, draw, results[name])
    if arguments.two_processes:
        results["heads, two processes"] = Found()
        study("heads", root, texts, arguments.two_processes, 2, draw,
              results["heads, two processes"])  # fmt: skip


def show(results):
    kinds = ("lost", "unequal", "hung", "orphans", "left-overs", "tracebacks")
    print(f"\n| technique | stops | {' | '.join(kinds)} |")
    print("| --- " * (len(kinds) + 2) + "|")
    for name, found in results.items():
        counts = " | ".join(str(found.faults[kind]) for kind in kinds)
        print(f"| {name} | {found.stops} | {counts} |")
    total = " | ".join(str(sum(f.faults[kind] for f in results.values())) for kind in kinds)
    print(f"| all | {sum(found.stops for found in results.values())} | {total} |")
    print("\n| signal | median seconds to the end | longest |\n| --- | --- | --- |")
    for name in SIGNALS:
        seconds = [one for found in results.values() for one in found.seconds[name]]
        if seconds:
            print(f"| {name} | {statistics.median(seconds):.2f} | {max(seconds):.2f} |")
    for name, found in results.items():
        for line in found.details:
            print(f"{name}: {line}")


if __name__ == "__main__":
    main()
