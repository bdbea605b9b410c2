"""The input of a classifier's head: pooled features, whatever the architecture."""

from __future__ import annotations

from types import TracebackType

from torch import Tensor, nn

from cudd_core.errors import ModelError


class HeadInput:
    """While open, records the input of the network's last linear layer, float32 [n, d].

    Raises:
        ModelError: the network, called `name` in the message, has no linear layer; `remedy` says what to do.
    """

    def __init__(self, network: nn.Module, name: str, remedy: str = "Choose another architecture.") -> None:
        heads = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not heads:
            raise ModelError(f"{name} has no linear head to take features from. {remedy}")
        self.features: Tensor | None = None
        self._handle = heads[-1].register_forward_pre_hook(self._remember)

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
