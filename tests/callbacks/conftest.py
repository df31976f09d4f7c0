"""A LightningModule that is nobody's in particular, and data that a resumed run reads on in."""

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

BATCHES = 8


class PlainModule(L.LightningModule):
    """A small network without any Hugging Face model; 416 weights in ``net.*.weight``."""

    def __init__(
        self, optimizer: str = "AdamW", schedule: str | None = None, **options: float
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)
        )
        self.optimizer, self.schedule = optimizer, schedule
        self.options: dict[str, Any] = {"lr": 0.05, **options}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.net(inputs), targets)

    def configure_optimizers(self) -> Any:
        optimizer = getattr(torch.optim, self.optimizer)(self.parameters(), **self.options)
        if self.schedule is None:
            return optimizer
        if self.schedule == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            config = {"scheduler": plateau, "interval": "step", "monitor": "loss"}
        else:
            falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 100)
            config = {"scheduler": falling, "interval": self.schedule}
        return {"optimizer": optimizer, "lr_scheduler": config}


class JudgedModule(PlainModule):
    """The same with a validation by which it gets worse and worse."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("score", -float(self.global_step))


class ResumableLoader:
    """Eight batches of four examples, the same in every epoch."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.batches = [
            [torch.randn(4, 8, generator=generator), torch.randn(4, 2, generator=generator)]
            for _ in range(BATCHES)
        ]
        self.start = self.given = 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[list[Tensor]]:
        start, self.start = self.start, 0
        for index in range(start, BATCHES):
            self.given = index + 1
            yield self.batches[index]

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["given"] % BATCHES


@pytest.fixture
def plain_module() -> Callable[..., PlainModule]:
    """Builds the plain module, with the same weights every time."""

    def build(*args: Any, seed: int = 0, judged: bool = False, **options: Any) -> PlainModule:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return (JudgedModule if judged else PlainModule)(*args, **options)

    return build


@pytest.fixture
def loader() -> Callable[[], ResumableLoader]:
    """Builds the loader of eight batches."""
    return ResumableLoader
