"""When the rounds of a gradual removal are."""

from lightning_compress.errors import InputError


def round_steps(begin: int, end: int, rounds: int) -> list[int]:
    """Steps after which a part is removed: the first at ``begin``, the last at ``end``.

    Args:
        begin: end of the warm-up.
        end: start of the recovery.
        rounds: how many; one round is at ``begin``.

    Raises:
        InputError: the rounds do not fit between the two.
    """
    if rounds > 1 and end - begin < rounds - 1:
        raise InputError(
            f"rounds: {rounds} rounds do not fit into the {max(0, end - begin)} steps between "
            "warmup and recovery; shorten these, train longer, or take fewer rounds"
        )
    return [begin + (end - begin) * k // max(1, rounds - 1) for k in range(rounds)]
