"""The adapter to ArviZ, under whichever version is installed.

It needs neither torch nor Pyro, nor does this file.

``pytest --noconftest tests/test_arviz_versions.py`` runs it where ArviZ 1.x is installed alone
(Python 3.12).
"""

import importlib.util
from pathlib import Path

import arviz as az
import numpy as np
import pytest
import xarray

SOURCE = Path(__file__).parent.parent / "probgen" / "diagnostics" / "adapter.py"
SPEC = importlib.util.spec_from_file_location("adapter", SOURCE)
adapter = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(adapter)
MAJOR = int(az.__version__.split(".")[0])
LABELS = {"data": [10, 20, 30, 40, 50], "feature": ["a", "b", "c"]}


pytestmark = pytest.mark.filterwarnings(
    "ignore:Estimated shape parameter"
)  # five rows tell little about tails


def labeled():
    """Two chains of 100 draws of N(0, 1), five rows of y ~ N(mu, 1) with three features each."""
    random = np.random.default_rng(0)
    mu, x = random.normal(size=(2, 100)), random.normal(size=(5, 3))
    rows = -((x.sum(1) - mu[..., None]) ** 2) / 2
    sample = ("chain", "draw")
    return {
        "posterior": {"mu": (sample, mu)},
        "posterior_predictive": {
            "x": ((*sample, "data", "feature"), mu[..., None, None] + np.zeros((5, 3)))
        },
        "prior": {},
        "log_likelihood": {"x": ((*sample, "data"), rows)},
        "sample_stats": {
            "diverging": (sample, mu > 2),
            "log_p": (sample, rows.sum(-1) - mu**2 / 2),
            "log_q": (sample, -(mu**2) / 2),
        },
        "observed_data": {"x": (("data", "feature"), x)},
    }


def reference(groups):
    """What ArviZ's own converter makes of the same arrays."""
    arrays = {
        group: {name: array for name, (_, array) in part.items()}
        for group, part in groups.items()
        if part
    }
    options = {"dims": {"x": ["data", "feature"]}, "coords": LABELS}
    return az.from_dict(**arrays, **options) if MAJOR < 1 else az.from_dict(arrays, **options)


def as_dataset(group):
    return group if isinstance(group, xarray.Dataset) else group.to_dataset()


def names_of(container):
    return sorted(
        container.children if isinstance(container, xarray.DataTree) else container.groups()
    )


def test_container_equals_that_of_arviz():
    groups = labeled()
    found, expected = adapter.container(groups, LABELS), reference(groups)
    assert type(found) is type(expected) and names_of(found) == names_of(expected)
    for group in names_of(expected):
        xarray.testing.assert_equal(as_dataset(found[group]), as_dataset(expected[group]))


def test_statistics_of_arviz_accept_it():
    found = adapter.container(labeled(), LABELS)
    assert abs(float(np.asarray(az.summary(found)["mean"])[0])) < 0.2
    assert az.loo(found).n_data_points == 5


@pytest.mark.skipif(
    MAJOR < 1,
    reason="ArviZ 0.x has no loo_approximate_posterior: probgen.diagnostics.loo stands in",
)
def test_arviz_corrects_loo_for_the_approximation():
    found = adapter.container(labeled(), LABELS)
    stats = found["sample_stats"]
    corrected = az.loo_approximate_posterior(found, stats["log_p"], stats["log_q"])
    assert corrected.approx_posterior and corrected.elpd != az.loo(found).elpd


def test_it_goes_to_a_file_and_back(tmp_path):
    found, path = (
        adapter.container(labeled(), LABELS, {"inference_library": "probgen"}),
        tmp_path / "fit.nc",
    )
    found.to_netcdf(path)
    back = az.from_netcdf(path)
    for group in names_of(found):
        xarray.testing.assert_equal(as_dataset(back[group]), as_dataset(found[group]))
    assert back["posterior"].attrs["inference_library"] == "probgen"


def test_an_arviz_that_calls_itself_1_gets_a_tree(monkeypatch):
    """On 0.x this simulates the version number alone; xarray's tree is the real one."""
    expected = adapter.container(labeled(), LABELS)
    monkeypatch.setattr(az, "__version__", "1.3.0")
    found = adapter.container(labeled(), LABELS)
    assert isinstance(found, xarray.DataTree)
    for group in names_of(found):
        xarray.testing.assert_equal(as_dataset(found[group]), as_dataset(expected[group]))


def test_dims_without_labels_are_numbered():
    found = adapter.container({"posterior": {"mu": (("chain", "draw"), np.zeros((1, 3)))}})
    assert found["posterior"]["draw"].values.tolist() == [0, 1, 2]


def test_labels_of_the_wrong_length_are_named():
    with pytest.raises(ValueError, match="expected 5 labels for dim 'data', got 2"):
        adapter.container(labeled(), {"data": ["a", "b"]})


def test_one_dim_of_two_lengths_is_named():
    clash = {
        "posterior": {
            "a": (("chain", "draw"), np.zeros((1, 3))),
            "b": (("chain", "draw"), np.zeros((1, 4))),
        }
    }
    with pytest.raises(ValueError, match="expected one length of dim 'draw'"):
        adapter.container(clash)
