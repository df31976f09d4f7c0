"""Speed of a BERT-base without half of its heads and neurons.

    OMP_NUM_THREADS=2 python benchmarks/structured_speed.py [--seconds 30]

Times the dense and the halved model in turn in this one process, on batches of 8 texts of 128
tokens, in float32, eager and compiled; random weights, which are as fast as trained ones. The
blocks' MACs must halve, and the eager throughput must rise at least 1.8 times.
"""

import argparse
import copy
import warnings

import torch
from transformers import BertConfig, BertForSequenceClassification

from lightning_compress import remove_heads_, remove_neurons_
from lightning_compress.evaluation.footprint import count_macs
from lightning_compress.evaluation.latency import interleaved_times, throughput_of

TARGET = 1.8
BATCH, TOKENS, LAYERS, HEADS, NEURONS = 8, 128, 12, 12, 3072


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="for each model and runtime")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")

    torch.manual_seed(0)
    dense = BertForSequenceClassification(BertConfig()).eval()
    half = copy.deepcopy(dense)
    remove_heads_(half, {layer: range(HEADS // 2) for layer in range(LAYERS)})
    remove_neurons_(half, {layer: range(NEURONS // 2) for layer in range(LAYERS)})
    batch = {"input_ids": torch.randint(1000, 30000, (BATCH, TOKENS))}
    macs = [count_macs(model, batch) for model in (dense, half)]
    sizes = [sum(p.numel() for p in model.parameters()) for model in (dense, half)]
    print(f"{torch.get_num_threads()} threads, {BATCH} texts of {TOKENS} tokens")
    print(f"multiplications: {macs[0]:,} and {macs[1]:,}, {macs[1] / macs[0]:.1%}")
    print(f"parameters:      {sizes[0]:,} and {sizes[1]:,}, {sizes[1] / sizes[0]:.1%}")

    @torch.inference_mode()
    def call(model):
        model(**batch)

    for runtime in ("eager", "compile"):
        models = [torch.compile(m) if runtime == "compile" else m for m in (dense, half)]
        calls = [[lambda model=model: call(model)] for model in models]
        times = interleaved_times(calls, seconds=arguments.seconds)
        rates = [
            throughput_of(one, BATCH, torch.get_num_threads()).samples_per_second for one in times
        ]
        ratios = (times[0] / times[1]).flatten().quantile(times[0].new_tensor([0.25, 0.5, 0.75]))
        low, middle, high = ratios.tolist()
        print(
            f"{runtime:8} {rates[0]:6.1f} and {rates[1]:6.1f} texts/s: {middle:.2f} times "
            f"(quartiles {low:.2f} and {high:.2f})"
        )
        if runtime == "eager":
            verdict = "reached" if middle >= TARGET else "MISSED"
    print(f"{verdict}: at least {TARGET} times in eager mode")


if __name__ == "__main__":
    main()
