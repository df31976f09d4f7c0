"""Speed of an int8 BERT of base width, here and in other libraries, in one process.

    OMP_NUM_THREADS=2 python benchmarks/quantization_speed.py [--layers 4] [--seconds 10]
        [--instructions avx2] [--kernel float32]

Measures, interleaved, batches of 8 texts of 128 tokens with random weights, which are as fast as
trained ones: the dense model, and the model without half of its heads and neurons; in PyTorch
(eager, compiled), in ONNX Runtime and in OpenVINO, there with our own scales and with NNCF's; and
PyTorch's older ``torch.ao.quantization`` and, where it is installed, torchao. With fewer
instructions or another kernel, see benchmarks/instruction_sets.py, only what these apply to is
measured. Then prints the bytes on disk of both models with 12 layers, embeddings included, in
float32 and in int8.
"""

import argparse
import copy
import importlib.util
import tempfile
from pathlib import Path

import instruction_sets
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from lightning_compress import quantize_, remove_heads_, remove_neurons_
from lightning_compress.evaluation.footprint import saved_size
from lightning_compress.evaluation.latency import interleaved_times
from lightning_compress.export.format import ExportOptions
from lightning_compress.export.onnx import OnnxProgram, write_onnx
from lightning_compress.export.openvino import OpenVinoFormat, OpenVinoProgram
from lightning_compress.models import modeling_kernels

BATCH, TOKENS, HEADS, NEURONS = 8, 128, 12, 3072
INT8_SCHEMES = ("int8-dynamic", "int8-static")
SCHEMES = (*INT8_SCHEMES, "int8-weight", "int4-weight")
NEVER_SLOWER = 0.9  # of any scheme, with any kernel
TARGETS = {  # by whether the CPU has int8 dot products
    True: {"dense, compile int8-dynamic": 2.55, "dense, compile int8-static": 2.81,
           "halved, compile int8-dynamic": 4.6, "halved, compile int8-static": 5.2},
    False: {"dense, eager int8-dynamic": 1.4, "dense, eager int8-static": 1.4,
            "dense, compile int8-dynamic": 1.6, "dense, compile int8-static": 1.6,
            "halved, compile int8-dynamic": 3.0, "halved, compile int8-static": 3.0},
}  # fmt: skip
BYTES = {"dense": 0.27, "halved": 0.16}


def bert(layers):
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(num_hidden_layers=layers)).eval()


def halved(model):
    made = copy.deepcopy(model)
    layers = range(model.config.num_hidden_layers)
    remove_heads_(made, {layer: range(HEADS // 2) for layer in layers})
    remove_neurons_(made, {layer: range(NEURONS // 2) for layer in layers})
    return made


def quantized(model, scheme, batch):
    made = copy.deepcopy(model)
    quantize_(made, scheme, calibration_batches=[batch])
    return made


def of_torch(model, batch, *, limited):
    """PyTorch's ways: calls by name."""
    ways = {"compile fp32": torch.compile(model, dynamic=True)}
    if not limited:
        ways["eager bf16"] = copy.deepcopy(model).bfloat16()
    for scheme in SCHEMES:
        made = quantized(model, scheme, batch)
        ways[f"eager {scheme}"] = made
        ways[f"compile {scheme}"] = torch.compile(made, dynamic=True)
    return {name: lambda one=one: one(**batch) for name, one in ways.items()}


def of_others(model, batch):
    """Other people's ways in PyTorch."""
    old = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)
    ways = {"torch.ao int8-dynamic": old}
    if importlib.util.find_spec("torchao") is not None:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig
        from torchao.quantization import quantize_ as by_torchao

        made = copy.deepcopy(model)
        by_torchao(made, Int8DynamicActivationInt8WeightConfig())
        ways["torchao int8-dynamic, compile"] = torch.compile(made, dynamic=True)
    return {name: lambda one=one: one(**batch) for name, one in ways.items()}


def of_runtimes(model, batch, scratch, label):
    """Other runtimes: calls by name."""
    threads, ways = torch.get_num_threads(), {}

    def add(name, write, program):
        folder = scratch / f"{label} {name}"
        folder.mkdir()
        write(folder)
        opened = program(folder)
        loaded = opened.load(batch)
        ways[name] = lambda: opened(loaded)

    for scheme in ("fp32", *INT8_SCHEMES):
        one = model if scheme == "fp32" else quantized(model, scheme, batch)
        add(
            f"onnxruntime {scheme}",
            lambda folder, one=one: write_onnx(one, folder),
            lambda folder: OnnxProgram(folder, threads=threads),
        )
        add(
            f"openvino {scheme}",
            lambda folder, one=one, scheme=scheme: OpenVinoFormat().write(
                one, folder, ExportOptions(scheme)
            ),
            lambda folder, scheme=scheme: OpenVinoProgram(
                folder, precision=scheme, threads=threads
            ),
        )
    add(
        "openvino int8-static by NNCF",
        lambda folder: OpenVinoFormat().write(
            model, folder, ExportOptions("int8-static", [batch], nncf=True)
        ),
        lambda folder: OpenVinoProgram(folder, precision="int8-static", threads=threads),
    )
    return ways


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each way")
    arguments = instruction_sets.parse(parser)
    torch._dynamo.config.recompile_limit = 100  # all models share the code that is compiled
    limited = arguments.instructions is not None or arguments.kernel is not None
    targets = {}
    if arguments.kernel != "float32":
        targets = TARGETS[modeling_kernels.CPU_KERNEL == "int_mm"]
    dense = bert(arguments.layers)
    half = halved(dense)
    batch = {"input_ids": torch.randint(1000, 30000, (BATCH, TOKENS))}
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode(False):
        calls = {"dense, eager fp32": lambda: dense(**batch)}
        for label, model in (("dense", dense), ("halved", half)):
            ways = {"eager fp32": lambda: half(**batch)} if model is half else {}
            ways |= of_torch(model, batch, limited=limited)
            if not limited:
                ways |= of_runtimes(model, batch, Path(scratch), label)
            if model is dense and not limited:
                ways |= of_others(model, batch)
            calls |= {f"{label}, {name}": call for name, call in ways.items()}
        with torch.inference_mode():
            times = interleaved_times(
                [[call] for call in calls.values()], seconds=arguments.seconds
            )
    print(
        f"{torch.get_num_threads()} threads, {arguments.layers} layers, {BATCH} texts of {TOKENS} "
        "tokens\n\n| | texts/s | times dense eager fp32 | quartiles | target |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for name, taken in zip(calls, times, strict=True):
        ratios = (times[0] / taken).flatten()
        low, middle, high = ratios.quantile(ratios.new_tensor([0.25, 0.5, 0.75])).tolist()
        least = NEVER_SLOWER if any(scheme in name for scheme in SCHEMES) else ""
        target = targets.get(name, least)
        print(
            f"| {name} | {BATCH / float(taken.median()):.1f} | {middle:.2f} | "
            f"{low:.2f} to {high:.2f} | {target} |"
        )
    whole = bert(12)
    base = saved_size(whole)
    print("\n| 12 layers, int8-dynamic | bytes | of dense float32 | at most |")
    print("| --- | --- | --- | --- |")
    for label, model in (("dense", whole), ("halved", halved(whole))):
        size = saved_size(quantized(model, "int8-dynamic", batch))
        print(f"| {label} | {size:,} | {size / base:.1%} | {BYTES[label]:.0%} |")


if __name__ == "__main__":
    main()
