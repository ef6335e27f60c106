"""Distances of points that lie far from zero, in single precision, are those of points near it."""

import torch

from probgen.nn import RBFKernel
from probgen.nn.quantizers import Codebook


def test_covariances_do_not_change_when_inputs_move():
    torch.manual_seed(0)
    kernel = RBFKernel(2)
    a, b = torch.randn(6, 2).round(decimals=2), torch.randn(4, 2).round(decimals=2)
    moved = kernel((a.double() + 1e4).float(), (b.double() + 1e4).float())
    torch.testing.assert_close(moved, kernel(a, b), atol=5e-3, rtol=0)


def test_nearest_codes_are_found_far_from_zero():
    torch.manual_seed(0)
    quantizer = Codebook(16, 3).eval()
    with torch.no_grad():
        quantizer.codes.copy_(torch.randn(16, 3) + 3e4)
    z = torch.randn(200, 3) + 3e4
    truth = torch.cdist(z.double(), quantizer.codes.double()).argmin(-1)
    assert torch.equal(quantizer.nearest(z), truth)
