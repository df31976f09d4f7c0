"""Numbers as text, with their units."""

from lightning_compress.evaluation.latency import Throughput

UNKNOWN = "-"


def number(value: float, digits: int = 4) -> str:
    """A number below 10 with ``digits`` decimals, a larger one with two."""
    return f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.2f}"


def short(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:.3g}"


def percent(value: float) -> str:
    """A fraction in percent."""
    return f"{100 * value:.1f} %"


def factor(value: float) -> str:
    """A ratio, such as ``2.00x``."""
    return f"{value:.2f}x"


def count(value: float) -> str:
    """A count in thousands, millions or billions."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return str(value)


def megabytes(value: float) -> str:
    """Bytes in megabytes, without the unit."""
    return f"{value / 1e6:,.1f}"


def byte_count(value: float) -> str:
    """Bytes in megabytes or gigabytes."""
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{megabytes(value)} MB"


def tenths(value: float) -> str:
    """A number with one decimal."""
    return f"{value:,.1f}"


def rate(value: float) -> str:
    """Examples per second, in no more digits than are repeatable."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def rate_of(throughput: Throughput | None) -> str:
    """The rate of a measurement; :data:`UNKNOWN` if it was not made."""
    return UNKNOWN if throughput is None else rate(throughput.samples_per_second)


def thread_count(threads: int) -> str:
    """A number of threads."""
    return f"{threads} thread{'s' if threads > 1 else ''}"
