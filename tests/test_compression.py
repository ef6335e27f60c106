"""Rows as bytes: lossless, as short as the score says, and what is refused."""

import math

import pytest
import torch
from torch import nn
from zoo import ZOO

import probgen as pg
from probgen.compression.steps import Span, coded_of, steps_of, tables_of
from probgen.compression.transmission import sent_rows
from probgen.core.finite import levels_of
from probgen.heads import Bernoulli, Categorical, Gaussian, Poisson
from probgen.models.emissions import CategoricalEmission
from probgen.nn import MLP, Constant

pytest.importorskip("constriction")
HEADER = 8 * 32  # bits that a header may take


def random(gen: nn.Module, seed: int = 0) -> nn.Module:
    """With parameters drawn from a seed."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.normal_()
    return gen.eval()


def tree() -> pg.ChowLiu:
    torch.manual_seed(0)
    gen = pg.ChowLiu((2, 3, 2, 4))
    gen.initialize(torch.stack([torch.randint(k, (60,)) for k in (2, 3, 2, 4)], -1).float())
    return gen


def trees() -> pg.MixtureOfTrees:
    torch.manual_seed(0)
    gen = pg.MixtureOfTrees(2, (2, 3, 2))
    gen.initialize(torch.stack([torch.randint(k, (60,)) for k in (2, 3, 2)], -1).float())
    return gen


def bits(gen: nn.Module, x: torch.Tensor, seed: int = 0) -> float:
    """The score, in bits; of latents one draw for each row."""
    score = pg.log_likelihood(gen, x, particles=1, seed=seed)
    return -score.value.double().sum().item() / math.log(2)


# -- the zoo


def members() -> list:
    """Those that have discrete rows, and a few others."""
    return [member for member in ZOO if not member.name.startswith("VAE with a")]


def complete(batch: tuple) -> tuple:
    """Its rows without missing values, seven times over."""
    x = batch[0]
    kept = ~x.isnan().flatten(1).any(1)
    return tuple(value[kept].repeat(7, *(1,) * (value.ndim - 1)) for value in batch)


@pytest.mark.table(quick=25)
@pytest.mark.parametrize("member", members(), ids=lambda member: member.name)
def test_rows_come_back_or_the_model_is_refused(member) -> None:
    gen = member.gen().eval()
    batch = complete(gen.settle(member.data()))
    try:
        data = pg.compress(gen, *batch)
    except NotImplementedError as error:
        text = str(error)
        assert "expected" in text and "got" in text and ";" in text
        assert member.name not in CODED
        return
    assert member.name in CODED
    back = pg.decompress(gen, data, *batch[1:])
    assert torch.equal(back, batch[0].to(back))


CODED = {
    "Bernoulli",
    "Bernoulli given a context",
    "Categorical",
    "Poisson",
    "NegativeBinomial",
    "DiscretizedLogisticMixture",
    "Ordinal",
    "VAE of images",
    "VAE given a context",
    "VQVAE",
    "JointTable",
    "HiddenChowLiu",
    "CorrectedTree",
    "Factorized",
    "MarkovChain",
    "MADE",
    "MADE given a context",
    "MADE over orders",
    "GFlowNet",
    "NADE",
    "NADE of labels",
    "EoNADE",
    "PixelCNN",
    "PixelCNN of colors given a context",
    "PixelRNN",
    "Transformer",
    "Transformer given texts",
    "Transformer of pixels given a context",
    "IntegerFlow given a context",
    "BayesianNetwork of tables",
    "ChowLiu",
    "MixtureOfTrees",
    "MarkovRandomField",
    "MarkovRandomField given a context",
    "SequenceModel RNN",
    "SequenceModel RNN given a context",
    "SequenceModel RNN with NADE frames",
    "SequenceModel of convolutions",
    "HiddenMarkovModel of labels",
    "HiddenMarkovModel of counts",
    "RBM",
    "RBM, enumerated over what is visible",
    "RBM of labels",
    "RBM given a context",
    "DeepBoltzmannMachine",
    "DiffusionChain, absorbing",
}


# -- sizes


SIZED = {
    "MADE": lambda: random(pg.MADE(12, [8], Bernoulli())),
    "NADE in another order": lambda: random(
        pg.NADE(6, 8, Categorical(levels=3), order=torch.tensor([3, 1, 5, 0, 2, 4]))
    ),
    "Markov chain": lambda: random(pg.MarkovChain(9, 3)),
    "tree": tree,
    "mixture of trees": trees,
    "hidden Markov model": lambda: random(pg.HiddenMarkovModel(3, 6, CategoricalEmission(3, 4, 2))),
    "mixture of products": lambda: pg.Mixture(
        [random(Bernoulli(Constant(10)), seed) for seed in range(3)]
    ),
    "mixture of autoregressive models": lambda: pg.Mixture(
        [random(pg.MADE(6, [8], Bernoulli()), seed) for seed in range(2)]
    ),
    "counts": lambda: random(Poisson(Constant(5))),
    "table": lambda: random(pg.JointTable(6)),
    "field": lambda: random(pg.MarkovRandomField((2, 3), pg.graphical.grid_edges(2, 3))),
    "integer flow": lambda: pg.IntegerFlow((1, 4, 4), levels=8, scales=2, flow_steps=2),
}


@pytest.mark.table(quick=4)
@pytest.mark.parametrize("case", SIZED)
def test_the_size_is_that_of_the_score(case: str) -> None:
    gen = SIZED[case]().eval()
    x = pg.sample(gen, 600, seed=1)
    data = pg.compress(gen, x)
    assert torch.equal(pg.decompress(gen, data), x)
    truth = bits(gen, x)
    slack = 0.001 * truth + 64
    assert truth - slack < 8 * len(data) < truth + slack + HEADER


@pytest.mark.slow
def test_bits_back_cost_the_bound() -> None:
    """Of a VAE that was trained, on rows enough for the first ones not to count."""
    torch.manual_seed(0)
    x = (torch.rand(1500, 24) < torch.rand(1500, 1).round() * 0.7 + 0.15).float()
    gen = pg.VAE(pg.standard_normal(2), Bernoulli(MLP(2, [8], 24)), Gaussian(MLP(24, [8], 4)))
    pg.fit(gen, x, steps=200, batch_size=128, progress=False, verdict=False, compile=False, seed=0)
    data = pg.compress(gen, x)
    assert torch.equal(pg.decompress(gen, data), x)
    bounds = torch.tensor([bits(gen, x, seed) for seed in range(6)])
    assert abs(8 * len(data) - HEADER / 2 - bounds.mean()) < 4 * bounds.std() + 128
    product = random(pg.Factorized(24))
    pg.em(product, x)
    assert len(data) < len(pg.compress(product, x))  # latents tell what columns share


def test_the_masses_of_the_steps_add_up_to_the_score() -> None:
    """Step by step, without any coder: the chain rule."""

    class Sum:
        total = 0.0

        def code(self, tables, symbols):
            own = tables.log_softmax(-1).gather(-1, symbols[:, None])
            self.total = self.total - own.sum().item() / math.log(2)

    for case in ("tree", "mixture of trees", "hidden Markov model", "field", "table"):
        gen = SIZED[case]().eval()
        x = pg.sample(gen, 40, seed=1)
        channel = Sum()
        with torch.no_grad():
            steps = steps_of(gen(), torch.Size((40,)), Span(0, 10))
            sent_rows(steps, coded_of(gen(), x), channel)
        assert channel.total == pytest.approx(bits(gen, x), rel=1e-5), case


def test_a_better_model_makes_fewer_bytes() -> None:
    gen = SIZED["MADE"]()
    x = pg.sample(gen, 500, seed=1)
    product = pg.Factorized(12)
    pg.em(product, x)
    assert len(pg.compress(gen, x)) < len(pg.compress(product, x)) < 500 * 12


@pytest.mark.parametrize("count", [1, 2, 3, 70, 300])
@pytest.mark.parametrize("family", ["MADE", "VAE"])
def test_any_number_of_rows(family: str, count: int) -> None:
    vae = pg.VAE(pg.standard_normal(2), Bernoulli(MLP(2, [8], 12)), Gaussian(MLP(12, [8], 4)))
    gen = SIZED["MADE"]() if family == "MADE" else random(vae)
    x = torch.randint(2, (count, 12)).float()
    assert torch.equal(pg.decompress(gen, pg.compress(gen, x)), x)


def test_rows_with_contexts_and_of_other_types() -> None:
    gen = random(pg.MADE(6, [8], Bernoulli(), context=2)).double()
    x, context = torch.randint(2, (300, 6)), torch.randn(300, 2)
    back = pg.decompress(gen, pg.compress(gen, x.numpy(), context), context)
    assert back.dtype == torch.float64
    assert torch.equal(back, x.double())


def test_a_table_comes_back_as_a_frame() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"color": ["red", "blue", "red", "green"] * 9, "on": [True, False] * 18}
    )
    table = pg.Table.read(frame)
    heads = table.heads()
    gen = pg.Tabular(table, pg.heads.Mixed(Constant(pg.heads.Mixed(None, heads).width), heads))
    back = pg.decompress(gen, pg.compress(gen, frame))
    assert back.astype(str).values.tolist() == frame.astype(str).values.tolist()


@pytest.mark.parametrize("names", [["color", "on"], ["on", "color", "count"]], ids="-".join)
def test_columns_of_different_families_come_back_whatever_predicts_them(names) -> None:
    """One column at a time, each with its own values, in the size of the score."""
    pandas = pytest.importorskip("pandas")
    columns = {
        "color": ["red", "blue", "red", "green"] * 90,
        "on": [True, False] * 180,
        "count": list(range(20)) * 18,
    }
    frame = pandas.DataFrame({name: columns[name] for name in names})
    table = pg.Table.read(frame)
    torch.manual_seed(0)
    gen = pg.Tabular(table, pg.AutoregressiveTable(table.heads(), [8]))
    data = pg.compress(gen, frame)
    assert pg.decompress(gen, data).astype(str).values.tolist() == frame.astype(str).values.tolist()
    score = -pg.log_likelihood(gen, frame).value.sum().item() / math.log(2) / 8
    assert score <= len(data) <= 1.01 * score + 40


def test_a_saved_model_decompresses(tmp_path) -> None:
    gen = SIZED["MADE"]()
    x = pg.sample(gen, 50, seed=1)
    data = pg.compress(gen, x)
    pg.save(gen, tmp_path / "model")
    assert torch.equal(pg.decompress(pg.load(tmp_path / "model"), data), x)


def test_it_leaves_mode_and_random_state_as_they_were() -> None:
    gen = SIZED["MADE"]().train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    pg.decompress(gen, pg.compress(gen, torch.zeros(4, 12)))
    assert gen.training
    assert torch.equal(torch.get_rng_state(), state)


# -- what is refused


@pytest.fixture(scope="module")
def written() -> tuple:
    gen = SIZED["MADE"]()
    return gen, pg.compress(gen, pg.sample(gen, 80, seed=1))


DAMAGED = {
    "nothing": (lambda data: b"", "expected bytes of probgen.compress, got 0"),
    "text": (lambda data: b"some text that is longer", "expected bytes of probgen.compress"),
    "an end cut off": (lambda data: data[:-4], "damaged or cut off; copy the file again"),
    "a header cut off": (lambda data: data[:10], "expected bytes of probgen.compress"),
    "more bytes": (lambda data: data + b"\0", "damaged or cut off"),
    "another byte": (
        lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:],
        "damaged or cut off",
    ),
    "another number of rows": (
        lambda data: data[:16] + bytes([data[16] ^ 2]) + data[17:],
        "damaged or cut off",
    ),
    "another version": (lambda data: data[:2] + b"\x07" + data[3:], "version 1, got version 7"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_bytes_are_refused(case: str, written) -> None:
    gen, data = written
    change, message = DAMAGED[case]
    with pytest.raises(pg.CompressionError, match=message):
        pg.decompress(gen, change(data))


def test_another_model_is_refused(written) -> None:
    _, data = written
    other = SIZED["MADE"]()
    assert len(pg.decompress(other, data)) == 80  # the same weights
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    for wrong in (other, random(pg.MADE(12, [9], Bernoulli())), pg.MarkovChain(12)):
        with pytest.raises(pg.CompressionError, match=r"another one .*; load that one"):
            pg.decompress(wrong, data)


def test_other_contexts_are_refused() -> None:
    gen = random(pg.MADE(6, [8], Bernoulli(), context=2))
    context = torch.randn(5, 2)
    data = pg.compress(gen, torch.zeros(5, 6), context)
    with pytest.raises(pg.CompressionError, match="with the same contexts"):
        pg.decompress(gen, data, context + 1)


def test_other_numbers_are_found_by_the_checksum(monkeypatch) -> None:
    """As from a machine whose arithmetic differs: the fingerprint agrees, the rows do not."""
    gen = SIZED["MADE"]()
    data = pg.compress(gen, pg.sample(gen, 80, seed=1))
    monkeypatch.setattr(
        "probgen.compression.transmission._flat",
        lambda step: 0.9 * step.log_masses.reshape(-1, step.log_masses.shape[-1]),
    )
    with pytest.raises(pg.CompressionError, match="computes other numbers here; decompress on"):
        pg.decompress(gen, data)


def test_impossible_values_are_named_by_row_and_entry() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).repeat(5, 1)
    chain = pg.MarkovChain(2)
    pg.em(chain, x)
    with torch.no_grad():
        chain.logits[1] = -torch.inf  # after 0 never 1
    x[7] = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match="none for 1 in row 7, entry 1; train with pseudo-counts"):
        pg.compress(chain, x)
    smoothed = pg.MarkovChain(2, smoothing=1.0)
    pg.em(smoothed, x)
    assert torch.equal(pg.decompress(smoothed, pg.compress(smoothed, x)), x)


def test_missing_values_are_refused() -> None:
    x = torch.zeros(4, 4)
    x[2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"got NaN \(missing\) in row 2; fill them in"):
        pg.compress(tree(), x)


def test_values_far_apart_are_refused() -> None:
    x = torch.tensor([[0.0] * 5, [2.0**17] * 5])
    with pytest.raises(ValueError, match="within 65,536 of each other"):
        pg.compress(SIZED["counts"](), x)


UNCODED = {
    "densities": (lambda: pg.GaussianMixture(2, 3), torch.zeros(2, 3), "densities"),
    "latents that are a mixture": (
        lambda: pg.VAE(
            pg.GaussianMixture(2, 2), Bernoulli(MLP(2, [8], 3)), Gaussian(MLP(3, [8], 4))
        ),
        torch.zeros(2, 3),
        "latents that are normal",
    ),
}


@pytest.mark.parametrize("case", UNCODED)
def test_models_without_masses_are_refused(case: str) -> None:
    make, x, message = UNCODED[case]
    with pytest.raises(NotImplementedError, match=message):
        pg.compress(make(), x)


@pytest.mark.parametrize("data", ["text", 3, None])
def test_what_is_no_bytes_is_refused(data) -> None:
    with pytest.raises(TypeError, match="pass what compress gave"):
        pg.decompress(SIZED["MADE"](), data)


def test_levels_tell_the_tables() -> None:
    distribution = Categorical(Constant(6), levels=3)().base_dist
    logs, lowest = tables_of(distribution, Span(0, 1))
    assert (lowest, logs.shape) == (0, (2, 3))
    assert levels_of(Poisson(Constant(2))()) is None
    logs, lowest = tables_of(Poisson(Constant(2))().base_dist, Span(2, 5))
    assert (lowest, logs.shape) == (2, (2, 4))
