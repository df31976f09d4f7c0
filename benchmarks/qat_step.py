"""A step of quantization-aware training beside a plain one, in one process.

    OMP_NUM_THREADS=2 python benchmarks/qat_step.py [--instructions avx2] [--seconds 5]

Forward pass, backward pass and a step of AdamW, on random texts: a BERT-mini with batches of 32
texts of 64 tokens, and two layers of a BERT of base width with 8 texts of 128.
"""

import argparse
import copy

import instruction_sets
import torch
from transformers import BertConfig, BertForSequenceClassification

from lightning_compress.evaluation.latency import interleaved_times
from lightning_compress.quantization import prepare_

SCHEMES = ("int8-dynamic", "int8-static", "int8-weight", "int4-weight")
MINI = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 1024}  # fmt: skip
MODELS = {"BERT-mini": (MINI, (32, 64)), "base width": ({"num_hidden_layers": 2}, (8, 128))}
AT_MOST = 1.5


def step_of(model, batch):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step():
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each scheme")
    arguments = instruction_sets.parse(parser)
    print(f"{torch.get_num_threads()} threads\n")
    print("| model | scheme | ms a step | times plain | at most |\n| --- | --- | --- | --- | --- |")
    for label, (options, shape) in MODELS.items():
        torch.manual_seed(0)
        dense = BertForSequenceClassification(BertConfig(**options))
        batch = {"input_ids": torch.randint(1000, 30000, shape)}
        steps = [step_of(copy.deepcopy(dense), batch | {"labels": torch.arange(shape[0]) % 2})]
        for scheme in SCHEMES:
            model = copy.deepcopy(dense).eval()
            prepare_(model, scheme, calibration_batches=[batch])
            steps.append(step_of(model, batch | {"labels": torch.arange(shape[0]) % 2}))
        times = interleaved_times([[step] for step in steps], seconds=arguments.seconds)
        for name, taken in zip(("plain", *SCHEMES), times, strict=True):
            ratios = (taken / times[0]).flatten()
            low, middle, high = ratios.quantile(ratios.new_tensor([0.25, 0.5, 0.75])).tolist()
            print(
                f"| {label} | {name} | {1e3 * float(taken.median()):.1f} | {middle:.2f} "
                f"({low:.2f} to {high:.2f}) | {AT_MOST if name != 'plain' else ''} |"
            )


if __name__ == "__main__":
    main()
