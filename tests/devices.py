"""The devices that conformance tests run on: the CPU, and a GPU where there is one."""

import pytest
import torch

without = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=without)])
