"""Charts that a technique declares for TensorBoard."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Chart:
    """A chart on TensorBoard's page *Compression*.

    Args:
        title: heading of the chart.
        tags: regular expressions; the chart shows all logged values with a matching name.
        with_metric: whether the values lie in [0, 1] and are to be shown in one chart with a
            validation metric of that range.
    """

    title: str
    tags: tuple[str, ...]
    with_metric: bool = False


@runtime_checkable
class DeclaresCharts(Protocol):
    """A callback or LightningModule with charts."""

    charts: Sequence[Chart]
