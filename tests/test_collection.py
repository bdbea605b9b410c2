from __future__ import annotations

import gc

import pytest

from cudd_core.collection import uncollected


def test_collection_stays_off_until_the_last_has_left() -> None:
    """Freeing an old graph would abort the recording of a new one, whoever else was here meanwhile."""
    one, other = uncollected(), uncollected()
    assert gc.isenabled()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert not gc.isenabled()
    other.__exit__(None, None, None)
    assert gc.isenabled()


def test_it_stays_off_where_it_was_and_comes_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="meanwhile"), uncollected():
        raise ValueError("meanwhile")
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
