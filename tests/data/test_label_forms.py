"""What each form keeps of the teacher's logits, and exactly how much it loses."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import log_softmax

from cudd_core.data.label_forms import LabelForm, Storage, decode
from cudd_core.data.replay import batch_bounds
from cudd_core.errors import ConfigError
from cudd_core.stages.relabel import RelabelConfig

HALF = 2**-11
"""Largest relative error of rounding to float16; 2⁻²⁴ is the largest absolute one near zero."""
STORED: list[Storage] = [form for form in get_args(Storage) if form != "none"]
T = 20.0


def logits(seed: int = 0, n: int = 16, classes: int = 10, scale: float = 4.0) -> Tensor:
    return (scale * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))).half()


def through(values: Tensor, form: LabelForm) -> Tensor:
    return decode(form.encode(values), values.shape[1])


def rounding(values: Tensor) -> Tensor:
    return values.abs().float() * HALF + 2**-24


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(STORED), st.integers(0, 10**6), st.integers(2, 300), st.lists(st.integers(1, 40), min_size=1))
def test_batches_are_encoded_alike_alone_and_together(
    storage: Storage, seed: int, classes: int, sizes: list[int]
) -> None:
    """To the bit, so that a shard's digest does not depend on how many batches a device takes at the same time."""
    form, values = LabelForm(storage, 3, T), logits(seed, sum(sizes), classes)
    alone = [form.encode(batch) for batch in values.split(sizes)]
    for name, column in form.encode_batches(values, sizes).items():
        assert torch.equal(column, torch.cat([each[name].reshape(-1, column.shape[1]) for each in alone]))


# ---- 8 bits ---------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3), st.integers(2, 300))
def test_eight_bits_err_by_half_a_step(seed: int, scale: float, offset: float, classes: int) -> None:
    values = (logits(seed, 7, classes, scale).float() + offset).half()
    exact, again = values.float(), through(values, LabelForm("int8")).float()
    span = float(exact.max() - exact.min())
    # Beside half a step: rounding to float16, and float32 arithmetic at the size of the largest logit.
    bound = span / 510 + rounding(again) + 1e-6 * float(exact.abs().max())
    assert bool(((again - exact).abs() <= bound).all())


def test_the_extremes_of_a_batch_come_back_exactly() -> None:
    values = logits()
    again = through(values, LabelForm("int8"))
    assert again.min() == values.min() and again.max() == values.max()
    assert not torch.equal(again, values)


@pytest.mark.parametrize("level", [0.0, -3.7, 60000.0])
def test_a_batch_of_one_value_loses_nothing(level: float) -> None:
    values = torch.full((3, 5), level).half()
    assert torch.equal(through(values, LabelForm("int8")), values)


def test_256_evenly_spaced_values_lose_nothing_and_halves_go_to_even() -> None:
    assert torch.equal(through(torch.arange(256.0).half()[None], LabelForm("int8")), torch.arange(256.0).half()[None])
    halves = torch.tensor([[0.0, 0.5, 1.5, 2.5, 255.0]]).half()
    assert through(halves, LabelForm("int8")).tolist() == [[0, 0, 2, 2, 255]]


# ---- the largest ----------------------------------------------------------------------------------------------------


def tail(values: Tensor, top: int) -> Tensor:
    """float64 logits of all but the largest."""
    return values.double().sort(1, descending=True).values[:, top:]


@pytest.mark.parametrize("top", [1, 3, 8])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_kept_classes_keep_their_probability_and_the_rest_its_mass(top: int, temperature: float) -> None:
    values = logits()
    again = through(values, LabelForm("topk", top, temperature))
    kept = values.argsort(dim=1, descending=True, stable=True)[:, :top]
    assert torch.equal(again.gather(1, kept), values.gather(1, kept))
    exact, decoded = ((x.double() / temperature).softmax(1) for x in (values, again))
    # All that is lost is the rounding of τ to float16.
    torch.testing.assert_close(decoded.gather(1, kept), exact.gather(1, kept), rtol=2e-2 / temperature, atol=0)
    others = torch.ones_like(exact, dtype=torch.bool).scatter(1, kept, False)
    assert all(len(set(row[mask].tolist())) == 1 for row, mask in zip(again, others, strict=True))


@pytest.mark.parametrize("top", [1, 4, 8])
def test_what_is_lost_is_the_divergence_of_the_rest_from_even(top: int) -> None:
    values = logits(n=64)
    again = through(values, LabelForm("topk", top, T)).double()
    log_p, log_q = log_softmax(values.double() / T, 1), log_softmax(again / T, 1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(1)
    rest = (tail(values, top) / T).softmax(1)
    mass = log_p.exp().sort(1, descending=True).values[:, top:].sum(1)
    entropy = -(rest * rest.log()).sum(1)
    torch.testing.assert_close(divergence, mass * (math.log(10 - top) - entropy), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("top", [9, 10])
def test_with_one_class_left_or_none_nothing_is_lost(top: int) -> None:
    for temperature in (0.7, 1.0, 20.0):
        assert torch.equal(through(logits(n=300), LabelForm("topk", top, temperature)), logits(n=300))


def test_equal_others_lose_nothing() -> None:
    values = torch.full((2, 10), -1.5).half()
    values[0, 3], values[1, 9] = 4, 2
    assert torch.equal(through(values, LabelForm("topk", 1, T)), values)


def test_the_rest_s_value_lies_between_the_limits_of_its_temperature() -> None:
    """From the largest of the others, T → 0, to their mean, T → ∞."""
    values = logits()
    levels = [LabelForm("topk", 3, t).encode(values)["logits"][:, -1].double() for t in (1e-3, 1.0, 20.0, 1e4)]
    for hot, cold in zip(levels[1:], levels[:-1], strict=True):
        assert bool((hot < cold).all())
    others = tail(values, 3)
    torch.testing.assert_close(levels[0], others[:, 0], rtol=2e-3, atol=4e-3)
    torch.testing.assert_close(levels[-1], others.mean(1), rtol=2e-3, atol=4e-3)


def test_equal_logits_are_kept_by_class() -> None:
    values = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]).half()
    assert LabelForm("topk", 2, T).encode(values)["classes"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(256, torch.uint8), (257, torch.int16), (2**15, torch.int16), (2**15 + 1, torch.int32)],
)
def test_any_class_can_be_kept(classes: int, dtype: torch.dtype) -> None:
    values = torch.zeros(1, classes).half()
    values[0, -1], values[0, 0] = 3, 2
    columns = LabelForm("topk", 2, T).encode(values)
    assert columns["classes"].dtype == dtype
    assert torch.equal(decode(columns, classes), values)


def test_the_largest_in_eight_bits_are_the_largest_within_half_a_step() -> None:
    values = logits()
    plain, coded = (LabelForm(storage, 3, T) for storage in ("topk", "topk-int8"))
    levels = plain.encode(values)["logits"].float()
    error = (through(values, coded).float() - through(values, plain).float()).abs()
    assert float(error.max()) <= float(levels.max() - levels.min()) / 510 + float(rounding(levels).max())
    assert torch.equal(coded.encode(values)["classes"], plain.encode(values)["classes"])


# ---- all forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORED)
def test_encoding_repeats_and_what_was_decoded_is_float16(storage: Storage) -> None:
    form = LabelForm(storage, 3, T)
    first, second = form.encode(logits()), form.encode(logits())
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    again = decode(first, 10)
    assert again.dtype == torch.float16 and again.shape == (16, 10)
    assert storage != "full" or torch.equal(again, logits())


@pytest.mark.parametrize("storage", STORED)
@pytest.mark.parametrize("top", [1, 9, 10])
def test_columns_are_as_laid_out_and_bytes_are_theirs(storage: Storage, top: int) -> None:
    form = LabelForm(storage, top, T)
    bounds = batch_bounds(37, 16)  # 16, 16, 5
    empty = form.empty(10, 4, 37, len(bounds))
    assert form.bytes(10, 4, 37, len(bounds)) == sum(column.nbytes for column in empty.values())
    for start, stop in bounds:
        for name, value in form.encode(logits(n=stop - start)).items():
            whole = empty[name][0]
            assert value.dtype == whole.dtype
            assert value.shape == (whole[start:stop].shape if name != "range" else whole[0].shape)


def test_nothing_is_laid_out_where_nothing_is_stored() -> None:
    assert LabelForm("none").layout(10) == {} and LabelForm("none").bytes(10, 1000, 100, 7) == 0


def test_sizes_in_closed_form() -> None:
    def size(storage: Storage, classes: int = 10, top: int = 5, reuse: int = 1) -> int:
        config = RelabelConfig(storage=storage, top=top, reuse=reuse)
        return config.stored_bytes(classes, images=100, epochs=1000, batch_size=16)  # 7 batches

    assert size("full") == 1000 * 100 * 10 * 2
    assert size("int8") == 1000 * (100 * 10 + 7 * 4)
    assert size("topk") == 1000 * 100 * (6 * 2 + 5)
    assert size("topk", classes=1000) == 1000 * 100 * (6 * 2 + 5 * 2)
    assert size("topk-int8") == 1000 * (100 * (6 + 5) + 7 * 4)
    assert size("full", reuse=3) == 334 * 100 * 10 * 2
    # The combination that docs/labels.md recommends for ten classes.
    assert size("full") / size("int8", reuse=12) > 20


def test_more_logits_than_classes_are_refused() -> None:
    RelabelConfig(storage="topk", top=10).check_classes(10)
    RelabelConfig(storage="int8", top=11).check_classes(10)
    with pytest.raises(ConfigError, match=r"relabel\.top = 11 .* 10 classes.*int8"):
        RelabelConfig(storage="topk-int8", top=11).check_classes(10)
