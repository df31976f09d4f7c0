"""Why a figure of a row is missing: none is without a word."""

from lightning_compress.evaluation.row import Row


def reasons(row: Row, reference: Row | None) -> list[str]:
    """What is to be said about a row's missing figures; the first reason explains the others.

    Args:
        row: of a report.
        reference: the row that it is compared with, if there is one.
    """
    if row.failure is not None:
        return [row.failure]
    if row.throughput is None:
        return ["the measuring ended before this row was through"]
    missing = [name for name, value in row.metrics.items() if value is None]
    found = []
    if missing == list(row.metrics):
        found.append("no quality: there are no labels, or the outputs are not finite")
    elif missing:
        found.append(f"{', '.join(missing)}: not finite on this split")
    if row.peak_memory_bytes is None:
        found.append(f"peak memory: {row.device} keeps no count")
    if reference is None:
        found.append(f"no retention, no speedup: no dense eager fp32 row on {row.device}")
        return found
    if row.speedup is None:
        found.append("no speedup: the dense eager fp32 row was not timed")
    if row.retention is None and not missing:
        found.append("no retention: the dense eager fp32 row's metric is unknown or zero")
    return found
