"""What every test starts from."""

import pyro
import pytest


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same seed and leaves Pyro's global parameter store as it found it: empty."""
    pyro.set_rng_seed(0)
    yield
    assert len(pyro.get_param_store()) == 0, "the global parameter store was used"
