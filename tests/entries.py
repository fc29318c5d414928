"""Read a checkpoint in a test: its entries, its updates, the reasons of what was skipped."""

import numpy as np

from analysis import checkpoint
from analysis.formats import Options
from analysis.update import Skipped


def scan(path, **options):
    """name → entry."""
    return {entry.name: entry for entry in checkpoint.scan(path, Options(**options))}


def scan_parts(path, **options):
    """(name, part) → entry."""
    return {(e.name, getattr(e, "part", "")): e for e in checkpoint.scan(path, Options(**options))}


def updates(path, **options):
    """(name, part) → update; CheckpointError if anything is skipped."""
    return {(u.name, u.part): u for u in checkpoint.read(path, options=Options(**options))}


def reasons(path, **options):
    """name → why it was skipped."""
    entries = checkpoint.scan(path, Options(**options))
    return {e.name: e.reason for e in entries if isinstance(e, Skipped)}


def close(update, want):
    """Equal to the rounding of float32."""
    np.testing.assert_allclose(update.dense(), want, rtol=0, atol=1e-6 * np.abs(want).max())
