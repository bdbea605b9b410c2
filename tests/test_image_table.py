"""Images of records on disk and in memory: complete, in order, and without more memory than they need."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cudd_core.image_table import decode_png, encode_pngs
from cudd_core.image_threads import decode_into, for_each_image
from cudd_core.records import Shard, SyntheticSet
from cudd_core.returned import empty_images

ROOT = Path(__file__).parents[1]

ASSEMBLES = """
import resource
import sys
from pathlib import Path

import torch

from cudd_core.codec import read_record, write_record
from cudd_core.compute.runtime import keep_freed_memory
from cudd_core.records import Shard, SyntheticSet

keep_freed_memory()
torch.set_num_threads(1)
folder = Path(sys.argv[1])

def assembled(count, side):
    for number in range(count):
        labels = torch.arange(4)
        blank = torch.zeros(4, 3, side, side, dtype=torch.uint8)
        write_record(Shard(blank, labels, torch.full((4,), number), labels, 1), folder / f"{side}-{number}")
    del blank
    began = peak()
    found = [read_record(folder / f"{side}-{number}", verified=True) for number in range(count)]
    whole = SyntheticSet.assemble_emptying(found, tuple("abcd"))
    return (peak() - began) / whole.images.nbytes

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

assembled(2, 8)  # what is imported at the first use
print(assembled(8, 1024))
"""


def shard(images: torch.Tensor, number: int) -> Shard:
    labels = torch.arange(len(images))
    return Shard(images, labels, torch.full_like(labels, number), labels, 1)


@pytest.mark.parametrize("count", [0, 1, 16, 17, 300])
@pytest.mark.parametrize("side", [2, 65])
def test_every_image_is_worked_on_once(count: int, side: int) -> None:
    seen: list[int] = []
    for_each_image(torch.zeros(count, 1, side, side), seen.append)
    assert sorted(seen) == list(range(count))


@pytest.mark.parametrize("count", [3, 300])
def test_what_one_image_raises_is_raised(count: int) -> None:
    def work(index: int) -> None:
        if index == count - 1:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        for_each_image(torch.zeros(count, 1, 2, 2), work)


def test_many_images_are_encoded_and_decoded_in_order() -> None:
    images = torch.randint(0, 256, (100, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    files = encode_pngs(images)
    chosen = list(range(99, -1, -1))
    read = torch.empty_like(images)
    decode_into(read, chosen, lambda index: decode_png(files[index], (3, 9, 7)))
    assert torch.equal(read, images.flip(0))


@pytest.mark.parametrize("join", [SyntheticSet.assemble, SyntheticSet.assemble_emptying])
def test_shards_are_joined_in_order(join: Callable[..., SyntheticSet]) -> None:
    images = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).view(4, 3, 2, 2)
    shards = [shard(images[2:], 1), shard(images[:2], 0)]
    joined = join(shards, ("a", "b"))
    assert torch.equal(joined.images, images) and joined.slices.tolist() == [0, 0, 1, 1]
    assert len(shards) == (2 if join is SyntheticSet.assemble else 0), "only who gives them up loses them"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read as Linux gives it")
def test_joining_shards_takes_the_memory_of_the_set_and_one_shard(tmp_path: Path) -> None:
    """Though the C library is told to keep what is freed: 8 shards would otherwise be held until the set is made."""
    words = [sys.executable, "-c", ASSEMBLES, str(tmp_path)]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(found.stdout) < 1.5, "of the set: one would be the set alone, two the shards and the set"


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 1, 3, 5), (16, 3, 256, 256)])
def test_memory_for_images_is_writable_and_stays_while_it_is_used(shape: tuple[int, ...]) -> None:
    images = empty_images(shape)
    assert images.shape == shape and images.dtype == torch.uint8 and images.is_contiguous()
    part = images[-1:].fill_(7)
    del images
    assert bool((part == 7).all())


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_writes_to_its_own_copy() -> None:
    images = empty_images((2, 3, 512, 512)).fill_(1)
    child = os.fork()
    if child == 0:
        images.numpy()[:] = 2
        os._exit(0)
    os.waitpid(child, 0)
    assert bool((images == 1).all())


@pytest.mark.parametrize("side", [10**7, 10**12])
def test_more_memory_than_there_is_cannot_be_had(side: int) -> None:
    with pytest.raises(RuntimeError, match="cannot be had"):
        empty_images((1, 3, side, side))
