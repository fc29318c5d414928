"""α and r among the settings of a file."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis.files.place import Place
from analysis.files.tensors import Stored
from analysis.formats import stated
from analysis.formats.stated import Stated

PAIR = {"B": Stored((6, 4), "F32", lambda: np.ones((6, 4), "f4"))}


@pytest.mark.parametrize(
    ("metadata", "want"),
    [
        ({"lora_alpha": "32", "r": "4"}, Stated(32, 4)),
        ({"alpha": "8", "rank": "4"}, Stated(8, 4)),
        ({"lora_config": json.dumps({"lora_alpha": 2, "lora_r": 4})}, Stated(2, 4)),
        ({"c": json.dumps({"lora": {"alpha": 2, "r": 4, "use_rslora": True}})}, Stated(2, 4, True)),
        ({"lora_alpha": "32"}, None),
        ({"lora_alpha": "32", "r": "8"}, None),  # another rank
        ({"lora_alpha": "32", "r": "4", "alpha_pattern": '{"q": 4}'}, None),  # another α
        ({"lora_alpha": "32", "r": "4", "rank_pattern": "{}"}, Stated(32, 4)),
        ({"lora_alpha": "nan", "r": "4"}, None),
        ({"lora_alpha": "x", "r": "4"}, None),
        ({"lora_alpha": "32", "r": "4", "c": json.dumps({"lora_alpha": 2, "r": 4})}, None),
        ({"c": "{" * 100_000}, None),
        ({"c": "[1]"}, None),
        ({}, None),
    ],
)
def test_one_alpha_and_r_are_taken(tmp_path, metadata, want):
    save_file({"x": np.ones(1)}, tmp_path / "a.safetensors", metadata)
    place = Place(tmp_path / "a.safetensors")
    assert stated.scale(place, [PAIR, {}]) == want
    assert stated.scale(place, [PAIR, {"alpha": PAIR["B"]}]) is None
    assert stated.scale(place, []) is None


def test_the_scale_is_alpha_over_r_or_its_root():
    assert Stated(32, 4).scale == 8
    assert Stated(32, 4, rslora=True).scale == 16
    assert "scale 8" in Stated(32, 4).remark
