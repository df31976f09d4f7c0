"""Exported int8 models on a CPU without VNNI, emulated: do they compute what PyTorch computes here?

    python benchmarks/emulated_cpu.py --model FOLDER [--schemes int8-static int8-dynamic]
        [--examples 872] [--cpu Haswell]

Needs QEMU (Debian: qemu-user-static), which executes AVX2 instructions exactly, saturation
included, many times slower than a CPU. Quantizes a saved SST-2 classifier to int8-static and
int8-dynamic, with weights within 63 and in full range, exports it for ONNX Runtime and OpenVINO,
and computes its logits in PyTorch on this CPU. ONNX Runtime then runs on the emulated CPU.
OpenVINO would take hours there; it runs on this one with oneDNN limited to AVX2, where some
precisions do not run. Prints the largest difference of logits and the equal predictions.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from structured_table import DATA

from lightning_compress import load_compressed, quantize_
from lightning_compress.data import TextClassificationDataModule
from lightning_compress.export.format import ExportOptions
from lightning_compress.export.formats import FORMATS
from lightning_compress.export.openvino import inference_options
from lightning_compress.export.tracing import input_names, named_inputs
from lightning_compress.quantization import QuantizationConfig

SCHEMES = ("int8-static", "int8-dynamic")
ROWS = (
    ("onnxruntime", {}),
    ("onnxruntime", {"session.x64quantprecision": "1"}),
    ("openvino", {}),
)
CALIBRATION, BATCH = 512, 32


def batches_of(folder, examples):
    """Calibration batches of the training split, and batches of the test split."""
    data = TextClassificationDataModule(
        **DATA["sst2"], tokenizer=str(folder), seed=0, validation_fraction=0.05, batch_size=BATCH
    )
    data.prepare_data()
    data.setup("fit")
    data.setup("test")

    def first(loader, count):
        taken = [batch for batch, _ in zip(loader, range(math.ceil(count / BATCH)), strict=False)]
        return [{k: v for k, v in batch.items() if k != "labels"} for batch in taken]

    return first(data.train_dataloader(), CALIBRATION), first(data.test_dataloader(), examples)


def write(folder, schemes, examples, scratch):
    """Write every model in every form, the inputs, and PyTorch's logits here."""
    calibration, batches = batches_of(folder, examples)
    names = input_names(load_compressed(folder))
    arrays = {
        f"{number} {name}": value.numpy()
        for number, batch in enumerate(batches)
        for name, value in zip(names, named_inputs(names, batch), strict=True)
    }
    np.savez(scratch / "inputs.npz", **arrays)
    for scheme in schemes:
        for full_range in (False, True):
            model = load_compressed(folder).eval()
            config = QuantizationConfig(scheme, full_range=full_range)
            quantize_(model, config, calibration_batches=calibration)
            place = scratch / f"{scheme} {127 if full_range else 63}"
            for target in (FORMATS["onnx"], FORMATS["openvino"]):
                (place / target.runtime).mkdir(parents=True)
                target.write(model, place / target.runtime, ExportOptions(scheme))
            np.save(place / "here.npy", logits_of(model, batches))


def logits_of(model, batches):
    names = input_names(model)
    with torch.inference_mode():
        return np.concatenate(
            [
                model(**dict(zip(names, named_inputs(names, batch), strict=True))).logits.numpy()
                for batch in batches
            ]
        )


# Of few packages, for importing takes long there. Arguments: folder, runtime and its options.
THERE = """
import json, sys, numpy
folder, runtime, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
inputs = numpy.load(folder + "/../inputs.npz")
count = 1 + max(int(name.split()[0]) for name in inputs)
batches = [
    {n.split()[1]: inputs[n] for n in inputs if n.startswith(f"{i} ")} for i in range(count)
]
if runtime == "onnxruntime":
    import onnxruntime
    settings = onnxruntime.SessionOptions()
    for name, value in options.items():
        settings.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(folder + "/onnxruntime/model.onnx", settings)
    found = [session.run(["logits"], batch)[0] for batch in batches]
else:
    import openvino
    path = folder + "/openvino/openvino_model.xml"
    compiled = openvino.Core().compile_model(path, "CPU", options)
    found = [compiled(batch)["logits"] for batch in batches]
numpy.save(f"{folder}/{runtime}.npy", numpy.concatenate(found))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a saved SST-2 classifier")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES, choices=SCHEMES)
    parser.add_argument("--examples", type=int, default=872)
    parser.add_argument("--cpu", default="Haswell", help="of QEMU; Haswell has AVX2 and no VNNI")
    parser.add_argument("--qemu", default="qemu-x86_64-static", help="the emulator")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        write(arguments.model, arguments.schemes, arguments.examples, scratch)
        print(f"{arguments.examples} examples, {arguments.cpu} emulated, against PyTorch here\n")
        print("| scheme | weights within | runtime | largest difference | largest logit | equal |")
        print("| --- | --- | --- | --- | --- | --- |", flush=True)
        for place in sorted(one for one in scratch.iterdir() if one.is_dir()):
            scheme, largest = place.name.split()
            for runtime, options in ROWS:
                command = [sys.executable, "-c", THERE, str(place), runtime]
                environment = dict(os.environ)
                if runtime == "openvino":
                    options = inference_options(scheme)
                    environment["ONEDNN_MAX_CPU_ISA"] = "AVX2"
                else:
                    command = [arguments.qemu, "-cpu", arguments.cpu, *command]
                done = subprocess.run(
                    [*command, json.dumps(options)],
                    env=environment,
                    check=False,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                if done.returncode:
                    why = done.stderr.strip().splitlines()[-1:]
                    print(f"| {place.name} | {runtime} failed: {why} |", flush=True)
                    continue
                here, there = np.load(place / "here.npy"), np.load(place / f"{runtime}.npy")
                equal = (here.argmax(1) == there.argmax(1)).mean()
                exact = ", exact option" if "session.x64quantprecision" in options else ""
                difference = np.abs(here - there).max()
                print(
                    f"| {scheme} | {largest} | {runtime}{exact} | {difference:.4f} | "
                    f"{np.abs(here).max():.2f} | {equal:.2%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
