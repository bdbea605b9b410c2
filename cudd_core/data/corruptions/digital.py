"""Digital: brightness, contrast, saturation, elastic deformation, pixelation and JPEG."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image as Pillow
from scipy import ndimage

from cudd_core.data.corruptions.fields import Image, blurred


def brightness(x: Image, added: float, _: np.random.Generator) -> Image:
    """Add to V of HSV. Hue and saturation are kept, so RGB is scaled by new V / V; black becomes grey."""
    value = x.max(0)
    new = np.minimum(value + added, 1)
    scaled: Image = np.where(value > 0, x * (new / np.where(value > 0, value, 1)), new)
    return scaled


def contrast(x: Image, factor: float, _: np.random.Generator) -> Image:
    """Shrink each channel's distance to its mean."""
    mean = x.mean((1, 2), keepdims=True)
    flatter: Image = (x - mean) * factor + mean
    return flatter


def saturate(x: Image, change: tuple[float, float], _: np.random.Generator) -> Image:
    """S of HSV becomes S · factor + added. Hue and V stay, so each channel's distance below V is scaled by new S / S.

    Grey has no hue; as usual in HSV it counts as red, so it turns reddish if `added` is positive.
    """
    factor, added = change
    value = x.max(0)
    saturation = np.where(value > 0, (value - x.min(0)) / np.where(value > 0, value, 1), 0)
    new = np.clip(saturation * factor + added, 0, 1)
    grey = saturation == 0
    reddened = np.stack([value, value * (1 - new), value * (1 - new)])
    return np.where(grey, reddened, value - (value - x) * (new / np.where(grey, 1, saturation)))


def elastic_transform(x: Image, shares: tuple[float, float, float], rng: np.random.Generator) -> Image:
    """Apply a random affine map, then displacements from blurred noise.

    `shares`, relative to the image's size: amplitude of the displacements, sigma of their blur, and how far the three
    points that define the affine map may move on each axis.
    """
    size = x.shape[1]
    amplitude, sigma, moved = (share * size for share in shares)
    middle, arm = size // 2, size // 3
    corners = np.array([[middle + arm, middle + arm], [middle + arm, middle - arm], [middle - arm, middle - arm]])
    targets = corners + rng.uniform(-moved, moved, corners.shape)
    # The map from targets back to corners tells where each pixel of the result comes from.
    back = np.linalg.solve(np.column_stack([targets, np.ones(3)]), corners).T
    turned = np.stack([ndimage.affine_transform(c, back[:, :2], back[:, 2], order=1, mode="mirror") for c in x])
    noise = rng.uniform(-1, 1, (2, size, size))
    places = np.indices((size, size)) + amplitude * blurred(noise, sigma, mode="reflect", truncate=3.0)
    return np.stack([ndimage.map_coordinates(c, places, order=1, mode="reflect") for c in turned])


def pixelate(x: Image, factor: float, _: np.random.Generator) -> Image:
    """Shrink to `factor` of the size and enlarge again, with box averages."""
    image = _to_pillow(x)
    small = max(1, int(image.width * factor))
    return _from_pillow(image.resize((small, small), Pillow.Resampling.BOX).resize(image.size, Pillow.Resampling.BOX))


def jpeg_compression(x: Image, quality: int, _: np.random.Generator) -> Image:
    """Encode as JPEG with that quality and decode again."""
    file = io.BytesIO()
    _to_pillow(x).save(file, "JPEG", quality=quality)
    return _from_pillow(Pillow.open(file))


def _to_pillow(x: Image) -> Pillow.Image:
    pixels = np.round(x * 255).astype(np.uint8)
    return Pillow.fromarray(pixels[0] if len(x) == 1 else np.moveaxis(pixels, 0, -1))


def _from_pillow(image: Pillow.Image) -> Image:
    pixels = np.asarray(image, np.float64) / 255
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
