"""A GPU kernel that crops, mirrors, mixes and normalises images in one pass over the pixels of a batch.

Import this only on a machine with a GPU: Triton comes only with torch for CUDA.
"""

# No `from __future__ import annotations`: Triton reads the annotations.
import torch
import triton
import triton.language as tl
from torch import Tensor

_VALUES = 1024


def make_views(
    pixels: Tensor,
    normal: tuple[Tensor, Tensor],
    crops: tuple[Tensor, Tensor, Tensor],
    mixes: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """Return n views of `pixels` uint8 [N, C, S, S], S ≤ 2¹⁵: float32 [n, C, S, S], channels last.

    All tensors are on the same GPU and contiguous. `normal`: mean and standard deviation float32, C values each, of
    (pixel / 255 − mean) / std. `crops`: image `rows` int64 [n] in [0, N), `boxes` int64 [n, 4] and `mirrored` bool [n]
    as in `data.augment.Crops`. `mixes`: `partner` and `batch` int64 [n], `boxes` int64 [m, 4] and `keep` float64 [m] as
    in `data.augment.Mixes`. Interpolation is `data.augment.interpolation_matrices`, with exact centres.

    All these steps are linear, and the weights of pixels sum to 1, so values are normalised last. The bits of a view do
    not depend on the other views.
    """
    (_, channels, size, _), count = pixels.shape, len(crops[0])
    assert pixels.is_contiguous()
    images = torch.empty(
        (count, channels, size, size), device=pixels.device, memory_format=torch.channels_last, dtype=torch.float32
    )
    blocks = triton.cdiv(channels * size * size, _VALUES)
    with torch.cuda.device_of(pixels):
        _views[(count * blocks,)](
            *(pixels, *normal, *crops, *(mixes or (None,) * 4), images),
            SIZE=size,
            CHANNELS=channels,
            BLOCKS=blocks,
            VALUES=_VALUES,
        )
    return images


def check(device: torch.device) -> None:
    """Run the kernel, and so compile it; raise what it raises."""
    pixels = torch.zeros(1, 1, 1, 1, dtype=torch.uint8, device=device)
    one, row = torch.ones(1, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    make_views(pixels, (one, one), (row, torch.tensor([[0, 0, 1, 1]], device=device), row > 0))


@triton.jit  # type: ignore[untyped-decorator]
def _views(  # type: ignore[no-untyped-def]
    pixels,
    mean,
    std,
    rows,
    boxes,
    mirrored,
    partners,
    batches,
    mix_boxes,
    keeps,
    images,
    SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCKS: tl.constexpr,
    VALUES: tl.constexpr,
):
    image = (tl.program_id(0) // BLOCKS).to(tl.int64)
    place = tl.program_id(0) % BLOCKS * VALUES + tl.arange(0, VALUES)
    inside = place < CHANNELS * SIZE * SIZE
    channel = place % CHANNELS
    row = place // CHANNELS // SIZE
    column = place // CHANNELS % SIZE
    value = _crop(pixels, rows, boxes, mirrored, image, channel, row, column, inside, SIZE, CHANNELS)
    if partners is not None:
        batch = tl.load(batches + image)
        box = mix_boxes + 4 * batch
        mixed = (row >= tl.load(box)) & (column >= tl.load(box + 1))
        mixed = mixed & (row < tl.load(box + 2)) & (column < tl.load(box + 3))
        share = tl.where(mixed, tl.load(keeps + batch).to(tl.float32), 1.0)
        partner = tl.load(partners + image)
        other = _crop(pixels, rows, boxes, mirrored, partner, channel, row, column, inside & mixed, SIZE, CHANNELS)
        value = value * share + other * (1.0 - share)
    # Rounded as torch rounds, so that an image that is neither cropped nor mixed has the bits of `Normalizer`.
    shifted = tl.div_rn(value, 255.0) - tl.load(mean + channel, mask=inside)
    result = tl.div_rn(shifted, tl.load(std + channel, mask=inside, other=1.0))
    tl.store(images + image * (CHANNELS * SIZE * SIZE) + place, result, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _crop(  # type: ignore[no-untyped-def]
    pixels,
    rows,
    boxes,
    mirrored,
    image,
    channel,
    row,
    column,
    inside,
    SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Return the values that a crop has at (channel, row, column), in [0, 255]; 0 where not `inside`."""
    box = boxes + 4 * image
    column = tl.where(tl.load(mirrored + image), SIZE - 1 - column, column)
    top, down, down_weight = _taps(row, tl.load(box).to(tl.int32), tl.load(box + 2).to(tl.int32), SIZE)
    left, right, right_weight = _taps(column, tl.load(box + 1).to(tl.int32), tl.load(box + 3).to(tl.int32), SIZE)
    # A set may have more than 2³¹ pixels, one image may not.
    plane = pixels + tl.load(rows + image) * (CHANNELS * SIZE * SIZE) + channel * SIZE * SIZE
    upper = _blend(plane + top * SIZE, left, right, right_weight, inside)
    lower = _blend(plane + down * SIZE, left, right, right_weight, inside)
    return upper * (1.0 - down_weight) + lower * down_weight


@triton.jit  # type: ignore[untyped-decorator]
def _taps(  # type: ignore[no-untyped-def]
    position, start, length, SIZE: tl.constexpr
):
    """Return the two input pixels between which output pixel `position` lies, and the weight of the second."""
    # In units of 1 / (2 SIZE) pixels the centre is an integer, (position + ½) · length / SIZE − ½, so nothing rounds.
    centre = tl.maximum((2 * position + 1) * length - SIZE, 0)
    centre = tl.minimum(centre, (length - 1) * (2 * SIZE))
    low = centre // (2 * SIZE)
    high = tl.minimum(low + 1, length - 1)
    return start + low, start + high, (centre % (2 * SIZE)).to(tl.float32) / (2 * SIZE)


@triton.jit
def _blend(line, left, right, weight, inside):  # type: ignore[no-untyped-def]
    """Return the value between two pixels of a line; 0 where not `inside`."""
    first = tl.load(line + left, mask=inside, other=0).to(tl.float32)
    second = tl.load(line + right, mask=inside, other=0).to(tl.float32)
    return first * (1.0 - weight) + second * weight
