"""Networks whose adaptation to small images takes more than a stride, as docs/architectures.md describes.

Each builder takes (num_classes, channels, image_size), draws initial weights from the current generator, and returns a
network in training mode. Sides above `SMALL_IMAGE` reach only builders of networks that are in no library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from cudd_core.models.adapters import build_timm, build_torchvision, probe, require_timm

Builder = Callable[[int, int, int], nn.Module]


def patch_side(image_size: int, least: int) -> int:
    """Return the largest patch side in pixels that divides the image into at least `least` × `least` patches.

    1 if the image has fewer pixels than that.

    Example:
        >>> patch_side(32, 8), patch_side(64, 8), patch_side(28, 8)
        (4, 8, 2)
    """
    return max(
        side for side in range(1, image_size + 1) if image_size % side == 0 and side <= max(1, image_size // least)
    )


def _deit_tiny(num_classes: int, channels: int, image_size: int) -> nn.Module:
    options = {"img_size": image_size, "patch_size": patch_side(image_size, 8)}
    return build_timm("deit_tiny_patch16_224", num_classes, channels, image_size, options)


def _swin_tiny(num_classes: int, channels: int, image_size: int) -> nn.Module:
    # 16 × 16, 8 × 8, 4 × 4 and 2 × 2 patches in the four stages; timm shrinks the windows in smaller stages.
    options = {"img_size": image_size, "patch_size": patch_side(image_size, 16), "window_size": 4}
    return build_timm("swin_tiny_patch4_window7_224", num_classes, channels, image_size, options)


def _convnext_tiny(num_classes: int, channels: int, image_size: int) -> nn.Module:
    def adapt(network: Any) -> None:
        stem = nn.Conv2d(channels, 96, 2, stride=2)
        nn.init.trunc_normal_(stem.weight, std=0.02)
        nn.init.zeros_(stem.bias)  # type: ignore[arg-type]
        network.features[0][0] = stem

    return build_torchvision("convnext_tiny", num_classes, channels, image_size, adapt)


def _densenet121(num_classes: int, channels: int, image_size: int) -> nn.Module:
    def adapt(network: Any) -> None:
        network.features.conv0 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.features.conv0.weight)
        network.features.pool0 = nn.Identity()

    return build_torchvision("densenet121", num_classes, channels, image_size, adapt)


def _resmlp(num_classes: int, channels: int, image_size: int) -> nn.Module:
    require_timm("timm/resmlp_12_224")
    from timm.models.mlp_mixer import Affine, ResBlock

    layers = {"num_blocks": 12, "embed_dim": 384, "mlp_ratio": 4, "block_layer": ResBlock, "norm_layer": Affine}
    return _patch_mlp("timm/resmlp_12_224", num_classes, channels, image_size, layers)


def _mlp_mixer(num_classes: int, channels: int, image_size: int) -> nn.Module:
    return _patch_mlp("timm/mixer_s16_224", num_classes, channels, image_size, {"num_blocks": 8, "embed_dim": 512})


def _patch_mlp(arch: str, num_classes: int, channels: int, image_size: int, layers: dict[str, Any]) -> nn.Module:
    """Build timm's class directly, with the `layers` of `arch`: timm's builders of this family fix patches at 16 px."""
    require_timm(arch)
    from timm.models.mlp_mixer import MlpMixer

    network: nn.Module = MlpMixer(
        num_classes=num_classes, in_chans=channels, img_size=image_size, patch_size=patch_side(image_size, 8), **layers
    )
    probe(network, arch, num_classes, channels, image_size)
    return network


SMALL_BUILDERS: dict[str, Builder] = {
    "deit_tiny": _deit_tiny,
    "swin_tiny": _swin_tiny,
    "convnext_tiny": _convnext_tiny,
    "densenet121": _densenet121,
    "resmlp": _resmlp,
    "mlp_mixer": _mlp_mixer,
}
"""Name in `ARCHITECTURES` → builder for small images, or for all if the network is in no library.

Other names follow the rule in `adapters`, or are ConvNets and ResNets (`registry`)."""
