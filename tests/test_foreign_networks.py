"""Networks from elsewhere take one leading dim; models give them any number."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import probgen as pg
from probgen.core.foreign import keeps_leading_dims, row_by_row


class Elsewhere(nn.Module):
    """A network of rows ``(B, n)`` that refuses anything else."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.lin = nn.Linear(inputs, outputs)

    def forward(self, *parts):
        for part in parts:
            if part is not None and part.ndim > 2:
                raise RuntimeError(f"expected rows, got {tuple(part.shape)}")
        return self.lin(
            torch.cat([p if p.ndim == 2 else p[:, None] for p in parts if p is not None], -1)
        )


def images() -> torch.Tensor:
    return torch.randn(20, 1, 6, 6)


def convolutional(final: str) -> pg.VAE:
    encoder = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)
    )
    decoder = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 72))
    decoder.append(nn.Unflatten(1, (2, 6, 6)))
    if final == "conv":
        decoder.append(nn.Conv2d(2, 2, 3, padding=1))
    head = pg.heads.Gaussian(decoder, event_ndim=3)
    return pg.VAE(pg.standard_normal(2), head, pg.heads.Gaussian(encoder, context_ndim=3))


@pytest.mark.parametrize("final", ["linear", "conv"])
def test_a_vae_of_plain_layers_fits_samples_scores_and_imputes(final):
    gen, x = convolutional(final), images()
    pg.fit(gen, x, steps=3, batch_size=10, validation=x[:5], verdict=False)
    assert pg.sample(gen, 7).shape == (7, 1, 6, 6)
    score = pg.log_likelihood(gen, x, particles=8)
    assert score.value.isfinite().all() and score.particles == 8
    missing = x.masked_fill(torch.rand_like(x) < 0.2, torch.nan)
    assert pg.impute(gen, missing, draws=2, num_steps=3).draws.shape == (2, *x.shape)
    assert pg.posterior(gen, x, draws=3)["z"].shape == (3, 20, 2)
    assert pg.predictive(gen, x, draws=3)["x"].shape == (3, 20, 1, 6, 6)
    assert pg.log_likelihood(gen, x[0][None]).value.shape == (1,)
    assert gen().sample((2, 3)).shape == (2, 3, 1, 6, 6)


def test_importance_weights_of_training_see_foreign_networks_too():
    gen, x = convolutional("conv"), images()
    pg.fit(gen, x, pg.objectives.IWAE(3), steps=2, verdict=False)
    assert pg.log_likelihood(gen, x, particles=3).value.isfinite().all()


def test_flattened_rows_are_those_of_a_loop():
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 5)
    ).eval()
    x = torch.randn(4, 3, 1, 6, 6)
    found = row_by_row(net, x, ndims=[3])
    assert torch.allclose(found, torch.stack([net(row) for row in x]), atol=1e-6)
    assert torch.allclose(row_by_row(net, x[0, 0], ndims=[3]), found[0, 0], atol=1e-6)


MEMBERS: dict[str, tuple[Callable, tuple]] = {
    "diffusion": (lambda: pg.Diffusion(Elsewhere(3, 2), (2,), sampler=pg.diffusion.DDIM(3)), (2,)),
    "flow matching": (
        lambda: pg.FlowMatching(Elsewhere(3, 2), (2,), solver=pg.flows.Euler(3)),
        (2,),
    ),
    "GAN": (
        lambda: pg.GAN(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)), pg.standard_normal(2)),
        (4,),
    ),
    "energy": (
        lambda: pg.EnergyBasedModel(
            Elsewhere(2, 1), (2,), kernel=pg.samplers.Langevin(0.1), base=pg.standard_normal(2)
        ),
        (2,),
    ),
    "non-Gaussian diffusion": (
        lambda: pg.NonGaussianDiffusion(
            Elsewhere(3, 2), (2,), pg.diffusion.GammaNoise([0.9, 0.6, 0.3])
        ),
        (2,),
    ),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_networks_of_rows_alone_are_enough(name):
    make, event = MEMBERS[name]
    gen = make().eval()
    assert gen().sample((2, 3)).shape == (2, 3, *event)
    assert pg.sample(gen, 5).shape == (5, *event)
    if name != "GAN":
        assert gen().log_prob(torch.zeros(2, 3, *event)).shape == (2, 3)


KEEP = [
    nn.Linear(2, 2),
    nn.Sequential(nn.Linear(2, 2), nn.Tanh()),
    pg.nn.MLP(2, [3], 1),
    pg.nn.Constant(3),
    torch.exp,
]
ROWS = [
    nn.Sequential(nn.Flatten()),
    nn.BatchNorm1d(3),
    nn.Conv2d(1, 1, 1),
    Elsewhere(1, 1),
    pg.nn.SideBySide(nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1))),
]


@pytest.mark.parametrize(
    ("net", "keeps"), [(net, True) for net in KEEP] + [(net, False) for net in ROWS]
)
def test_which_networks_get_their_inputs_as_they_are(net, keeps):
    assert keeps_leading_dims(net) is keeps


def test_a_network_that_keeps_leading_dims_is_called_with_the_very_tensor():
    seen = []
    net = nn.Linear(2, 2)
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.zeros(3, 4, 2)
    row_by_row(net, x, ndims=[1])
    assert seen[0] is x


def test_a_network_that_loses_rows_is_refused_by_name():
    head = pg.heads.Gaussian(nn.Sequential(nn.Flatten(0), nn.Linear(24, 4)))
    with pytest.raises(ValueError, match="expected the network of Gaussian to give"):
        head(torch.zeros(3, 4, 2))
