"""What every test starts from."""

import os

import pyro
import pytest
import torch

# the tensors of tests are small: on a busy machine a second thread costs several times what it
# saves
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for tutorials and workers
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same seed and leaves Pyro's global parameter store as it found it.

    Empty.
    """
    pyro.set_rng_seed(0)
    yield
    used = list(pyro.get_param_store())
    pyro.clear_param_store()
    assert not used, (
        f"the global parameter store was used: {used}; a test that runs plain Pyro clears it"
    )
