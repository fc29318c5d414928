"""The public functions that other code may rely on: their names, arguments and results."""

import inspect

import numpy as np
import pytest

import analysis
from analysis import CheckpointError, checkpoint, similarity, spectrum
from analysis.numerics import decompose, metrics
from analysis.results import COLUMNS, Spectra

# Columns that are computed from s alone, each by the function of its name.
METRICS = (
    "spectral_norm", "frobenius_norm", "nuclear_norm",
    "effective_rank", "energy_entropy_rank", "stable_rank", "participation_ratio", "gini",
)  # fmt: skip


@pytest.fixture
def path(write_adapter, lora_tensors):
    """An adapter of two modules, with a bias beside them that is not an update."""
    tensors = lora_tensors("layers.0.q_proj", "layers.1.q_proj")
    tensors["base_model.model.classifier.bias"] = np.ones(3, "f4")
    return write_adapter(tensors)


def test_read_iterates_over_the_updates_of_a_checkpoint(path):
    updates = checkpoint.read(path)
    assert iter(updates) is updates
    assert [update.name for update in updates] == ["layers.0.q_proj", "layers.1.q_proj"]
    assert list(inspect.signature(checkpoint.read).parameters)[:2] == ["path", "base"]
    assert inspect.signature(checkpoint.read).parameters["base"].default is None
    assert [update.shape for update in checkpoint.read(str(path), base=None)] == [(12, 10)] * 2


def test_an_update_has_singular_values_and_vectors(path):
    for update in checkpoint.read(path):
        s = decompose.singular_values(update)
        U, s_again, Vh = decompose.svd(update)
        want = np.linalg.svd(update.dense(), compute_uv=False)[:4]
        np.testing.assert_allclose(s, want, rtol=0, atol=1e-13 * want[0])
        np.testing.assert_allclose(s_again, want, rtol=0, atol=1e-13 * want[0])
        np.testing.assert_allclose(U * s_again @ Vh, update.dense(), rtol=0, atol=1e-13 * want[0])
        assert (U.shape, s.shape, Vh.shape) == ((12, 4), (4,), (4, 10))
        assert s.dtype == np.float64


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_the_name_of_its_column_and_takes_s(path, name):
    spectra = spectrum.analyse(path)
    assert name in COLUMNS
    for row in spectra.rows:
        value = getattr(metrics, name)(spectra.s[row["key"]])
        assert type(value) is float
        assert value == row[name]


def test_an_analysis_gives_rows_and_singular_values(path):
    spectra = spectrum.analyse(path)
    assert isinstance(spectra, Spectra)
    assert [row["key"] for row in spectra.rows] == [
        "adapter/layers.0.q_proj",
        "adapter/layers.1.q_proj",
    ]
    assert all(tuple(row) == COLUMNS for row in spectra.rows)
    assert list(spectra.s) == [row["key"] for row in spectra.rows]
    by_hand = [decompose.singular_values(update) for update in checkpoint.read(path)]
    for s, want in zip(spectra.s.values(), by_hand, strict=True):
        np.testing.assert_array_equal(s, want)
    several = spectrum.analyse([path], modules="layers.1")
    assert [row["layer"] for row in several.rows] == [1]


def test_phi_is_a_grid_over_the_sizes_of_two_spans():
    U = np.eye(5)
    assert similarity.phi(U[:, :2], U[:, 1:4]).tolist() == [[0, 0, 0], [1, 0.5, 0.5]]


def test_errors_of_a_checkpoint_are_errors_of_the_user(tmp_path):
    assert issubclass(CheckpointError, analysis.UserError)
    assert issubclass(analysis.UserError, ValueError)
    with pytest.raises(CheckpointError, match="nowhere: no such file"):
        spectrum.analyse(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nowhere: no such file"):
        list(checkpoint.read(tmp_path / "nowhere"))
