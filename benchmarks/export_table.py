"""Agreement of every kind of compressed model with its exports, on a whole test split.

    python benchmarks/export_table.py [--formats onnx openvino aotinductor]

Applies every kind of edit, without training, to the BERT-mini of benchmarks/magnitude_table.py
(fine-tuned on SST-2) and the small GPT-2 of benchmarks/perplexity_table.py, exports the result and
compares its logits and predictions with PyTorch's: per sentence on the 872 SST-2 test sentences,
per token on 100 reviews. For an export that exceeds the tolerance, the row gives the error message.
"""

import argparse
import itertools
import tempfile
import warnings
from pathlib import Path

import torch
from perplexity_table import parts_of as language_data
from perplexity_table import start_of as language_model
from quantization_table import parts_of

from lightning_compress import (
    load_compressed,
    quantize_,
    remove_heads_,
    remove_layers_,
    remove_neurons_,
    substitute_layers_,
)
from lightning_compress.errors import InputError
from lightning_compress.export import ExportOptions, export_model
from lightning_compress.models import set_masks_, structure_of
from lightning_compress.quantization.precisions import SCHEMES, own_precision

INTEGER_SCHEMES = [name for name, scheme in SCHEMES.items() if scheme.dtype is None]


def masked(model, batches):
    names = [f"{name}.weight" for name, module in model.named_modules() if name.endswith("dense")]
    names = names or [name for name, _ in model.named_parameters() if name.endswith("c_fc.weight")]
    set_masks_(model, {name: _largest(model.get_parameter(name)) for name in names})


def _largest(weight):
    return weight.abs() > weight.abs().median()


def smaller(model, batches):
    layers = range(len(structure_of(model).layers))
    remove_heads_(model, {layer: [0] for layer in layers})
    remove_neurons_(model, {layer: range(0, 200, 2) for layer in layers})


def shorter(model, batches):
    remove_layers_(model, [1])


def substituted(model, batches):
    substitute_layers_(model, groups=[[1, 2]], width=64)
    for name, parameter in model.named_parameters():
        if name.endswith(".up.weight"):  # initialized with zeros
            torch.nn.init.normal_(parameter, std=0.02)


def quantized(scheme):
    def edit(model, batches):
        quantize_(model, scheme, calibration_batches=batches)

    return edit


def everything(model, batches):
    smaller(model, batches)
    substituted(model, batches)
    quantize_(model, "int8-static", calibration_batches=batches)


KINDS = {
    "dense": lambda model, batches: None,
    "masks": masked,
    "heads and neurons": smaller,
    "layers": shorter,
    "substituted": substituted,
    **{scheme: quantized(scheme) for scheme in INTEGER_SCHEMES},
    "all, int8-static": everything,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", default=["onnx", "openvino", "aotinductor"])
    parser.add_argument("--models", nargs="+", default=["bert", "gpt2"], choices=("bert", "gpt2"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    print("| model | edits | format | examples | largest difference | largest logit | equal |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.models:
        torch.manual_seed(0)
        if name == "bert":
            folder, data = parts_of("sst2", 0)
        else:
            folder, data = language_model("gpt2", 0), language_data("gpt2", 0)[0]
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
        calibration_batches = list(itertools.islice(data.train_dataloader(), 8))
        examples = list(data.test_dataloader())
        for (kind, edit), format in itertools.product(KINDS.items(), arguments.formats):
            model = load_compressed(folder)
            edit(model, calibration_batches)
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    found = export_model(
                        model, Path(scratch) / "out", format, examples=examples,
                        options=ExportOptions(own_precision(model) or "fp32", calibration_batches),
                    )  # fmt: skip
                except InputError as error:
                    print(f"| {name} | {kind} | {format} | failed: {error} | | | |", flush=True)
                    continue
            print(
                f"| {name} | {kind} | {format} | {found.examples} | "
                f"{found.largest_difference:.1e} | {found.largest_logit:.2f} | "
                f"{found.equal_predictions:.2%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
