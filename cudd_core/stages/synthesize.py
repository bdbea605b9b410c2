"""Synthesize: minimise Eq. 6 over the pixels of S_j."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch

from cudd_core.compute.runtime import Runtime
from cudd_core.data.normalizer import Normalizer
from cudd_core.data.source import ImageSplit
from cudd_core.errors import ConfigError
from cudd_core.models.committee import restore_committee
from cudd_core.models.registry import restore_network
from cudd_core.objectives.batches import permuted_classes
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.objectives.cudd import CuddObjective
from cudd_core.objectives.descend import descend
from cudd_core.objectives.patches import patched_slices, patchwork
from cudd_core.progress import Progress, silent
from cudd_core.records import LayerStatistics, NetworkRecord, Selection, Shard

VERSION = 1


def synthesize(
    teacher: NetworkRecord,
    student: NetworkRecord | None,
    selection: Selection,
    slices: range,
    split: ImageSplit,
    curriculum: int,
    config: SynthesisConfig,
    seed: int,
    runtime: Runtime,
    *,
    others: Sequence[NetworkRecord] = (),
    statistics: Sequence[LayerStatistics] = (),
    progress: Progress = silent,
) -> Shard:
    """Make the synthetic images of `slices` (numbered over the whole run) for the classes of `selection`.

    S_j starts as T_j, as noise, or as patches of T_j, which then also replace T_j in L_reg. It is kept as float in the
    teacher's normalised space while Adam minimises Eq. 6 and clamped to valid pixels after every step; the last
    iterate is rounded to uint8. With `config.enabled` off, the originals are returned unchanged. `others` are further
    teachers. `statistics` of the curriculum's pool, one record per teacher, are the target of L_bn if given; otherwise
    the teachers' running statistics are.

    Raises:
        ConfigError: `config.objective` is another than Eq. 6.
    """
    if config.enabled and not config.minimises_eq_6:
        raise ConfigError(
            f"synthesis.objective = {config.objective}, but the stage `synthesize` minimises Eq. 6. Call the stage of "
            "that objective (mtt: `match_trajectories`), or set synthesis.objective=cudd."
        )
    local = slice(slices.start - selection.first_slice, slices.stop - selection.first_slice)
    sources = selection.indices[local].flatten()
    labels = selection.classes.repeat(len(slices))
    numbers = torch.arange(slices.start, slices.stop).repeat_interleave(len(selection.classes))
    originals = split.images(sources)
    images, history = originals, list[dict[str, float]]()
    if config.enabled:
        with ExitStack() as stack:
            teachers = restore_committee([teacher, *others])
            runtime.network(teachers)
            student_network = runtime.network(restore_network(student)) if student is not None else None
            normalizer = Normalizer.of(teacher.spec, runtime.device)
            if config.init == "patches":
                places = selection.indices[patched_slices(len(selection.indices), local, config)]
                near = split.images(places.flatten()).view(*places.shape, *originals.shape[1:])
                originals = patchwork(teachers, near, selection.classes, slices, config, normalizer, seed, runtime)
            permuted = config.class_order == "permuted"
            pools = [each.pairs() for each in statistics]
            images, history = descend(
                CuddObjective(teachers, student_network, config, runtime, stack, pools),
                originals,
                labels,
                numbers,
                normalizer,
                seed,
                runtime,
                order=permuted_classes(slices, selection.classes, seed) if permuted else None,
                progress=progress,
            )
    uses_originals = not config.enabled or config.init != "noise" or config.weight_reg > 0
    return Shard(
        images=images,
        labels=labels,
        slices=numbers,
        sources=sources if uses_originals else torch.full_like(sources, -1),
        curriculum=curriculum,
        history=tuple(history),
    )
