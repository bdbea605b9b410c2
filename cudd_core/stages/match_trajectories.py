"""Synthesize by trajectory matching: all new images of a curriculum, for all classes, in a single task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from cudd_core.compute.runtime import Runtime
from cudd_core.data.normalizer import Normalizer
from cudd_core.data.source import ImageSplit
from cudd_core.models.registry import build
from cudd_core.models.stateless import stateless
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.objectives.descend import descend
from cudd_core.objectives.mtt import MttObjective
from cudd_core.progress import Progress, silent
from cudd_core.records import Selection, Shard, SyntheticSet, Trajectory

VERSION = 2  # 1 left images unmirrored where `crop` was none, although `flip` is in the key


def match_trajectories(
    experts: Sequence[Trajectory],
    selections: Sequence[Selection],
    earlier: Sequence[Shard],
    split: ImageSplit,
    curriculum: int,
    config: SynthesisConfig,
    seed: int,
    runtime: Runtime,
    *,
    checkpoints: Path | None = None,
    progress: Progress = silent,
) -> Shard:
    """Make S_j from T_j, the `selections` of all class blocks, in order, for the same slices; `earlier` is S_{1:j-1}.

    Images are optimised in the experts' normalised space and clamped to valid pixels after every step; the last
    iterate is rounded to uint8.
    """
    spec = experts[0].spec
    normalizer = Normalizer.of(spec, runtime.device)
    chosen = torch.cat([selection.indices for selection in selections], dim=1)
    classes = torch.cat([selection.classes for selection in selections])
    sources, labels = chosen.flatten(), classes.repeat(len(chosen))
    first = selections[0].first_slice
    numbers = torch.arange(first, first + len(chosen)).repeat_interleave(len(classes))
    originals = split.images(sources)
    before, known = originals[:0], labels[:0]
    if earlier:
        so_far = SyntheticSet.assemble(earlier, split.class_names)
        before, known = so_far.images, so_far.labels
    network = stateless(build(spec, seed=0), spec.arch)
    images, history = descend(
        MttObjective(
            network.to(runtime.device),
            experts,
            (normalizer(before), known.to(runtime.device)),
            config,
            runtime,
        ),
        originals,
        labels,
        numbers,
        normalizer,
        seed,
        runtime,
        checkpoints=checkpoints,
        progress=progress,
    )
    return Shard(images, labels, numbers, sources, curriculum, tuple(history))
