"""Build the network that an architecture name stands for.

Known names are those in `ARCHITECTURES`, `convnet3-w64` (any depth and width), `convnet3-in` and `convnet3-w64-in`
(InstanceNorm instead of BatchNorm), `resnet18-w16` (any width), and every classifier of torchvision
(`torchvision/NAME`) and timm (`timm/NAME`). A bare name is looked up in that order.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cudd_core.errors import ModelError
from cudd_core.models.adapters import (
    build_timm,
    build_torchvision,
    has_timm_model,
    has_torchvision_model,
    library_models,
)
from cudd_core.models.architectures import ARCHITECTURES, SMALL_IMAGE, library_name, near_names
from cudd_core.models.convnet import ConvNet
from cudd_core.models.frozen_batchnorm import freeze_batchnorm
from cudd_core.models.resnet import build_resnet
from cudd_core.models.stochastic import seed_stochastic_layers
from cudd_core.records import NetworkRecord, NetworkSpec
from cudd_core.seeding import derive, seeded_construction

_CONVNET = re.compile(r"convnet(\d+)(?:-w(\d+))?(-in)?")
_RESNET = re.compile(r"(resnet(?:18|34|50|101))(?:-w(\d+))?")


def build_network(arch: str, num_classes: int, channels: int, image_size: int, seed: int) -> nn.Module:
    """Return a freshly initialised network in training mode; the same seed gives the same weights.

    Input [n, channels, image_size, image_size] (normalised floats), output [n, num_classes].

    Raises:
        ModelError: unknown name, or an image size the architecture cannot take.
    """
    with seeded_construction(seed, "initial weights", arch):
        network = _construct(arch, num_classes, channels, image_size)
    seed_stochastic_layers(network, derive(seed, "stochastic layers", arch), arch)
    return network


def _construct(arch: str, num_classes: int, channels: int, image_size: int) -> nn.Module:
    if match := _CONVNET.fullmatch(arch):
        depth, width = int(match[1]), _width(arch, match[2], 128)
        if not 1 <= depth <= 8 or image_size >> depth < 1:
            raise ModelError(
                f"{arch} halves its input {depth} times; {image_size} px images are too small for it (or the depth "
                "is not in 1-8). Use a shallower ConvNet or a larger data.image_size."
            )
        return ConvNet(depth, width, num_classes, channels, image_size, "instance" if match[3] else "batch")
    if match := _RESNET.fullmatch(arch):
        return build_resnet(match[1], num_classes, channels, image_size, _width(arch, match[2], 64))
    if arch in ARCHITECTURES and (image_size <= SMALL_IMAGE or not ARCHITECTURES[arch].library):
        from cudd_core.models.small import SMALL_BUILDERS

        if (build := SMALL_BUILDERS.get(arch)) is not None:
            return build(num_classes, channels, image_size)
    library, _, name = library_name(arch).rpartition("/")
    if library in ("", "torchvision") and has_torchvision_model(name):
        return build_torchvision(name, num_classes, channels, image_size)
    if library == "timm" or (library == "" and has_timm_model(name)):
        return build_timm(name, num_classes, channels, image_size)
    near = " or ".join(near_names(arch, library_models(name)))
    raise ModelError(
        f"Unknown architecture {arch!r}. {f'Did you mean {near}? ' if near else ''}"
        f"Known: {', '.join(ARCHITECTURES)}, convnet3-w64, resnet18-w16, torchvision/NAME, timm/NAME (`cudd archs`)."
    )


def _width(arch: str, digits: str | None, default: int) -> int:
    width = int(digits or default)
    if width < 1:
        raise ModelError(f"{arch}: a network needs a width of at least 1.")
    return width


def build(spec: NetworkSpec, seed: int) -> nn.Module:
    """Return a fresh network as `build_network` does."""
    return build_network(spec.arch, spec.num_classes, spec.channels, spec.image_size, seed)


def restore_network(record: NetworkRecord) -> nn.Module:
    """Return the recorded network in eval mode, its parameters frozen."""
    with _without_draws(record.spec.arch):
        network = build(record.spec, seed=0)
    load_state(network, record.state, record.spec)
    return freeze_batchnorm(network.eval().requires_grad_(False))


def _without_draws(arch: str) -> AbstractContextManager[object]:
    """Keep our own networks from drawing initial weights: all of them are loaded anyway, and drawing takes longer.

    Library networks still draw: they do it in ways not known here, and some repeat a draw until it fits.
    """
    ours = _CONVNET.fullmatch(arch) or _RESNET.fullmatch(arch)
    return _NoDraws() if ours else nullcontext()


class _NoDraws(TorchFunctionMode):
    _DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def load_state(network: nn.Module, state: dict[str, Tensor], spec: NetworkSpec) -> None:
    """Load weights into `network`.

    `num_batches_tracked` may be missing, as in files older than these counters (torchvision's first ResNets): no result
    depends on them, and they stay 0.

    Raises:
        ModelError: tensors are missing, unexpected or wrongly shaped; the message names some of them.
    """
    own = network.state_dict()
    missing = sorted(key for key in own.keys() - state.keys() if not key.endswith("num_batches_tracked"))
    unexpected = sorted(state.keys() - own.keys())
    misshapen = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    if missing or unexpected or misshapen:
        shapes = [f"{k}: file {tuple(state[k].shape)}, network {tuple(own[k].shape)}" for k in misshapen[:3]]
        raise ModelError(
            f"The weights do not fit {spec.arch} with {spec.num_classes} classes at {spec.image_size} px: "
            f"missing {missing[:3]}, unexpected {unexpected[:3]}, other shape {shapes}."
        )
    # Loaded through the network's own dict, which carries the version metadata that some of torchvision's layers need.
    own.update(state)
    network.load_state_dict(own)
