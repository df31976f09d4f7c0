"""Milliseconds of int8 products of matrices beside float32's, each exact or not.

    OMP_NUM_THREADS=2 python benchmarks/int8_products.py [--instructions vnni] [--seconds 2]

The products are those of a BERT of base width with 8 texts of 128 tokens, and of one text of 16:
float32; ``torch._int_mm`` of int8 with int8 (S8S8), and of uint8 with int8 (U8S8); FBGEMM's with
packed weights. With --instructions avx2 ``torch._int_mm`` says nothing: here it is oneDNN's, which
PyTorch does not call on a real CPU without AVX512-VNNI.
"""

import argparse

import instruction_sets
import torch

from lightning_compress.evaluation.latency import interleaved_times
from lightning_compress.models import modeling_kernels

SHAPES = ((1024, 768, 3072), (1024, 3072, 768), (1024, 768, 768), (16, 768, 3072))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each product")
    arguments = instruction_sets.parse(parser)
    print("| rows, inputs, outputs | float32 | S8S8 | U8S8 | FBGEMM | FBGEMM exact |")
    print("| --- | --- | --- | --- | --- | --- |")
    for rows, inputs, outputs in SHAPES:
        torch.manual_seed(0)
        left = torch.randint(-127, 128, (rows, inputs), dtype=torch.int8)
        weight = torch.randint(-63, 64, (outputs, inputs), dtype=torch.int8)
        unsigned = (left.int() + 128).to(torch.uint8)
        floats, float_weight = left.float(), weight.float()
        packed, _ = modeling_kernels._packed(weight)

        def by_fbgemm(floats=floats, packed=packed):
            return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
                floats, 1.0, 128, packed
            )

        calls = [
            lambda a=floats, b=float_weight: a @ b.t(),
            lambda a=left, b=weight: torch._int_mm(a, b.t()),
            lambda a=unsigned, b=weight: torch._int_mm(a, b.t()),
            by_fbgemm,
        ]
        times = interleaved_times([[call] for call in calls], seconds=arguments.seconds)
        exact = torch.equal(by_fbgemm().double(), left.double() @ weight.double().t())
        taken = " | ".join(f"{1e3 * float(one.median()):.2f}" for one in times)
        print(f"| {rows}, {inputs}, {outputs} | {taken} | {exact} |")


if __name__ == "__main__":
    main()
