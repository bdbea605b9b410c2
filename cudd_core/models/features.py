"""The input of a classifier's last linear layer: pooled features in ResNets, all positions in ConvNets."""

from __future__ import annotations

from types import TracebackType

from torch import Tensor, nn

from cudd_core.errors import ModelError


def last_linear(network: nn.Module) -> tuple[str, nn.Linear] | None:
    """Return the last linear layer, which is the classifier's head, with its name in the network; None if none is."""
    linear = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


class HeadInput:
    """While open, records the input of the network's last linear layer, float32 [n, d].

    Raises:
        ModelError: the network, called `name` in the message, has no linear layer; `remedy` says what to do.
    """

    def __init__(self, network: nn.Module, name: str, remedy: str = "Choose another architecture.") -> None:
        head = last_linear(network)
        if head is None:
            raise ModelError(f"{name} has no linear head to take features from. {remedy}")
        self.features: Tensor | None = None
        self._handle = head[1].register_forward_pre_hook(self._remember)

    def _remember(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self.features = inputs[0].float()

    def collect(self) -> Tensor:
        """Return the features of the last forward pass and forget them."""
        features, self.features = self.features, None
        assert features is not None
        return features

    def __enter__(self) -> HeadInput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()
