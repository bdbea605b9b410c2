"""What `cudd export` writes: the set of a run, or of a folder, for other tools."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from cudd_core.compute.runtime import Runtime
from cudd_core.data.label_shards import unpacked
from cudd_core.data.replay import batch_bounds
from cudd_core.errors import ConfigError, StoreError
from cudd_core.exchange import Bundle, ExportManifest, Labelling, Origin, read_set, write_export
from cudd_core.labelling import Teaching
from cudd_core.records import LabelShard, NetworkRecord, SoftLabels, SyntheticSet
from cudd_core.stages.relabel import relabel
from flows.beginning import Beginning, own_outputs, read_beginning
from flows.distill import pipeline
from flows.recipe import Recipe
from flows.recipes import changes_of
from flows.walk import Part
from tasks.addresses import SUMMARY_FILE
from tasks.context import DataRef
from tasks.refs import Ref
from tasks.store import Store

_PATHS = ("data.root=", "teacher.weights=", "other_teachers=")


def export(
    source: str,
    format_name: str,
    to: Path,
    *,
    soft_labels: bool = False,
    force: bool = False,
    store: Store | None = None,
) -> ExportManifest:
    """Write the set of a run (its MLflow run id, or a folder with its summary.json) or of a folder to `to`.

    `store` is used only if a run is asked for; default: that of the environment. With `soft_labels`, the labels of all
    distinct epochs of the evaluation are included, as float16 logits whatever the form that they are stored in; if none
    are stored, the teachers compute them again. `force` replaces a previous export.

    Raises:
        UserError: no such run or set, one that is not finished, soft labels of a folder, a target that cannot be used.
        StoreError: the store cannot be reached.
    """
    folder = Path(source).expanduser()
    run = _run_of(folder) if folder.is_dir() else source
    if run is not None:
        bundle = run_bundle(run, store or Store.from_environment().connect(), soft_labels=soft_labels)
    elif soft_labels:
        raise ConfigError(f"--soft-labels: {folder} is a folder, and labels lie in the store. Give the id of the run.")
    else:
        found = read_set(folder)
        bundle = Bundle(found.synthetic, found.manifest.origin if found.manifest else Origin())
    return write_export(bundle, format_name, to, force=force)


def run_bundle(run: str, store: Store, *, soft_labels: bool) -> Bundle:
    """Return the finished set of a run, its teacher and, if wanted, the soft labels of its evaluation.

    Raises:
        ConfigError: no such run, or a part of it is not stored.
    """
    beginning, ledger = read_beginning(run, store), store.ledger()
    recipe = beginning.recipe
    walked = beginning.walk(store, ledger)
    results = pipeline(walked, recipe)
    if own := own_outputs(run, store, ledger, walked.parts):
        return _own_bundle(run, store, beginning, own, soft_labels)
    labels = results.labels["distilled"] if soft_labels else ()
    if soft_labels and recipe.evaluation.labels == "hard":
        raise ConfigError(f"--soft-labels: run {run} was evaluated on hard labels, so it has none.")
    wanted = (results.dataset, *results.teacher.networks, *labels)
    if lacking := [ref.stage for ref in wanted if ledger.standing(ref.key) != "stored"]:
        raise ConfigError(
            f"Run {run} has no finished {lacking[0]} output to export. Run the recipe to its end first; "
            f"`cudd status {run}` shows what is missing."
        )
    synthetic, teacher = store.fetch(results.dataset), _network(store, results.teacher.network)
    assert isinstance(synthetic, SyntheticSet)
    training = recipe.evaluation.training
    if recipe.relabel.storage == "none":
        shards = _answered(store, teacher, results.teacher.others, synthetic, recipe)
    else:
        shards = _stored(store, labels, batch_bounds(len(synthetic.labels), training.batch_size))
    labelling = Labelling(
        *(shards, recipe.relabel, training.batch_size, recipe.seed, recipe.evaluation.temperature),
        other_teachers=tuple(each.arch for each in recipe.other_teachers),
    )
    return Bundle(synthetic, _origin(run, recipe, beginning.data, store), teacher, labelling if soft_labels else None)


def _own_bundle(run: str, store: Store, beginning: Beginning, own: Sequence[Part], soft_labels: bool) -> Bundle:
    """Return the set of a run whose stages now come to another one; its labels would be made for that one."""
    if soft_labels:
        raise ConfigError(
            f"--soft-labels: run {run} was made with another version of this software, or its stages were made again "
            "with another result. Leave them out, or distil the recipe again."
        )
    sets = [part.ref for part in own if part.stage == "assemble" and part.standing == "stored"]
    if len(sets) != 1:
        raise ConfigError(f"Run {run} was made with another version of this software, and its set is not stored.")
    synthetic = store.fetch(sets[0])
    assert isinstance(synthetic, SyntheticSet)
    teachers = [part.ref for part in own if part.stage == "squeeze" and part.standing == "stored"]
    teacher = _network(store, teachers[0]) if len(teachers) == 1 else None
    return Bundle(synthetic, _origin(run, beginning.recipe, beginning.data, store), teacher)


def _stored(store: Store, refs: Iterable[Ref], bounds: list[tuple[int, int]]) -> Iterator[SoftLabels]:
    """Fetch and decode label shards one at a time. `bounds`: the batches of an epoch."""
    for ref in refs:
        record = store.fetch(ref)
        assert isinstance(record, LabelShard)
        yield unpacked(record, bounds)


def _answered(
    store: Store, teacher: NetworkRecord, others: Iterable[Ref], synthetic: SyntheticSet, recipe: Recipe
) -> Iterator[SoftLabels]:
    """Have the teachers compute labels that the run did not store, as many epochs at a time as a shard holds."""
    training, runtime = recipe.evaluation.training, Runtime(recipe.compute)
    teaching = Teaching(teacher, recipe.relabel.batch_statistics, [_network(store, ref) for ref in others])
    for epochs in recipe.relabel.shards(training.epochs):
        shard = relabel(teaching, synthetic, epochs, training.batch_size, recipe.relabel, recipe.seed, runtime)
        assert isinstance(shard, SoftLabels)
        yield shard


def _origin(run: str, recipe: Recipe, data: DataRef, store: Store) -> Origin:
    config = recipe.model_dump(mode="json")
    # Paths on this machine are nobody else's business.
    config["data"]["root"] = ""
    changes = tuple(change for change in changes_of(recipe) or () if not change.startswith(_PATHS))
    for teacher in (config["teacher"], *config["other_teachers"]):
        teacher["weights"] = PurePath(teacher["weights"]).name
    try:
        accuracy: dict[str, Any] = json.loads(store.pipelines.read_text(run, SUMMARY_FILE))["accuracy"]
    except (StoreError, ValueError, KeyError):
        accuracy = {}  # an unfinished run; its set is there all the same
    return Origin(recipe.name, run, data.train, config, accuracy, changes)


def _network(store: Store, ref: Ref) -> NetworkRecord:
    record = store.fetch(ref)
    assert isinstance(record, NetworkRecord)
    return record


def _run_of(folder: Path) -> str | None:
    """Return the run that a folder with a summary belongs to. Raises ConfigError for a summary that names none."""
    file = folder / SUMMARY_FILE
    if not file.is_file():
        return None
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["mlflow_run_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} names no run ({error}). Give the MLflow run id itself.") from error
