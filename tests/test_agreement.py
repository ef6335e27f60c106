"""Training, NUTS, scores and plain Pyro read every program in the same way, to rounding."""

import warnings

import pyro
import pytest
from agreement import gap, nuts, prepared, routes
from programs import PROGRAMS

# a subset that the caller chose stands for more rows in Pyro's loss; the density of the rows at
# hand has no such factor
BATCHES = {
    "subsample_given",
    "svi_lightning",
    "easy_guide_series",
    "easy_guide_amortized",
    "auxiliary_site",
}
# the model draws the weights of a new network at each run, and uses them
RANDOM = {"module_in_model"}
# observed values are computed from what the guide enumerates: there is no run in which they are
# drawn
ENUMERATED = {"tracking_1d"}
GUIDED = [
    case for case in PROGRAMS if case.loss is not None and case.name not in BATCHES | ENUMERATED
]
SAMPLED = [case for case in PROGRAMS if case.nuts and case.name not in BATCHES | RANDOM]
TOLERANCE = 2e-5


def named(case):
    return case.name


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    pyro.clear_param_store()


@pytest.mark.table(quick=15)
@pytest.mark.parametrize("case", GUIDED, ids=named)
def test_training_scores_and_pyro_agree(case):
    numbers = routes(*prepared(case))
    truth = numbers.get("pyro", numbers["reading"])
    assert {
        name: gap(value, truth) < TOLERANCE for name, value in numbers.items()
    } == dict.fromkeys(numbers, True)


@pytest.mark.table(quick=21)
@pytest.mark.parametrize("case", SAMPLED, ids=named)
def test_nuts_climbs_the_density_that_is_read(case):
    one, two = nuts(*prepared(case))
    assert gap(one, two) < TOLERANCE
