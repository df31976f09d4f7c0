"""Processes that train one model together must make the same decisions about it."""

import hashlib

import lightning as L
import torch


def digest_of(decision: object) -> int:
    """A number below 2**56 that tells plain data apart, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(decision).encode()).digest()[:7], "big")


def require_agreement(trainer: L.Trainer, decision: int, what: str) -> None:
    """Stop all processes if ``decision``, a hash below 2**63, is not the same in each of them.

    Raises:
        RuntimeError: the processes disagree on ``what``.
    """
    if trainer.world_size == 1:
        return
    mine = torch.tensor(decision, device=trainer.strategy.root_device)
    decisions = trainer.strategy.all_gather(mine).flatten().tolist()
    if len(set(decisions)) > 1:
        raise RuntimeError(
            f"at step {trainer.global_step} the processes disagree on {what}: their weights have "
            "drifted apart, although a strategy such as ddp keeps them equal"
        )
