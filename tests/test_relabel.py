"""Labels of components, shuffled on purpose, are found again."""

import pytest
import torch

from probgen.infer.relabel import relabel


def shuffled(draws=60, components=4):
    """Draws with largest weight first, the same with components permuted in each draw.

    And the permutations.
    """
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1]) + 0.02 * torch.randn(draws, components)
    means = torch.tensor([[0.0, 5.0], [5.0, 0.0], [-5.0, 0.0], [0.0, -5.0]]) + torch.randn(
        draws, components, 2
    )
    component = torch.randint(components, (draws, 7))
    order = torch.stack([torch.randperm(components) for _ in range(draws)])
    rows = torch.arange(draws)[:, None]
    tidy = {"weights": weights, "means": means, "component": component, "other": torch.randn(draws)}
    new_labels = order.argsort(1).gather(1, component)
    mixed = tidy | {
        "weights": weights[rows, order],
        "means": means[rows, order],
        "component": new_labels,
    }
    return tidy, mixed


def test_shuffled_components_are_put_back():
    tidy, mixed = shuffled()
    found = relabel(mixed)
    assert not torch.equal(mixed["means"], tidy["means"])
    for name, value in tidy.items():
        assert torch.equal(found[name], value), name


def test_chains_keep_their_shape():
    tidy, mixed = shuffled()
    found = relabel({name: value.unflatten(0, (3, 20)) for name, value in mixed.items()}, leading=2)
    assert all(
        torch.equal(found[name], value.unflatten(0, (3, 20))) for name, value in tidy.items()
    )


def test_one_component_and_full_covariances_pass_through():
    draws = {"weights": torch.ones(5, 1), "correlations": torch.randn(5, 1, 2, 2)}
    found = relabel(draws, sites=("weights", "correlations"))
    assert all(torch.equal(found[name], value) for name, value in draws.items())


def test_draws_without_components_are_refused():
    with pytest.raises(
        ValueError,
        match=r"expected draws of some of \['weights', 'means', 'scales'\], got \['mu'\]",
    ):
        relabel({"mu": torch.zeros(3)})
