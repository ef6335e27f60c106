"""Pictures: what is drawn is what was asked for, read back from the artists."""

import inspect
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from asked.pictures import PICTURES, flow, history, markov, matching, network
from torch import nn

import probgen as pg
from probgen import plot
from probgen.distributions.sequences.hidden_markov import HiddenMarkov
from probgen.plot.canvas import FIRST, SECOND
from probgen.plot.images import MISSING

GRAY = mpl.colormaps["gray"]


@pytest.fixture(autouse=True)
def closed():
    """No figure is left open."""
    plt.close("all")
    yield
    plt.close("all")


def called(name, **changes):
    """The good call of a function, with some arguments changed."""
    arguments = {**PICTURES[name](), **changes}
    batch = arguments.pop("*batch", None)
    if batch is not None:
        return getattr(plot, name)(arguments.pop("gen"), *batch, **arguments)
    return getattr(plot, name)(**arguments)


def line(ax, label):
    """The line of a label."""
    (found,) = [each for each in ax.lines if each.get_label() == label]
    return found


def colors(ax):
    """The colors and opacity of the only picture."""
    (picture,) = ax.images
    return np.asarray(picture.get_array())


def offsets(collection):
    """The points of a scatter plot."""
    return np.asarray(collection.get_offsets())


def area(collection):
    """Of a polygon, by the shoelace formula."""
    x, y = collection.get_paths()[0].vertices.T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


# every function


def test_all_of_the_namespace_is_in_the_table():
    assert set(PICTURES) == set(plot.__all__)


@pytest.mark.parametrize("name", PICTURES)
def test_axes_that_are_given_are_drawn_in_and_returned(name):
    where = "ax" if "ax" in inspect.signature(getattr(plot, name)).parameters else "axes"
    shape = {"columns": (1, 2), "column_pairs": (2, 2)}.get(name, (1, 1))
    figure, given = plt.subplots(*shape)
    before = dict(mpl.rcParams)
    found = called(name, **{where: given})
    assert found is given or (np.ravel(found) == np.ravel(given)).all()
    assert plt.get_fignums() == [figure.number]
    assert dict(mpl.rcParams) == before
    assert all(each.has_data() or each.texts for each in np.atleast_1d(given).flat)
    figure.canvas.draw()


@pytest.mark.parametrize("name", PICTURES)
def test_without_axes_there_is_one_new_figure(name):
    where = "ax" if "ax" in inspect.signature(getattr(plot, name)).parameters else "axes"
    found = called(name, **{where: None})
    (number,) = plt.get_fignums()
    assert np.atleast_1d(found).flat[0].figure.number == number


# training


def test_a_loss_curve_has_every_step_its_mean_and_the_best_validation():
    ax = plot.loss_curve(history(), window=3)
    loss = history().loss
    assert line(ax, "each step").get_ydata().tolist() == loss
    naive = [np.mean(loss[max(0, n - 1) : n + 2]) for n in range(20)]
    assert line(ax, "mean of 3 steps").get_ydata() == pytest.approx(naive)
    assert line(ax, "validation").get_xydata().tolist() == [[9, 12], [19, 3]]
    assert line(ax, "best: 3 at step 19").get_xydata().tolist() == [[19, 3]]
    assert ax.get_title(loc="left") == "20 steps done"
    assert [10, 10] in [list(each.get_xdata()) for each in ax.lines]  # the second stage


def test_parts_and_other_series_of_a_history():
    ax = plot.loss_curve(history(), parts=True, window=1)
    assert set(line(ax, "kl").get_ydata()) == {1.0}
    assert plot.gradient_norms(history()).get_yscale() == "log"
    assert plot.learning_rates(history()).lines[0].get_ydata() == pytest.approx([0.1] * 20)


def test_a_first_loss_far_above_all_others_does_not_press_them_flat():
    loss = [1e6, *np.linspace(2, 1, 99)]
    low, high = plot.loss_curve(pg.History(loss=loss)).get_ylim()
    assert 0.9 < low < 1 and 1.9 < high < 2.3


# images


def test_images_stand_row_by_row_in_the_colors_of_their_values():
    x = torch.arange(6 * 4.0).reshape(6, 2, 2)
    x[5, 1, 1] = torch.nan
    ax = plot.images(x, columns=4, titles=list("abcdef"))
    picture = colors(ax)
    lift = 1  # for titles
    assert picture.shape == (2 * (2 + 1 + lift) - 1, 4 * 3 - 1, 4)
    assert picture[1:3, 3:5] == pytest.approx(GRAY((x[1].numpy()) / 22))
    assert picture[5, 0] == pytest.approx(GRAY(16 / 22))
    assert tuple(picture[6, 4]) == MISSING
    assert (picture[:, 2, 3] == 0).all()  # transparent between images
    words = [text.get_text() for text in ax.texts]
    assert words == [*"abcdef", "black 0, white 22, orange: missing"]


def test_images_have_bounds_colors_and_labels():
    ax = plot.images(torch.tensor([[[-5.0, 9.0]]]), bounds=(0.0, 4.0), cmap="gray_r")
    assert colors(ax)[0, :, 0].tolist() == [1.0, 0.0]
    assert ax.texts[-1].get_text() == "white 0, black 4"
    x = torch.rand(2, 3, 3, 4, 4)
    ax = plot.images(x, bounds=(0.0, 1.0), row_labels=["one", "two"], column_labels=list("abc"))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["one", "two"]
    assert ax.get_xticks().tolist() == [1.5, 6.5, 11.5]
    expected = x[1, 2].movedim(0, -1).numpy()
    assert colors(ax)[5:9, 10:14, :3] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shape", "event", "grid"),
    [
        ((6, 4), (2, 2), (2, 4)),
        ((6, 1, 2, 2), (2, 2), (2, 4)),
        ((3, 2, 4), (2, 2), (3, 2)),
        ((3, 2, 2, 2), (2, 2), (3, 2)),
        ((3, 2, 1, 2, 2), (2, 2), (3, 2)),
        ((6, 3, 2, 2), None, (2, 4)),
        ((6, 12), (3, 2, 2), (2, 4)),
    ],
)
def test_images_in_all_their_shapes(shape, event, grid):
    tall, wide, _ = plot.images(torch.rand(shape), shape=event).images[0].get_array().shape
    assert (tall, wide) == (3 * grid[0] - 1, 3 * grid[1] - 1)


# latents


def tiny_vae(latents=2):
    return pg.VAE(
        pg.standard_normal(latents),
        pg.heads.Bernoulli(pg.nn.MLP(latents, [4], 4)),
        pg.heads.Gaussian(pg.nn.MLP(4, [4], 2 * latents)),
    )


def pixels(*rows):
    """The mosaic of rows of images between 0 and 1."""
    both = torch.stack(rows).detach()
    return colors(plot.images(both, shape=(2, 2), bounds=(0.0, 1.0)))


SQUARES = {"shape": (2, 2), "bounds": (0.0, 1.0)}


def test_reconstructions_are_decoded_means():
    vae = tiny_vae()
    x = torch.rand(5, 4).round()
    x[0, 0] = torch.nan
    ax = plot.reconstructions(vae, x, **SQUARES)
    expected = pixels(x, vae.decode(vae.encode(x).mean).mean)
    assert colors(ax) == pytest.approx(expected)


def test_reconstructions_of_a_hierarchy_are_predictive_means():
    levels = pg.latents.Level.dense(4, [2, 2], width=4)
    gen = pg.HierarchicalVAE(levels, pg.heads.Bernoulli(nn.Linear(4, 4)))
    x = torch.rand(3, 4).round()
    ax = plot.reconstructions(gen, x, draws=8, seed=1, **SQUARES)
    mean = pg.predictive(gen, x, draws=8, seed=1, compile=False)["x"].mean(0)
    assert colors(ax) == pytest.approx(pixels(x, mean))


@pytest.mark.parametrize(
    "make", [flow, lambda: pg.Standardized(flow(), 0.5, 2.0)], ids=["flow", "standardized"]
)
def test_interpolations_begin_and_end_in_what_they_were_given(make):
    a, b = torch.rand(2, 3, 4)
    picture = colors(plot.interpolation(make(), a, b, columns=3, **SQUARES))
    expected = pixels(*torch.stack([a, a, b], 1))
    assert picture[:, :2] == pytest.approx(expected[:, :2], abs=1e-3)
    assert picture[:, -2:] == pytest.approx(expected[:, -2:], abs=1e-3)


def test_a_traversal_moves_one_latent_in_units_of_the_prior():
    vae = tiny_vae(3)
    ax = plot.traversal(vae, dims=(0, 2), span=2.0, columns=3, **SQUARES)
    z = torch.zeros(2, 3, 3)
    z[0, :, 0] = z[1, :, 2] = torch.tensor([-2.0, 0.0, 2.0])
    expected = pixels(*vae.decode(z).mean)
    assert colors(ax) == pytest.approx(expected, abs=1e-6)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["−2", "0", "2"]


def test_a_map_has_the_posterior_means_by_class():
    vae = tiny_vae()
    x = torch.rand(6, 4).round()
    ax = plot.latent_map(vae, x, labels=["a", "b", "a", "b", "b", "b"])
    first, second = ax.collections
    means = vae.encode(x).mean.detach()
    assert offsets(first) == pytest.approx(means[[0, 2]].numpy())
    assert len(offsets(second)) == 4
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_more_dims_are_drawn_by_their_first_two_principal_components():
    points = torch.randn(50, 4) * torch.tensor([3.0, 2.0, 1.0, 0.1])
    ax = plot.embedding(points, torch.rand(50))
    values, vectors = torch.linalg.eigh(points.T.cov())
    expected = (points - points.mean(0)) @ vectors[:, [3, 2]]
    found = offsets(ax.collections[0])
    assert np.abs(found) == pytest.approx(expected.abs().numpy(), abs=1e-4)
    share = (values[3] / values.sum()).item()
    assert ax.get_xlabel() == f"component 1 ({share:.0%}".replace("%", " %") + " of the variance)"
    assert ax.collections[0].colorbar is not None


# mixtures


def fitted_mixture():
    mixture = pg.GaussianMixture(2, 3)
    means = torch.tensor([[0.0, 0.0, 1.0], [4.0, 1.0, 0.0]])
    root = torch.randn(2, 3, 3)
    return mixture.assign(torch.tensor([0.3, 0.7]), means, root @ root.mT + torch.eye(3))


def test_ellipses_are_where_the_mahalanobis_distance_is_the_deviation():
    mixture = fitted_mixture()
    ax = plot.components(mixture, torch.randn(9, 3), dims=(2, 0), deviations=(1.5,))
    for k, patch in enumerate(ax.patches):
        points = patch.get_patch_transform().transform(patch.get_path().vertices[:-1:3])
        covariance = mixture.covariances[k][[2, 0]][:, [2, 0]].double().numpy()
        apart = points - mixture.means[k, [2, 0]].numpy()
        distance = np.einsum("ni,ij,nj->n", apart, np.linalg.inv(covariance), apart)
        assert distance == pytest.approx(np.full(len(points), 1.5**2), rel=1e-4)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["component 0: 30 %", "component 1: 70 %"]
    assert sum(len(offsets(each)) for each in ax.collections) == 9


def test_areas_of_memberships_are_sums_of_responsibilities():
    mixture = fitted_mixture()
    x = 3 * torch.randn(12, 3)
    ax = plot.memberships(mixture, x, labels=torch.arange(12) % 3)
    expected = mixture.responsibilities(x).sum(0)
    assert [area(each) for each in ax.collections] == pytest.approx(expected.tolist(), abs=1e-4)
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2"]


# series


def test_bands_are_the_runs_of_the_most_probable_path():
    model = markov()
    x = torch.tensor([0.0, 0, 0, 5, 5, 5, 0, 0, 0])[:, None]
    pg.em(model, torch.stack([x, x + 0.01]), max_iter=5, seed=0)
    ax = plot.states(model, x, names=["low", "high"], time=range(1990, 1999))
    path = model().most_likely_states(x[None])[0].tolist()
    bands = [mpl.colors.to_hex(patch.get_facecolor()) for patch in ax.patches]
    assert bands == [(FIRST, SECOND)[path[step]] for step in (0, 3, 6)]
    starts = [patch.get_x() for patch in ax.patches]
    assert starts == [1989.5, 1992.5, 1995.5]
    assert ax.lines[0].get_ydata().tolist() == x[:, 0].tolist()


def test_areas_of_marginals_are_averages_over_distributions():
    normal = dist.Normal(torch.randn(3, 2), 1.0)
    batch = HiddenMarkov(torch.zeros(3, 2), torch.randn(3, 2, 2), normal, 9)
    x = torch.randn(9)
    ax = plot.states(batch, x, marginals=True)
    behind = ax.figure.axes[-1]
    expected = batch.smooth(x).mean(0).sum(0)
    assert [area(each) for each in behind.collections] == pytest.approx(expected.tolist(), abs=1e-4)
    with pytest.raises(ValueError, match="pass marginals=True"):
        plot.states(batch, x)


def test_forecasts_have_quantiles_median_and_what_was_observed():
    draws = torch.randn(101, 5).cumsum(1)
    ax = plot.forecast(draws, torch.arange(8.0), levels=(0.8,), start=6)
    steps = np.arange(6, 11)
    assert line(ax, "median").get_xdata().tolist() == steps.tolist()
    assert line(ax, "median").get_ydata() == pytest.approx(draws.sort(0).values[50].numpy())
    vertices = ax.collections[0].get_paths()[0].vertices
    for step, low, high in zip(steps, *np.quantile(draws, [0.1, 0.9], axis=0), strict=True):
        ends = vertices[vertices[:, 0] == step, 1]
        assert (ends.min(), ends.max()) == pytest.approx((low, high), abs=1e-5)
    assert line(ax, "observed").get_ydata().tolist() == list(range(8))


def test_a_forecast_stands_at_the_times_of_its_steps():
    years = torch.arange(1990, 2003)
    ax = plot.forecast(torch.randn(9, 5), torch.randn(8), time=years)
    assert line(ax, "median").get_xdata().tolist() == years[8:].tolist()
    assert line(ax, "observed").get_xdata().tolist() == years[:8].tolist()
    assert [1997.5] * 2 in [list(each.get_xdata()) for each in ax.lines]


def test_curves_have_quantiles_and_medians_of_each_function_and_the_points():
    at = torch.tensor([0.0, 1.0, 4.0])
    draws = torch.randn(101, 3, 2)
    x, y = torch.rand(7), torch.rand(7)
    ax = plot.curves(at, draws, x=x, y=y, levels=(0.6,), names=["low", "high"])
    assert offsets(ax.collections[0]) == pytest.approx(torch.stack([x, y], 1).numpy())
    for column, name in enumerate(("low", "high")):
        medians = draws[:, :, column].sort(0).values[50]
        assert line(ax, name).get_xydata() == pytest.approx(torch.stack([at, medians], 1).numpy())
        vertices = ax.collections[1 + column].get_paths()[0].vertices
        ends = np.quantile(draws[:, :, column], [0.2, 0.8], axis=0)
        for place, (low, high) in zip(at.tolist(), ends.T, strict=True):
            found = vertices[vertices[:, 0] == place, 1]
            assert (found.min(), found.max()) == pytest.approx((low, high), abs=1e-5)


# networks


def test_parents_stand_above_their_children_and_evidence_is_told():
    ax = plot.graph(network(), network().row(b=1.0))
    a, b = ax.texts[:2]
    assert a.get_position()[1] > b.get_position()[1]
    yes = 0.8 * 0.9 / (0.8 * 0.9 + 0.2 * 0.5)
    assert a.get_text() == f"a\nno {1 - yes:.0%}\nyes {yes:.0%}".replace("%", " %")
    assert b.get_text() == "b\n0 0 %\n1 100 %"
    arrows = [text for text in ax.texts if getattr(text, "arrow_patch", None)]
    assert [arrow.xy[1] < arrow.xyann[1] for arrow in arrows] == [True]


def test_trees_fields_and_large_graphs():
    mixture = pg.MixtureOfTrees(2, (2, 2, 2))
    mixture.parents[1] = torch.tensor([-1, 0, 1])
    ax = plot.graph(mixture, names=["x", "y", "z"], component=1)
    heights = [text.get_position()[1] for text in ax.texts[:3]]
    assert heights == sorted(heights, reverse=True) and len(ax.texts) == 5
    field = pg.MarkovRandomField((2, 3), pg.graphical.grid_edges(2, 3))
    ax = plot.graph(field)
    assert ax.texts[4].get_position() == (1.0, -1.0) and len(ax.texts) == 6 + 7
    many = {str(n): [str(n // 2)] for n in range(1, 50)}
    ax = plot.graph(many)
    assert len(ax.collections[0].get_segments()) == 49 and not ax.texts


# planes


def energy(num_steps=60):
    chains = {"kernel": pg.samplers.Langevin(0.1), "num_steps": num_steps}
    return pg.EnergyBasedModel(pg.nn.MLP(2, [4], 1), (2,), base=pg.standard_normal(2), **chains)


KINDS = {
    "density": lambda: pg.GaussianMixture(2, 2),
    "lower bound of the density": lambda: pg.Diffusion(pg.nn.TimeMLP(2, [4]), (2,)),
    "density relative to its maximum": energy,
    "density, estimated": lambda: pg.VAE(
        pg.standard_normal(1),
        pg.heads.Gaussian(pg.nn.MLP(1, [4], 4)),
        pg.heads.Gaussian(pg.nn.MLP(2, [4], 2)),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_densities_tell_their_kind(kind):
    gen = KINDS[kind]()
    ax = plot.density(gen, bounds=((-1.0, 1.0), (0.0, 3.0)), points=4, particles=2, seed=0)
    picture = ax.images[0]
    assert picture.get_extent() == [-1, 1, 0, 3]
    assert picture.colorbar.ax.get_ylabel() == kind
    if kind in ("density", "density relative to its maximum"):
        corners = torch.tensor([[1.0, 0.0], [-1.0, 3.0], [1.0, 3.0]])
        wanted = (gen().log_prob(corners) - gen().log_prob(corners[:1])).exp().detach()
        values = picture.get_array()
        found = np.array([values[0, 3], values[3, 0], values[3, 3]]) / values[0, 3]
        assert found == pytest.approx(wanted.numpy(), rel=1e-4)


def test_bounds_of_a_density_are_around_the_rows():
    x = torch.randn(300, 2) * torch.tensor([1.0, 5.0]) + 10
    ax = plot.density(pg.GaussianMixture(2, 2), x=x, points=3, log=True)
    low, high = np.quantile(x, [0.005, 0.995], axis=0)
    limits = np.array([ax.get_xlim(), ax.get_ylim()])
    assert (limits[:, 0] < low).all() and (limits[:, 1] > high).all()
    assert (limits[:, 1] - limits[:, 0] < 1.5 * (high - low)).all()
    assert ax.images[0].get_array().min() >= ax.images[0].get_array().max() - 12


NET = lambda: pg.nn.TimeMLP(2, [4])  # noqa: E731
WAYS = {
    "flow matching": (matching, {}, 3),
    "diffusion": (lambda: pg.Diffusion(NET(), (2,), sampler=pg.diffusion.Ancestral(4)), {}, 4),
    "DDIM": (lambda: pg.Diffusion(NET(), (2,)), {"sampler": pg.diffusion.DDIM(5)}, 5),
    "Heun": (lambda: pg.Diffusion(NET(), (2,)), {"sampler": pg.diffusion.Heun(3)}, 3),
    "standardized": (lambda: pg.Standardized(matching(), 3.0, 2.0), {}, 3),
    "probability flow": (
        lambda: pg.ProbabilityFlow(pg.Diffusion(NET(), (2,)), pg.flows.RungeKutta(3)),
        {},
        3,
    ),
    "continuous flow": (lambda: pg.ContinuousFlow(2, hidden=(4,)), {}, 40),
    "chains": (lambda: energy(7), {}, 7),
    "long chains": (lambda: energy(90), {}, 40),
}


@pytest.mark.parametrize("name", WAYS)
def test_paths_lead_from_noise_to_the_draws_of_sample(name):
    make, options, steps = WAYS[name]
    gen = make()
    ax = plot.paths(gen, 6, seed=3, **options)
    lines, noise, draws = ax.collections
    segments = np.stack(lines.get_segments()).reshape(steps, 6, 2, 2)
    expected = pg.sample(gen, 6, seed=3, **options)
    assert offsets(draws) == pytest.approx(expected.numpy(), abs=1e-3)
    assert segments[0, :, 0] == pytest.approx(offsets(noise))
    assert segments[-1, :, 1] == pytest.approx(offsets(draws))
    assert segments[1:, :, 0] == pytest.approx(segments[:-1, :, 1])
    times = lines.get_array().reshape(steps, 6)[:, 0]
    assert (np.diff(times) < 0).all() and 0 < times[-1] < times[0] < 1


# tables


def test_columns_have_shares_of_values_and_what_is_missing():
    real = {"age": [1.5, 2.5, 2.6, 9.5], "sex": ["f", "m", None, "f"], "n": [0, 1, 1, 2]}
    made = {"n": [1, 1], "age": [2.5, 9.0], "sex": ["m", "m"]}
    age, sex, count = plot.columns(real, made, bins=4)
    heights = [patch.get_height() for patch in sex.patches]
    assert heights == pytest.approx([1 / 3, 2 / 3, 1, 0])
    assert [text.get_text() for text in sex.get_xticklabels()] == ["m", "f"]
    assert sex.get_xlabel() == "missing 25 %, 0 %"
    assert [patch.get_height() for patch in count.patches] == pytest.approx(
        [0.25, 0.5, 0.25, 0.0, 1.0, 0.0]
    )
    outline = age.patches[0].get_path().vertices[:, 1]
    assert outline.max() == pytest.approx(0.75)  # three of four in the first bin
    (legend,) = age.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["real", "synthetic"]


def test_pairs_are_real_below_and_synthetic_above():
    real, made = torch.randn(30, 3), torch.randn(40, 3)
    axes = plot.column_pairs(real, made, names=list("abc"))
    below, above = axes[2, 0].collections[0], axes[0, 2].collections[0]
    assert offsets(below) == pytest.approx(real[:, [0, 2]].double().numpy())
    assert offsets(above) == pytest.approx(made[:, [2, 0]].double().numpy())
    assert axes[2, 0].get_xlim() == axes[0, 2].get_ylim() == axes[0, 0].get_xlim()
    assert axes[2, 0].get_ylim() == axes[0, 2].get_xlim()


# samples


SAMPLES = {  # events, and how many axes show them
    "images": ((1, 8, 8), {}, 1),
    "color": ((3, 6, 7), {}, 1),
    "flat images": ((16,), {"shape": (4, 4)}, 1),
    "points": ((2,), {}, 1),
    "columns": ((5,), {}, 5),
    "many columns": ((30,), {}, 12),
    "numbers": ((), {}, 1),
    "series": ((20, 3), {"names": ["a", "b", "c"]}, 3),
    "other events": ((2, 3, 2), {}, 12),
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("counts", [(1, 30), (40, 17)])
def test_samples_of_every_kind_stand_beside_real_rows(name, counts):
    event, options, axes = SAMPLES[name]
    found = plot.samples(*(torch.rand(count, *event) for count in counts), **options)
    assert found.shape == (axes,)
    words = [text.get_text() for text in found[0].get_yticklabels()]
    for legend in (*found[0].figure.legends, found[0].get_legend()):
        words += [] if legend is None else [text.get_text() for text in legend.get_texts()]
    assert {"real", "synthetic"} <= set(words)


def test_sampled_images_have_the_range_of_the_real_ones():
    real, made = torch.rand(20, 1, 8, 8), 3 * torch.rand(17, 1, 8, 8)
    (ax,) = plot.samples(real, made)
    low, high = real[:16].min(), real[:16].max()
    expected = torch.cat([real[:16], made[:16]]).reshape(4, 8, 8, 8)
    wanted = plot.images(expected, shape=(8, 8), bounds=(low.item(), high.item()))
    assert colors(ax) == pytest.approx(colors(wanted))


def test_sampled_points_and_curves_are_those_given():
    real, made = torch.rand(7, 2), torch.rand(9, 2)
    (ax,) = plot.samples(real, made, names=["length", "width"])
    first, second = ax.collections
    assert offsets(first) == pytest.approx(real.numpy())
    assert offsets(second) == pytest.approx(made.numpy())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("length", "width")
    real, made = torch.rand(7, 20, 2), torch.rand(3, 20, 2)
    made[0, 12:] = torch.nan  # a shorter one
    _, ax = plot.samples(real, made)
    drawn = np.stack([each.get_ydata() for each in ax.lines])
    expected = torch.cat([real[:6, :, 1], made[:, :, 1]])
    assert drawn == pytest.approx(expected.numpy(), nan_ok=True)


def test_sampled_tokens_are_texts_and_tables_have_their_columns():
    vocabulary = pg.text.Vocabulary.of(["a red bar", "a blue dot"], end="<end>")
    real = vocabulary.encode(["a red bar", "a blue dot"], length=4)
    made = vocabulary.encode(["a red dot"], length=4)
    (ax,) = plot.samples(real, made, decode=vocabulary.decode)
    words = [text.get_text() for text in ax.texts]
    assert words == ["real", "a red bar", "a blue dot", "synthetic", "a red dot"]
    frame = pd.DataFrame({f"c{n}": [1.5, 2.5, 3.5] for n in range(14)} | {"c1": ["u", "v", "u"]})
    found = plot.samples(frame, frame)
    assert [ax.get_title() for ax in found] == list(frame.columns[:12])


# scores


def test_scores_are_histograms_with_their_kinds():
    known, odd = torch.randn(80) - 3, torch.randn(50) - 4
    sets = {"known": pg.Score(known, "exact"), "odd": pg.Score(odd, "bound")}
    ax = plot.scores(sets, bins=7)
    area = scipy.stats.mannwhitneyu(known, odd).statistic / (80 * 50)
    assert ax.get_title(loc="left") == f"area under the curve {area:.3f}"
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == [f"known {sets['known']}", f"odd {sets['odd']}"]
    edges = [ax.patches[0].get_x(), *(each.get_x() + each.get_width() for each in ax.patches[:7])]
    for values, bars in ((known, ax.patches[:7]), (odd, ax.patches[7:])):
        inside = values.double().clamp(*np.float64(edges)[[0, -1]])
        expected = np.histogram(inside, edges)[0] / len(values)
        assert [bar.get_height() for bar in bars] == pytest.approx(expected)


def test_scores_of_energies_ties_bits_and_weights():
    ties = torch.tensor([1.0, 2.0])
    ax = plot.scores({"a": pg.Score(ties, "unnormalized"), "b": pg.Score(ties, "unnormalized")})
    assert ax.get_title(loc="left") == "area under the curve 0.500"
    assert ax.get_xlabel().startswith("minus the energy")
    low, high = (pg.Score(torch.rand(9) + shift, "exact", unit="bits/dim") for shift in (0, 3))
    ax = plot.scores({"low": low, "high": high})  # fewer bits are better
    assert ax.get_title(loc="left") == "area under the curve 1.000"
    weighted = pg.Score(torch.tensor([0.0, 9.0]), "exact", weights=torch.tensor([3.0, 1.0]))
    heights = [patch.get_height() for patch in plot.scores(weighted, bins=2).patches]
    assert heights == pytest.approx([0.75, 0.25])


# trust


def test_risk_is_the_mean_loss_above_each_threshold():
    sure = torch.randint(12, (60,)) / 12  # with ties
    losses = torch.randint(2, (60,)).float()
    ax = plot.risk_coverage(sure, losses)
    shares, risks = line(ax, "by confidence").get_data()
    thresholds = sorted(set(sure.tolist()), reverse=True)
    expected = [losses[sure >= least].mean().item() for least in thresholds]
    assert risks == pytest.approx(np.array(expected))
    assert shares == pytest.approx([(sure >= least).double().mean().item() for least in thresholds])
    area = np.mean([losses[sure >= each].mean().item() for each in sure])
    best = np.mean([losses[losses <= each].mean().item() for each in losses])
    told = [float(number) for number in re.findall(r"\d\.\d+", ax.get_title(loc="left"))]
    assert told == pytest.approx([area, best], abs=6e-4)
    assert line(ax, "all rows").get_ydata()[0] == pytest.approx(losses.mean().item())


def test_shares_of_khat():
    ax = plot.khats(torch.tensor([0.1, 0.2, 0.3, 0.6, 0.8, torch.nan, torch.inf]))
    assert ax.get_title(loc="left") == "50 % good, 17 % usable, 33 % bad; 1 unknown"
    assert sum(patch.get_height() for patch in ax.patches[:30]) == 6


@pytest.mark.parametrize(("count", "bins"), [(40, 8), (500, 20), (30, 1)])
def test_the_band_of_p_values_is_that_of_a_binomial_distribution(count, bins):
    values = torch.rand(count)
    ax = plot.p_values(values, bins=bins)
    heights = [patch.get_height() for patch in ax.patches]
    assert heights == np.histogram(values, bins, (0, 1))[0].tolist()
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == scipy.stats.binom.interval(0.95, count, 1 / bins)


def test_reliability_is_the_share_that_came_true():
    said, came = torch.rand(200), torch.randint(2, (200,))
    ax = plot.reliability(said, came, bins=5)
    points = ax.lines[1].get_xydata()
    error = 0.0
    for bin, (mean, share) in enumerate(points):
        inside = (said >= bin / 5) & (said < (bin + 1) / 5)
        assert mean == pytest.approx(said[inside].mean().item(), abs=1e-5)
        assert share == pytest.approx(came[inside].float().mean().item(), abs=1e-5)
        error += inside.sum().item() / 200 * abs(mean - share)
    assert ax.get_title(loc="left") == f"calibration error {error:.3f}"
    interval = scipy.stats.binomtest(int(came[said < 0.2].sum()), int((said < 0.2).sum()))
    ends = ax.collections[0].get_segments()[0][:, 1]
    assert ends == pytest.approx(list(interval.proportion_ci(method="wilson")), abs=1e-4)


def test_of_several_classes_the_most_probable_one_is_judged():
    said = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    ax = plot.reliability(said, torch.tensor([0, 1, 0]), bins=1)
    assert ax.lines[1].get_xydata() == pytest.approx(np.array([[0.8, 2 / 3]]))


# errors

X = torch.rand(6, 4)
WRONG = {
    "no history": (lambda: plot.loss_curve([1.0]), "expected a History history"),
    "no steps": (lambda: plot.loss_curve(pg.History()), "fit the model first"),
    "no images": (lambda: plot.images(X), r"tell their shape: shape=\(2, 2\)"),
    "two channels": (lambda: plot.images(torch.rand(5, 2, 4, 4)), "with C = 1 or 3"),
    "other shape": (lambda: plot.images(X, shape=(3, 3)), "or in 9 values each"),
    "titles": (lambda: plot.images(X, shape=(2, 2), titles=["a"]), "expected 6 entries in titles"),
    "colormap": (lambda: plot.images(X, shape=(2, 2), cmap="no"), "pass 'gray'"),
    "axes": (lambda: plot.images(X[None], ax=plt), r"pass axes such as plt.subplots\(\)\[1\]"),
    "one dim": (lambda: plot.embedding(X[:, :1]), "two columns or more"),
    "NaN": (lambda: plot.embedding(X * torch.nan), "leave out the rows"),
    "labels": (lambda: plot.embedding(X, torch.arange(5)), r"shape \(6,\), one for each row"),
    "no latents": (
        lambda: plot.latent_map(pg.PPCA(4, factors=2), X),
        r"gen.posterior\(x\)",
    ),
    "site": (lambda: plot.latent_map(tiny_vae(), X.round(), site="y"), "site='z'"),
    "no decoder": (
        lambda: plot.reconstructions(pg.GaussianMixture(2, 4), X, shape=(2, 2)),
        r"gen.responsibilities\(x\)",
    ),
    "ends": (lambda: plot.interpolation(flow(), X, X[:2]), "as many rows of both"),
    "dims": (lambda: plot.traversal(flow(), dims=(7,)), "expected dims below 4"),
    "no ellipses": (lambda: plot.components(flow()), r"density\(gen\)"),
    "no members": (lambda: plot.memberships(flow(), X), "pass a mixture"),
    "no states": (lambda: plot.states(flow(), X), "pass a HiddenMarkovModel"),
    "two series": (lambda: plot.states(markov(), torch.rand(2, 9, 1)), r"give x\[:1\]"),
    "series of draws": (lambda: plot.forecast(torch.rand(3, 2, 5, 1)), r"draws\[:, 0\]"),
    "levels": (lambda: plot.forecast(X, levels=(1.5,)), r"level in \(0, 1\)"),
    "no network": (lambda: plot.graph(flow()), "pass a BayesianNetwork"),
    "cycle": (lambda: plot.graph({"a": ["b"], "b": ["a"]}), "without cycles"),
    "evidence": (lambda: plot.graph(network(), X), r"network.row\(name=value\)"),
    "four columns": (lambda: plot.density(flow(), x=X[:, :2]), r"of events \(2,\)"),
    "bounds": (lambda: plot.density(matching(), bounds=((1, 0), (0, 1))), r"bounds\[0\]"),
    "no paths": (lambda: plot.paths(pg.NSF(2, layers=1), 3), "made along paths|whose draws"),
    "columns": (lambda: plot.columns({"a": [1.0]}, {"b": [1.0]}), "drop or rename them"),
    "words": (lambda: plot.columns({"a": ["x"]}, {"a": [1.0]}), "encode them alike"),
    "many columns": (lambda: plot.column_pairs(torch.rand(3, 9), torch.rand(3, 9)), "choose some"),
    "axes of columns": (
        lambda: plot.columns(X, X, axes=plt.subplots(1, 2)[1]),
        r"plt.subplots\(1, 4\)\[1\]",
    ),
    "places": (lambda: plot.curves(range(3), X), "one value for each place"),
    "falling places": (lambda: plot.curves([3.0, 2.0, 1.0, 0.0], X), "sort them"),
    "x alone": (lambda: plot.curves(range(4), X, x=[1.0]), "give y, too"),
    "y alone": (lambda: plot.curves(range(4), X, y=[1.0]), "give x, too"),
    "points": (lambda: plot.curves(range(4), X, x=[1.0], y=[1.0, 2.0]), "one y for each x"),
    "times": (lambda: plot.forecast(X, X[:, 0], time=range(4)), "time of 10 steps, got 4"),
    "other events": (lambda: plot.samples(X, X[:, :3]), "flatten the draws"),
    "no draws": (lambda: plot.samples(X, X[:0]), r"pg.sample\(gen, 100\)"),
    "no real rows": (lambda: plot.samples(X[:0], X), "flatten the draws|got none"),
    "no function": (lambda: plot.samples(X, X, decode="x"), "vocabulary.decode"),
    "no scores": (lambda: plot.scores({"a": X[:, 0]}), "what pg.log_likelihood gives"),
    "empty scores": (lambda: plot.scores({}), "held out"),
    "endless scores": (
        lambda: plot.scores(pg.Score(torch.tensor([-torch.inf]), "exact")),
        "leave it out",
    ),
    "units": (
        lambda: plot.scores(
            {"a": pg.Score(X[0], "exact"), "b": pg.Score(X[0], "exact", unit="bits/dim")}
        ),
        "axes of its own",
    ),
    "energies": (
        lambda: plot.scores({"a": pg.Score(X[0], "exact"), "b": pg.Score(X[0], "unnormalized")}),
        "one normalization",
    ),
    "masses": (
        lambda: plot.scores(
            {"a": pg.Score(X[0], "exact"), "b": pg.Score(X[0], "exact", measure="mass")}
        ),
        "density and mass",
    ),
    "other rows": (lambda: plot.risk_coverage(X[:, 0], X[0]), "one loss for each row"),
    "NaN losses": (lambda: plot.risk_coverage([1.0], [torch.nan]), "leave those rows out"),
    "no khat": (lambda: plot.khats([torch.nan]), "particles=1000"),
    "p-values": (lambda: plot.p_values([1.5]), "from 0 to 1, got 1.5"),
    "logits": (lambda: plot.reliability([3.0], [1]), r"logits.sigmoid\(\)"),
    "outcomes": (lambda: plot.reliability([0.5], [2]), "from 0 to 1, got 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_drawn_is_refused(name):
    call, text = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=r"(?s)expected.*got.*;.*") as raised:
        call()
    assert re.search(text, str(raised.value)), str(raised.value)


def test_implicit_models_have_no_density():
    gan = pg.GAN(pg.nn.MLP(2, [4], 2), pg.standard_normal(2))
    with pytest.raises(NotImplementedError, match="density"):
        plot.density(gan, bounds=((0, 1), (0, 1)))


def test_columns_of_dates_are_drawn_in_years():
    days = pd.to_datetime(["2020-01-01", "2020-07-02", None, "2021-01-01"])
    found = plot.columns(pd.DataFrame({"when": days}), pd.DataFrame({"when": days[:2]}))
    low, high = found[0].get_xlim()
    assert low < 2020.0 < 2021.0 < high and found[0].get_xlabel() == "missing 25 %, 0 %"
