"""How the figures of a report were measured, in words."""

from collections.abc import Sequence

from lightning_compress.evaluation.examples import Workload
from lightning_compress.evaluation.latency import MIN_REPEATS, REST
from lightning_compress.evaluation.report.columns import columns_for
from lightning_compress.evaluation.runtimes.runtime import Runtime, precision_caveat
from lightning_compress.evaluation.settings import BenchmarkSettings
from lightning_compress.evaluation.trial import MIN_EXTRA, SLOWEST


def facts(settings: BenchmarkSettings, work: Workload) -> dict[str, int]:
    """Numbers that the columns' descriptions name.

    Returns:
        ``size``: the batch size of throughput; ``singles``: number of single examples timed;
        ``batches``: number of batches timed; ``typical`` and ``longest``: tokens of the median and
        the longest example.
    """
    size = settings.batch_size
    return {
        "size": size,
        "singles": len(work.timed[1]),
        "batches": len(work.timed[size]),
        "typical": work.length(work.typical),
        "longest": work.length(work.longest),
    }


def methodology(
    settings: BenchmarkSettings,
    work: Workload,
    runtimes: Sequence[Runtime],
    metrics: Sequence[str],
) -> list[str]:
    """Describe each column, then how rows are timed; columns measured alike share an item."""
    described: dict[str, list[str]] = {}
    for column in columns_for(metrics):
        if column.how_measured is not None and column.heading is not None:
            described.setdefault(column.how_measured, []).append(column.heading)
    numbers = facts(settings, work)
    items = [f"{', '.join(names)}: {text.format(**numbers)}" for text, names in described.items()]
    items.append(
        "All rows of a device are timed in turn, after an untimed pass, at least "
        f"{MIN_REPEATS} times and about {settings.seconds:g} s each for every batch size; where a "
        "model is too slow for that, on fewer of the examples. Before each turn all processes rest "
        f"for {1e3 * REST:g} ms. With other numbers of threads a model is prepared again."
    )
    items.append(
        f"A row whose batch takes more than {SLOWEST:g} times as long as that of the dense eager "
        f"fp32 row (where there is none, of the first row), and {1e3 * MIN_EXTRA:g} ms longer, is "
        "cut short: it is neither tested nor timed."
    )
    if any(runtime.in_subprocess for runtime in runtimes):
        items.append(
            "A compiled or exported model is run in a process of its own, which is idle while "
            "others are timed."
        )
    for device in settings.device_names():
        caveat = precision_caveat("bf16", device, fused=True)
        if settings.precisions is None and caveat is not None:
            items.append(f"No bf16 on {device} unless asked for: {caveat}.")
    return items
