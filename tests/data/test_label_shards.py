"""Labels written for several batches at once."""

from __future__ import annotations

import pytest
import torch

from cudd_core.data.label_forms import LabelForm, Storage
from cudd_core.data.label_shards import as_record, batch_labels, put_batches

BOUNDS = [(0, 4), (4, 8), (8, 10)]


@pytest.mark.parametrize("storage", ["full", "int8", "topk", "topk-int8"])
def test_batches_together_lie_where_they_lie_one_by_one(storage: Storage) -> None:
    form = LabelForm(storage, top=2, temperature=4.0)
    logits = torch.randn(10, 5, generator=torch.Generator().manual_seed(0)).half()
    made = [form.encode(logits[start:stop]) for start, stop in BOUNDS]
    together, encoded_together, singly = (form.empty(5, 2, 10, len(BOUNDS)) for _ in range(3))
    for columns in (together, encoded_together, singly):
        for column in columns.values():
            column.zero_()
    put_batches(together, made[1:] + made[:2], 1, BOUNDS)
    put_batches(together, made[2:], 5, BOUNDS)
    encoded = [
        form.encode_batches(torch.cat([logits[4:], logits[:4]]), [4, 2, 4]),
        form.encode_batches(logits[4:], [4, 2]),
    ]
    put_batches(encoded_together, encoded, 1, BOUNDS)
    for step, each in enumerate(made[1:] + made):
        put_batches(singly, [each], 1 + step, BOUNDS)
    for name, column in together.items():
        assert torch.equal(column, singly[name]) and torch.equal(column, encoded_together[name])
        assert not column[0, 0].any() and column[1].any()
    if storage == "full":
        assert torch.equal(together["logits"][0, 4:], logits[4:]) and not together["logits"][0, :4].any()
        assert torch.equal(together["logits"][1], logits)


@pytest.mark.parametrize("epoch", [6, 9, 0, -1])
def test_an_epoch_that_a_shard_has_not_is_an_error_and_no_other_epoch_s_labels(epoch: int) -> None:
    shard = as_record({"logits": torch.zeros(2, 10, 5, dtype=torch.float16)}, 5, first_epoch=7)
    assert batch_labels(shard, 8, 0, BOUNDS[0]).shape == (4, 5)
    with pytest.raises(IndexError, match=f"epochs 7 to 8 have no epoch {epoch}"):
        batch_labels(shard, epoch, 0, BOUNDS[0])
