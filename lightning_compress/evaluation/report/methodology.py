"""How the figures of a report were measured, in words."""

from collections.abc import Sequence

from lightning_compress.evaluation.examples import Workload
from lightning_compress.evaluation.host import bf16_caveat
from lightning_compress.evaluation.latency import REST, ROUNDS
from lightning_compress.evaluation.runtimes.runtime import Runtime
from lightning_compress.evaluation.settings import BenchmarkSettings


def methodology(
    settings: BenchmarkSettings, work: Workload, runtimes: Sequence[Runtime]
) -> list[str]:
    """Say what each figure means; one item for each group of columns."""
    typical, longest = (batch["input_ids"].shape[1] for batch in (work.typical, work.longest))
    size = settings.batch_size
    singles, batches = len(work.timed[1]), len(work.timed[size])
    left_out = [
        f"No bf16 on {device} unless asked for: {reason}."
        for device in settings.device_names()
        if settings.precisions is None and (reason := bf16_caveat(device)) is not None
    ]
    exported = [
        "What is compiled or exported is run in a process of its own, which is still while others "
        "are timed. On disk exported models are the exported files."
    ] * any(runtime.in_subprocess for runtime in runtimes)
    return [
        "Quality: over the whole split, in the row's own runtime and precision. ± is the standard "
        "error of an accuracy on so many examples. Retention is the metric divided by that of the "
        "dense eager fp32 row (of a perplexity, more than 100 % is worse).",
        "Parameters: tied ones count once; non-zero are those that are not exactly zero.",
        f"MACs: multiply-accumulate operations for one example of median length, {typical} tokens, "
        "counted by torch in matrix products and attention. A product with a zero counts.",
        "On disk: weights in the row's precision, configuration, manifest and masks as "
        "`save_compressed` writes them, without the tokenizer.",
        f"p50, p95, p99: percentiles of the latency of one example alone, over {singles} real "
        "examples at their own lengths, evenly chosen from all lengths, each timed several "
        "times.",
        f"Samples/s: batches of {size} real examples of like length, {batches} of them evenly "
        "chosen from all lengths, padded to a multiple of 8, each in its median time; other sizes "
        "alike, single examples as for the latency. Spread is the interquartile range of the "
        "rounds' rates by their median. Speedup is over the dense eager fp32 row on the same "
        "device.",
        f"All rows of a device are timed in turn, after an untimed round, at least "
        f"{ROUNDS} rounds and about {settings.seconds:g} s each for every batch size; where a "
        "model is too slow for that, on fewer of the examples. Before each turn all rest for "
        f"{1e3 * REST:g} ms. With other numbers of threads a model is prepared again.",
        f"Peak memory: weights plus all that a batch of {size} with {longest} tokens each holds at "
        "one time, by torch's allocator; of exported models, what their process holds more than "
        "before they were opened.",
        *exported,
        *left_out,
    ]
