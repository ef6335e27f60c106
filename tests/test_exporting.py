"""Densities and samplers as programs of torch alone: the same numbers, or a refusal in a sentence."""

import os
import subprocess
import sys

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal
from zoo import ZOO, Member

import probgen as pg
from probgen.core.runtime import validation
from probgen.heads import Gaussian
from probgen.nn import MLP, Constant

WAYS = ("any_rows=False exports", "draw and score with probgen itself", "export its draws")


def mixture():
    torch.manual_seed(0)
    gen = pg.GaussianMixture(3, 2)
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return gen


def vae():
    torch.manual_seed(0)
    prior = pg.standard_normal(2)
    return pg.VAE(prior, Gaussian(MLP(2, [4], 6)), Gaussian(MLP(3, [4], 4)))


def test_the_density_is_that_of_the_closed_form():
    """A linear Gaussian model of factors, whose rows are normal: W W' + noise."""
    torch.manual_seed(0)
    gen = pg.FactorAnalysis(3, factors=1)
    x = torch.randn(50, 3)
    pg.em(gen, x, max_iter=5, tol=0.0, seed=0)
    exported = pg.export_density(gen, x[:4])
    law = gen()
    truth = MultivariateNormal(law.mean, law.covariance_matrix).log_prob(x)
    assert exported.kind == "exact" and exported.rows is None
    torch.testing.assert_close(exported(x), truth.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_any_number_of_rows(rows):
    gen = mixture()
    x = torch.randn(rows, 2)
    torch.testing.assert_close(
        pg.export_density(gen, torch.zeros(1, 2))(x), gen().log_prob(x).detach()
    )
    assert pg.export_sampler(gen)(rows).shape == (rows, 2)


def test_no_rows_are_no_numbers():
    gen = Gaussian(Constant(4))
    assert pg.export_density(gen, torch.zeros(3, 2))(torch.zeros(0, 2)).shape == (0,)
    assert pg.export_sampler(gen)(0).shape == (0, 2)


def test_draws_are_those_of_the_model():
    """Means and covariances of many draws; a seed repeats them."""
    gen = mixture()
    draw = pg.export_sampler(gen)
    torch.manual_seed(1)
    drawn = draw(20_000)
    law = gen()
    torch.testing.assert_close(drawn.mean(0), law.mean.detach(), atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.var(0), law.variance.detach(), atol=0.1, rtol=0.05)
    torch.manual_seed(1)
    assert torch.equal(draw(20_000), drawn)


def test_particles_are_averaged_in_probability_space():
    gen = vae()
    x = torch.randn(4, 3)
    exported = pg.export_density(gen, x, particles=5)
    assert exported.kind == "unbiased" and exported.particles == 5
    torch.manual_seed(2)
    got = exported(x)
    torch.manual_seed(2)
    with validation(False), torch.no_grad():
        each = gen.eval()().log_prob(x.repeat(5, 1)).view(5, 4)
    torch.testing.assert_close(got, each.logsumexp(0) - torch.tensor(5.0).log())


def test_contexts_are_inputs():
    head = Gaussian(nn.Linear(3, 4))
    x = torch.randn(5, 2)
    context = torch.randn(5, 3)
    expected = head(context).log_prob(x).detach()
    torch.testing.assert_close(pg.export_density(head, x[:2], context[:2])(x, context), expected)
    draw = pg.export_sampler(head, context=context[:2])
    torch.manual_seed(0)
    got = draw(context)
    torch.manual_seed(0)
    torch.testing.assert_close(got, head(context).sample().detach())


def test_it_is_exported_in_eval_mode_and_left_as_it_was():
    gen = Gaussian(nn.Sequential(nn.Dropout(0.9), nn.Linear(2, 4))).train()
    context = torch.randn(6, 2)
    x = torch.randn(6, 2)
    before = torch.get_rng_state()
    exported = pg.export_density(gen, x, context)
    assert torch.equal(before, torch.get_rng_state()) and gen.training and gen.net[0].training
    expected = gen.eval()(context).log_prob(x).detach()
    torch.testing.assert_close(exported(x, context), expected)


@pytest.mark.slow
def test_the_file_runs_where_probgen_is_not(tmp_path):
    gen = mixture()
    x = torch.linspace(-1, 1, 10).view(5, 2)
    pg.export_density(gen, x).save(tmp_path / "density.pt2")
    code = (
        "import sys; sys.modules['probgen'] = sys.modules['pyro'] = None\n"
        "import torch\n"
        f"run = torch.export.load({str(tmp_path / 'density.pt2')!r}).module()\n"
        "print(run(torch.linspace(-1, 1, 10).view(5, 2)).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    got = torch.tensor([float(each) for each in done.stdout.strip(" []\n").split(",")])
    torch.testing.assert_close(got, gen().log_prob(x).detach())


def test_the_kind_is_kept_in_the_file(tmp_path):
    exported = pg.export_density(vae(), torch.randn(4, 3), particles=2, any_rows=False)
    exported.save(tmp_path / "density.pt2")
    again = pg.load_exported(tmp_path / "density.pt2")
    assert repr(again) == repr(exported) == "Exported(density, unbiased, 2 particles, 4 rows)"
    assert again.versions == exported.versions
    torch.manual_seed(0)
    one = again(torch.ones(4, 3))
    torch.manual_seed(0)
    assert torch.equal(one, exported(torch.ones(4, 3)))


# -- what cannot be exported


class Walk(pg.DistributionModule):
    """Draws that end when a value says so."""

    context_size = 0

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, context=None):
        return Until(self.scale, torch.ones(1)).to_event(1)


class Until(dist.Normal):
    """A sampler by rejection."""

    def sample(self, sample_shape=()):
        x = super().sample(sample_shape)
        while x.abs().max() > 1:
            x = torch.where(x.abs() > 1, super().sample(sample_shape), x)
        return x


class Counted(pg.DistributionModule):
    """Whose steps are made for the rows that it sees."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, context=None):
        return dist.Normal(
            torch.stack([row * self.scale for row in context.unbind()]), 1.0
        ).to_event(1)


def test_loops_without_an_end_are_refused():
    with pytest.raises(pg.NotExportable, match=r"Walk cannot .* depend on values.*pg\.save"):
        pg.export_sampler(Walk())


def test_one_number_of_rows_is_refused_with_what_to_do():
    gen = Counted()
    x = torch.randn(4, 2)
    context = torch.randn(4, 2)
    with pytest.raises(pg.NotExportable, match=r"number of rows that it sees; any_rows=False"):
        pg.export_density(gen, x, context)
    exported = pg.export_density(gen, x, context, any_rows=False)
    assert exported.rows == 4
    torch.testing.assert_close(exported(x, context), gen(context).log_prob(x).detach())


def test_implicit_densities_are_refused():
    gen = pg.GAN(MLP(2, [4], 2), pg.standard_normal(2))
    with pytest.raises(
        pg.NotExportable, match=r"implicit; export its draws: export_sampler\(gen\)"
    ):
        pg.export_density(gen, torch.randn(4, 2))
    assert pg.export_sampler(gen)(3).shape == (3, 2)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no file"):
        pg.load_exported(tmp_path / "none")
    (tmp_path / "text").write_text("text")
    with pytest.raises(pg.NotExportable, match=r"got another file .* that Exported\.save wrote"):
        pg.load_exported(tmp_path / "text")
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(3, 2),))
    torch.export.save(program, str(tmp_path / "layer.pt2"))
    with pytest.raises(pg.NotExportable, match=r"use torch\.export\.load"):
        pg.load_exported(tmp_path / "layer.pt2")


def test_a_constant_head_has_no_context():
    """Rows of other shapes are refused before anything is traced."""
    with pytest.raises(ValueError, match="expected x"):
        pg.export_density(Gaussian(Constant(4)), torch.randn(4, 3))


# -- every family


def compared(exported, gen, batch, sampler):
    """On rows of another number where it takes any, under one seed."""
    some = [value if exported.rows else torch.cat([value, value[:1]]) for value in batch]
    inputs = some[1:] if sampler else some
    if sampler and not inputs:
        inputs = [] if exported.rows else [7]
    torch.manual_seed(3)
    got = exported(*inputs)
    torch.manual_seed(3)
    with validation(False), torch.no_grad():
        if not sampler:
            expected = gen(*some[1:]).log_prob(some[0])
            return torch.allclose(got, expected, atol=1e-3, rtol=1e-3, equal_nan=True)
        count = exported.rows or 7
        drawn = gen(*some[1:])
        shape = drawn.event_shape
    return got.shape == ((len(some[1]) if some[1:] else count), *shape)


# a graph takes seconds to minutes; PROBGEN_WHOLE_ZOO=1 asks for those of all members
SWEPT = ZOO if "PROBGEN_WHOLE_ZOO" in os.environ else ZOO[::12]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [False, True], ids=["density", "sampler"])
@pytest.mark.parametrize("member", SWEPT, ids=lambda member: member.name)
def test_every_family_is_exported_or_refused(member: Member, sampler):
    torch.manual_seed(0)
    gen = member.gen().eval()
    batch = member.data()

    def export(**options):
        if not sampler:
            return pg.export_density(gen, *batch[:2], **options)
        return pg.export_sampler(gen, 6, *batch[1:2], **options)

    try:
        exported = export()
    except pg.NotExportable as refusal:
        assert any(way in str(refusal) for way in WAYS) and "\n" not in str(refusal)
        if WAYS[0] not in str(refusal):
            return
        exported = export(any_rows=False)
    from probgen.core.entry import as_rows

    rows = as_rows(gen, *batch[:2])
    assert compared(exported, gen, rows, sampler)
    if not sampler:  # nothing that was traced stays behind
        assert torch.isfinite(gen(*rows[1:]).log_prob(rows[0]).sum())


X = torch.zeros(3, 2)
CALLS = {
    "an array": (lambda d, s, f: d(X.numpy()), r"\(N, 2\), got ndarray"),
    "columns": (lambda d, s, f: d(torch.zeros(3, 3)), r"\(N, 2\), got \(3, 3\)"),
    "one row": (lambda d, s, f: d(torch.zeros(2)), r"\(N, 2\), got \(2,\)"),
    "nothing": (lambda d, s, f: d(), "1 inputs of the program, got 0"),
    "a context": (lambda d, s, f: d(X, X), "1 inputs of the program, got 2"),
    "less than no draws": (lambda d, s, f: s(-1), "n >= 0, got -1"),
    "half a draw": (lambda d, s, f: s(2.5), "a whole number n"),
    "other rows": (lambda d, s, f: f(X), "expected 4 rows in each input"),
    "a folder": (lambda d, s, f: d.save(os.path.dirname(__file__)), "cannot write"),  # noqa: PTH120
}


@pytest.fixture(scope="module")
def programs():
    gen = pg.standard_normal(2)
    fixed = pg.export_density(gen, torch.zeros(4, 2), any_rows=False)
    return pg.export_density(gen, X), pg.export_sampler(gen), fixed


@pytest.mark.parametrize(("call", "words"), CALLS.values(), ids=list(CALLS))
def test_a_program_says_what_it_takes(programs, call, words) -> None:
    with pytest.raises((TypeError, ValueError, OSError), match=words):
        call(*programs)


def test_inputs_of_a_program_have_as_many_rows() -> None:
    gen = pg.MAF(2, context=1, layers=1, hidden=(4,))
    density = pg.export_density(gen, X, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="the same number of rows"):
        density(X, torch.zeros(2, 1))
