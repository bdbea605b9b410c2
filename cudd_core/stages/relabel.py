"""Relabel: the teacher's logits for every augmented, mixed batch that training will see."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from cudd_core.compute.runtime import Runtime
from cudd_core.configuration import Switch
from cudd_core.data.label_forms import LabelForm, Storage
from cudd_core.data.label_shards import BYTES_TOGETHER, as_record, put_batches
from cudd_core.data.replay import Replay, ReplayConfig, batch_bounds
from cudd_core.errors import ConfigError
from cudd_core.labelling import TeacherLabels, Teaching
from cudd_core.progress import Progress, silent
from cudd_core.records import LabelShard, SyntheticSet
from cudd_core.schedule import cut

VERSION = 2


class RelabelConfig(ReplayConfig):
    """The augmentation, how the teacher sees it, how labels are stored, and how many epochs one task labels."""

    batchnorm: Annotated[Literal["eval", "batch"], Switch()] = Field(
        "eval", description="The teacher's BatchNorm uses its running statistics, or those of each batch (CV-DD)."
    )
    storage: Annotated[Storage, Switch()] = Field(
        "full",
        description="float16 logits; 8 bits each; only the `top` largest; both; or none: computed during training.",
    )
    top: int = Field(
        5, ge=1, description="k of topk and topk-int8: logits kept per image; one value stands for all the others."
    )
    epochs_per_shard: int = Field(100, ge=1, description="Epochs that one task labels.")

    @property
    def batch_statistics(self) -> bool:
        """Whether the teacher's BatchNorm uses the statistics of each batch."""
        return self.batchnorm == "batch"

    def form(self, temperature: float) -> LabelForm:
        """Return the storage form of labels that networks are trained on at `temperature`."""
        return LabelForm(self.storage, self.top, temperature)

    def shards(self, epochs: int) -> tuple[range, ...]:
        """Return the distinct epochs of a training of `epochs` epochs, as they are divided among tasks."""
        return cut(range(self.distinct_epochs(epochs)), self.epochs_per_shard)

    def stored_bytes(self, num_classes: int, images: int, epochs: int, batch_size: int) -> int:
        """Return the bytes that a set's labels take for `epochs` epochs of training, without file headers."""
        batches = len(batch_bounds(images, batch_size))
        return self.form(1.0).bytes(num_classes, self.distinct_epochs(epochs), images, batches)

    def check_classes(self, num_classes: int) -> None:
        """Raise ConfigError if more logits per image are to be kept than there are classes."""
        if self.storage.startswith("topk") and self.top > num_classes:
            raise ConfigError(
                f"relabel.top = {self.top} logits of each image are to be kept, but the data has {num_classes} "
                "classes. Set relabel.top to fewer, or relabel.storage=int8."
            )


def relabel(
    teaching: Teaching,
    synthetic: SyntheticSet,
    epochs: range,
    batch_size: int,
    config: ReplayConfig,
    seed: int,
    runtime: Runtime,
    *,
    form: LabelForm = LabelForm(),  # noqa: B008
    progress: Progress = silent,
) -> LabelShard:
    """Return the teachers' logits for `epochs` of the replay, encoded in `form`, which must be one that is stored.

    Raises:
        ModelError: batch statistics are asked for, but a teacher has no BatchNorm.
    """
    assert form.storage != "none", "labels that are not stored are not made"
    spec = teaching.teacher.spec
    replay = Replay(synthetic, spec, config, batch_size, seed, runtime)
    labels = TeacherLabels(teaching, runtime)
    classes = spec.num_classes
    columns = form.empty(classes, len(epochs), len(synthetic.labels), replay.steps_per_epoch)
    # Fetching labels waits for the GPU, so it is done for several batches at once.
    together = max(1, BYTES_TOGETHER // (2 * classes * batch_size)) if runtime.device.type == "cuda" else 1
    put, done, steps, made = 0, 0, replay.steps_per_epoch, list[dict[str, Tensor]]()
    for views, asked in replay.walk(epochs):
        sizes = [stop - start for start, stop in views.bounds] * len(asked)
        made.append(form.encode_batches(labels.of_epochs(asked, views), sizes))
        done += len(sizes)
        if done - put >= together or done == steps * len(epochs):
            put_batches(columns, made, put, replay.bounds)
            made.clear()
            put = done
        progress(done / steps, len(epochs), {})
    return as_record(columns, classes, epochs.start)
