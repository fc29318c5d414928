"""Names without what compiling and distributing put into them."""

import numpy as np
import pytest

from analysis.files.tensors import Stored
from analysis.files.wrappers import unwrapped


def tensors(*names, tied=()):
    ties = dict(tied)
    return {
        name: Stored((1,), "F32", lambda: np.ones(1, "f4"), tied=ties.get(name, ""))
        for name in names
    }


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["_orig_mod.q.w", "_orig_mod.v.w"], ["q.w", "v.w"]),
        (["h._fsdp_wrapped_module.q.w", "v.w"], ["h.q.w", "v.w"]),
        (["module.q.w", "module.v.w"], ["q.w", "v.w"]),
        (["module.q.w", "v.w"], ["module.q.w", "v.w"]),
        (["_orig_mod.module.q.w"], ["q.w"]),
        (["_orig_mod.q.w", "q.w"], ["_orig_mod.q.w", "q.w"]),  # they would be the same
        ([], []),
    ],
)
def test_unwrapped_names(names, short):
    assert list(unwrapped(tensors(*names))) == short


def test_a_tie_follows_the_name_of_what_it_is_tied_to():
    found = unwrapped(tensors("module.a", "module.b", tied=[("module.b", "module.a")]))
    assert (found["b"].tied, found["a"].tied) == ("a", "")
