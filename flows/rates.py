"""How fast devices are at this kind of work."""

from __future__ import annotations

from dataclasses import dataclass

from cudd_core.errors import ConfigError
from flows.recipe import Recipe


@dataclass(frozen=True)
class Device:
    """Effective rates of a device for this kind of work.

    `flops`: per second, in all. `step`: seconds that any optimisation step takes at least, since small networks are
    bound by kernel launches. `tasks`: how many run at once. `error`: by how much a step was off at most, if both rates
    were fitted to measurements (benchmarks/rates.py); None: they were not, and hours are only orders of magnitude.
    """

    title: str
    flops: float
    step: float
    tasks: int = 1
    error: float | None = None

    @property
    def trust(self) -> str:
        """How reliable hours on this device are, in words."""
        if self.error is None:
            return "an order of magnitude, its rates are not measured"
        return f"an estimate from measured rates, single steps off by up to {self.error:.0%}"


DEVICES = {
    "cpu2": Device("two CPU cores (Zen 3, AVX2), fp32", 2.4e11, 1.5e-2, tasks=2, error=0.37),
    # The paper's 86 minutes for one image per class of ImageNet-1K on this card are 5.6 to 11 TFLOP/s.
    "rtx3090": Device("one RTX 3090", 1.0e13, 1e-2),
    # The H200's chip with slower memory; not measured.
    "h100": Device("one H100, bf16", 1.0e14, 7e-4),
    # ConvNet-3 and ResNet-18 at 32 px, batches of 10 to 100, their steps as CUDA graphs (docs/performance.md).
    "h200": Device("one H200, bf16, measured at 32 px", 1.2e14, 7e-4, error=0.34),
}
"""`--device` → rates."""


def device_of(recipe: Recipe, name: str | None) -> Device:
    """Return the device with that name; None: two CPU cores or one H100, by the recipe. Raises ConfigError."""
    name = name or ("cpu2" if recipe.compute.device == "cpu" else "h100")
    if name not in DEVICES:
        raise ConfigError(f"There is no rate for device {name!r}. Devices: {', '.join(DEVICES)}.")
    return DEVICES[name]
