"""The table of architectures that have names of their own: those of the paper's Tables I to III and Fig. 3.

docs/architectures.md says how each is adapted to images up to `SMALL_IMAGE` px, and why. Larger images get the
library's own network, so that its pretrained weights fit. Nothing heavy is imported here.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

SMALL_IMAGE = 64
"""Largest side in pixels for which networks are adapted to small images."""


@dataclass(frozen=True)
class Architecture:
    """One line of the table.

    `title`: the name in the literature. `library`: the network above `SMALL_IMAGE` px, `torchvision/NAME` or
    `timm/NAME`; empty for a network of our own. `small`: what is changed up to `SMALL_IMAGE` px, in words. `version`:
    raised whenever the name comes to mean a different network, so that no stage reuses results of the older one.
    """

    title: str
    library: str
    small: str
    version: int = 1


_RESNET = "first convolution 3×3 with stride 1, no max-pool"
_STEM = "first convolution with stride 1"
_TOKENS = "patches of side/8 px: 8 × 8 of them"

ARCHITECTURES: dict[str, Architecture] = {
    "convnet3": Architecture("ConvNet-3, width 128", "", "nothing: it is made for them"),
    "convnet4": Architecture("ConvNet-4, width 128", "", "nothing: it is made for them"),
    "convnet3-in": Architecture("ConvNet-3, width 128, InstanceNorm", "", "nothing: it is made for them"),
    "resnet18": Architecture("ResNet-18", "torchvision/resnet18", _RESNET),
    "resnet34": Architecture("ResNet-34", "torchvision/resnet34", _RESNET),
    "resnet50": Architecture("ResNet-50", "torchvision/resnet50", _RESNET),
    "resnet101": Architecture("ResNet-101", "torchvision/resnet101", _RESNET),
    "deit_tiny": Architecture("DeiT-Tiny", "timm/deit_tiny_patch16_224", _TOKENS),
    "swin_tiny": Architecture(
        "Swin-Tiny", "timm/swin_tiny_patch4_window7_224", "patches of side/16 px, windows of 4 × 4 patches"
    ),
    "convnext_tiny": Architecture(
        "ConvNeXt-Tiny", "torchvision/convnext_tiny", "patches of 2 px in the stem", version=2
    ),
    "densenet121": Architecture("DenseNet-121", "torchvision/densenet121", _RESNET, version=2),
    "efficientnet_v2_s": Architecture("EfficientNet-V2-S", "torchvision/efficientnet_v2_s", _STEM),
    "efficientnet_b0": Architecture("EfficientNet-B0", "torchvision/efficientnet_b0", _STEM),
    "mobilenet_v2": Architecture("MobileNet-V2", "torchvision/mobilenet_v2", _STEM),
    "regnet_y_800mf": Architecture("RegNet-Y-800MF", "torchvision/regnet_y_800mf", _STEM),
    "shufflenet_v2": Architecture("ShuffleNet-V2 ×1.0", "torchvision/shufflenet_v2_x1_0", f"{_STEM}, no max-pool"),
    "resmlp": Architecture("ResMLP-S12", "timm/resmlp_12_224", _TOKENS),
    "mlp_mixer": Architecture("MLP-Mixer-S/16", "timm/mixer_s16_224", _TOKENS),
}
"""Name → line. Other ConvNets, other widths of ResNets, `torchvision/NAME` and `timm/NAME` are available too."""


def library_name(arch: str) -> str:
    """Return `torchvision/NAME` or `timm/NAME` if `arch` is a table name for one, otherwise `arch` itself."""
    known = ARCHITECTURES.get(arch)
    return known.library if known is not None and known.library else arch


def arch_identity(arch: str) -> str:
    """Return the identity of `arch` in stage keys: its name, followed by its version from version 2 on.

    Example:
        >>> arch_identity("resnet18"), arch_identity("densenet121")
        ('resnet18', 'densenet121 v2')
    """
    known = ARCHITECTURES.get(arch)
    return arch if known is None or known.version == 1 else f"{arch} v{known.version}"


def near_names(arch: str, others: list[str]) -> list[str]:
    """Return up to four names similar to `arch`: from the table first, then from `others` (LIBRARY/NAME)."""
    word = arch.rpartition("/")[2].lower().replace("-", "_")
    squeezed = {name.replace("_", ""): name for name in ARCHITECTURES}
    near = [name for name in ARCHITECTURES if len(word) > 3 and name.startswith(word)]
    near += [squeezed[hit] for hit in difflib.get_close_matches(word.replace("_", ""), squeezed, n=2, cutoff=0.7)]
    full = {name.rpartition("/")[2]: name for name in others}
    near += [full[hit] for hit in difflib.get_close_matches(word, full, n=2, cutoff=0.6)]
    return list(dict.fromkeys(near))[:4]
