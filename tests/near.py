"""What the tests of adapter layers share: an input, and equality to rounding."""

import torch


def inputs(layer, *batch, dtype=torch.float64):
    """The same numbers every time, (*batch, d_in)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*batch, layer.in_features, generator=generator, dtype=torch.float64)
    return x.to(dtype)


def assert_near(got, want, factor=100):
    """Equal to rounding: a small multiple of eps of the largest entry."""
    eps = torch.finfo(want.dtype).eps
    scale = float(want.detach().abs().max())
    torch.testing.assert_close(got, want, rtol=0, atol=factor * eps * scale)
