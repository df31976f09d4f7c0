"""Old layers and the compact block that is to take their place, side by side for a while."""

from torch import Tensor, nn

from lightning_compress.models.modeling_compressed import CompactBlock


class Choice(nn.Module):
    """Goes through the compact block, or, as long as it is told, through the old layers.

    Args:
        old: the layers to be replaced; they are no longer trained.
        new: what replaces them.

    Attributes:
        replaced: whether to go through the compact block.
        drawn: whether a batch of the training does too; otherwise only in eval mode.
    """

    def __init__(self, old: nn.ModuleList, new: CompactBlock) -> None:
        super().__init__()
        self.old = old.requires_grad_(False)
        self.new = new
        self.replaced = True
        self.drawn = True

    @property
    def through_new(self) -> bool:
        """Whether the next batch goes through the compact block."""
        return self.replaced and (self.drawn or not self.training)

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        """[B, S, H] to [B, S, H]; the other arguments are those of the old layers."""
        if self.through_new:
            found: Tensor = self.new(hidden_states, *args, **kwargs)
            return found
        for layer in self.old:
            hidden_states = layer(hidden_states, *args, **kwargs)
        return hidden_states
