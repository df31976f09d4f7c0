"""Seconds to export a BERT-mini in every format and precision, comparison with PyTorch included.

    OMP_NUM_THREADS=2 python benchmarks/export_seconds.py [--instructions avx2]

The model has random weights and is compared on 64 texts of 32 random tokens. Formats whose packages
are missing are left out.
"""

import argparse
import tempfile
import time
from pathlib import Path

import instruction_sets
import torch
from transformers import BertConfig, BertForSequenceClassification

from lightning_compress.errors import InputError
from lightning_compress.export import FORMATS, ExportOptions, export_model

AT_MOST = 60
TEXTS, TOKENS = 64, 32


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    instruction_sets.parse(parser)
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024
    )
    model = BertForSequenceClassification(config).eval()
    ids = torch.randint(1000, 30000, (TEXTS, TOKENS))
    examples = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    print("| format | precision | seconds | at most |\n| --- | --- | --- | --- |")
    for name, target in FORMATS.items():
        if target.missing(ExportOptions()) is not None or name == "tensorrt":
            continue
        for precision in target.precisions:
            options = ExportOptions(precision, examples)
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                try:
                    export_model(
                        model, Path(folder) / "out", name, examples=examples, options=options
                    )
                    result = f"{time.perf_counter() - start:.0f}"
                except InputError as error:
                    result = str(error)
            print(f"| {name} | {precision} | {result} | {AT_MOST} |", flush=True)


if __name__ == "__main__":
    main()
