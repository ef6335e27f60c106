"""What several processes find together over rows that each of them reads a part of.

Run by tests/test_em_streams.py and tests/test_scores_streams.py; prints as JSON, by
case, how far it is from what one process finds alone, or what was raised.
"""

import copy
import json
import sys
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from forked import together as forked
from lightning_fabric import Fabric

import probgen as pg
from probgen.core.by_blocks import by_blocks
from probgen.core.module import Fixed
from probgen.core.streams import MemoryRows
from probgen.core.together import Together
from probgen.infer import em_stream
from probgen.streams import Iterated

STEPS = {"max_iter": 2, "tol": 0.0, "seed": 3}


def stops():
    """A program that fails where a value is above 9."""

    def model(x):
        if (x > 9).any():
            raise ValueError("expected values up to 9; cut them")
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

    return pg.Program(model)


def rowwise():
    """A latent normal variable, and its exact posterior: every weight is the density itself."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    return pg.Program(model, guide)


def apart(one, other):
    """The largest relative difference of two tensors or lists of them."""
    if isinstance(one, list | tuple):
        return max(map(apart, one, other))
    one, other = one.double(), other.double()
    return float(((one - other).abs() / (1 + other.abs())).max())


def em_cases(fabric):
    from em_rows import NAMES, example

    for number, name in enumerate(NAMES):
        gen, x, weights = example(name)
        alone = copy.deepcopy(gen)
        found = pg.em(alone, x, weights=weights, **STEPS).log_likelihood
        forms = {"memory": x, "stream": MemoryRows((x,)), "batches": list(x.split(5))}
        form, data = list(forms.items())[number % len(forms)]
        together = copy.deepcopy(gen)
        if fabric.global_rank:  # the first process has the say
            for parameter in together.parameters():
                parameter.data.add_(1.0)
        how = {"weights": weights, "max_rows": 7, "fabric": fabric, **STEPS}
        values = pg.em(together, data, **how).log_likelihood
        densities = [each().log_prob(x).detach() for each in (together, alone)]
        states = Together(fabric).gather(together.state_dict())
        same = all(torch.equal(states[0][key], state[key]) for state in states for key in state)
        yield f"{name}, {form}", max(apart(values, found), apart(*densities), float(not same))
    yield "start of some rows", start_of_some_rows(fabric)


def start_of_some_rows(fabric):
    """How far starts are apart that are made of a part of the rows, with a far one that is rare."""
    em_stream.START_ELEMENTS, em_stream.FEW = 1, 200
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x[3000:3003] += 3000.0
    means = []
    for shared in (None, fabric):
        gen = pg.GaussianMixture(2, 2).double()
        pg.em(gen, MemoryRows((x,)), max_iter=0, seed=0, max_rows=900, fabric=shared)
        means.append(gen.means)
    return apart(*means) + float(means[0].max() < 2999)


def score_cases(fabric):
    torch.manual_seed(0)
    x = torch.randn(23, 3, dtype=torch.float64)
    x[::4, 0] = torch.nan
    gen = pg.GaussianMixture(2, 3).double()
    alone = pg.log_likelihood(gen, x)
    found = pg.log_likelihood(gen, x, fabric=fabric)
    yield "scores in order", apart(found.value, alone.value)
    for form, data in {"stream": MemoryRows((x,)), "batches": list(x.split(5))}.items():
        mean = pg.log_likelihood(gen, data, max_rows=7, fabric=fabric)
        both = torch.tensor([mean.mean, mean.stderr]), torch.tensor([alone.mean, alone.stderr])
        yield f"mean score, {form}", apart(*both) + abs(mean.rows - 23)
    program, y = rowwise(), torch.randn(23)
    truth = dist.Normal(0.0, 2**0.5).log_prob(y)
    bound = pg.log_likelihood(program, y, particles=3, seed=1, fabric=fabric)
    yield "scores of draws", apart(bound.value, truth) + float(bound.kind != "unbiased")
    again = pg.log_likelihood(program, y, particles=3, seed=1, fabric=fabric)
    yield "same seed", apart(bound.value, again.value)
    vae = pg.VAE(
        prior=Fixed(dist.Normal, loc=torch.zeros(1), scale=1.0),
        decoder=pg.heads.Gaussian(torch.nn.Linear(1, 4)),
        encoder=pg.heads.Gaussian(torch.nn.Linear(2, 2)),
    )
    rows = torch.zeros(8, 2)  # which draws alone tell apart
    drawn = pg.log_likelihood(vae, rows, particles=2, seed=1, fabric=fabric).value
    yield "other draws in other processes", float(len(drawn.unique()) < 8)


def row_cases(fabric):
    torch.manual_seed(0)
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    gen = Fixed(dist.MultivariateNormal, loc=torch.zeros(2), covariance_matrix=covariance)
    x = torch.randn(11, 2)
    x[::2, 1] = torch.nan
    expected = torch.where(x.isnan(), 0.9 * x[:, :1], x)
    done = pg.impute(gen, x, draws=500, seed=1, fabric=fabric)
    yield "imputed in order", float((done.mean() - expected).abs().max() > 0.1)
    yield "kind of imputation", float(done.kind != "exact")
    own = list(pg.impute(gen, MemoryRows((x,)), draws=500, seed=1, max_rows=3, fabric=fabric))
    every = [each for part in Together(fabric).gather(own) for each in part]
    starts = [each.start for each in every]
    mean = torch.cat([each.result.mean() for each in every])
    yield "imputed blocks", float((mean - expected).abs().max() > 0.1) + (starts != sorted(starts))
    program, y = rowwise(), torch.randn(11)
    for function, mean in ((pg.posterior, y / 2), (pg.predictive, y / 2)):
        how = {"draws": 400, "seed": 2, "max_rows": 4, "fabric": fabric}
        own = list(by_blocks(function, program, y, **how))
        every = [each for part in Together(fabric).gather(own) for each in part]
        values = [next(iter(each.result.values())).mean(0) for each in every]
        yield f"blocks of {function.__name__}", float((torch.cat(values) - mean).abs().max() > 0.3)
    samples, real = torch.randn(40, 2), torch.randn(60, 2)
    alone = pg.sample_report(samples, real, permutations=5)
    found = pg.sample_report(samples, MemoryRows((real,)), permutations=5, fabric=fabric)
    yield "report", apart(*(torch.tensor([line.value for line in each]) for each in (found, alone)))


def same_cases(fabric):
    """Draws of two processes are those of one: of a stream without a fabric, in memory with one."""
    torch.manual_seed(0)
    one = Fabric(accelerator="cpu", devices=1)
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    gen = Fixed(dist.MultivariateNormal, loc=torch.zeros(2), covariance_matrix=covariance)
    gaps = torch.randn(23, 2)
    gaps[::2, 1] = torch.nan
    program, y = rowwise(), torch.randn(23)
    chains = {"z": torch.randn(70, 23)}
    for function, model, x, how in (
        (pg.impute, gen, gaps, {"draws": 3}),
        (pg.posterior, program, y, {"draws": 150}),
        (pg.predictive, program, y, {"draws": 150}),
        (pg.predictive, program, y, {"draws": 150, "new_rows": True}),
        (pg.predictive, program, y, {"given": chains}),
    ):
        name = f"{function.__name__} {sorted(how)}"
        call = partial(function, model, seed=2, **how)
        yield f"{name} in memory", apart(*(values(call(x, fabric=each)) for each in (one, fabric)))
        if "given" in how:
            continue
        for form in (MemoryRows((x,)), list(x.split(5)), Numbers(x)):
            alone = list(call(stream_of(form), max_rows=4))
            own = list(call(stream_of(form), max_rows=4, fabric=fabric))
            parts = Together(fabric).gather([(each.start, values(each.result)) for each in own])
            found = sorted((each for part in parts for each in part), key=lambda part: part[0])
            same = [each.start for each in alone] == [start for start, _ in found]
            far = [apart(values(a.result), b) for a, (_, b) in zip(alone, found, strict=True)]
            yield f"{name} of {type(form).__name__}", max(far) + float(not same)
    vae = pg.VAE(
        prior=Fixed(dist.Normal, loc=torch.zeros(1), scale=1.0),
        decoder=pg.heads.Gaussian(torch.nn.Linear(1, 4)),
        encoder=pg.heads.Gaussian(torch.nn.Linear(2, 2)),
    )
    score = partial(pg.log_likelihood, vae, particles=2, seed=1, max_rows=4)
    for form in (MemoryRows((torch.randn(23, 2),)), list(torch.randn(23, 2).split(5))):
        means = [score(form, fabric=each).mean for each in (None, fabric)]
        yield f"scores of draws, {type(form).__name__}", apart(*map(torch.tensor, means))


class Numbers:
    """Samples that are read from the beginning to the end."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


def stream_of(form):
    """Something that functions read as a stream, also of a program, to which lists are arguments."""
    if isinstance(form, Numbers):
        return Iterated(form, rows=len(form.x))
    return iter(form) if isinstance(form, list) else form


def values(found):
    """What was drawn, as tensors."""
    return [found.draws] if isinstance(found, pg.Imputation) else list(found.values())


def refusal(function, *arguments, **options):
    """What is raised."""
    try:
        function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def refused_cases(fabric):
    x = torch.randn(12, 2)
    x[9, 1] = torch.inf  # read by the second process
    gen = pg.GaussianMixture(2, 2)
    how = {"fabric": fabric, "max_rows": 2}
    yield "infinity, em", refusal(pg.em, gen, MemoryRows((x,)), **how)
    yield "infinity, log_likelihood", refusal(pg.log_likelihood, gen, MemoryRows((x,)), **how)
    yield "iterator, em", refusal(pg.em, gen, iter([x]), **how)
    rank = fabric.global_rank
    yield "other rows, em", refusal(pg.em, gen, torch.randn(10 + rank, 2), fabric=fabric)
    for name, call, keywords in unlike_calls(rank):
        yield f"unlike {name}", refusal(call, **keywords, fabric=fabric)
    high = torch.zeros(12, 2)
    high[9] = 10.0
    yield "program, log_likelihood", refusal(pg.log_likelihood, stops(), MemoryRows((high,)), **how)
    one = [torch.zeros(3, 2)]  # the second process has none
    yield "empty part, log_likelihood", str(pg.log_likelihood(gen, one, fabric=fabric).rows)
    yield "no rows, log_likelihood", refusal(pg.log_likelihood, gen, iter([]), fabric=fabric)


def unlike_calls(rank):
    """Calls that are not the same in both processes."""
    torch.manual_seed(0)
    rows = torch.randn(12, 2)
    stream, other = MemoryRows((rows,)), MemoryRows((rows.flip(-1) if rank else rows,))
    gen, large = pg.GaussianMixture(2, 2), pg.GaussianMixture(2 + rank, 2)
    torch.manual_seed(rank)
    own = pg.GaussianMixture(2, 2)
    with torch.no_grad():
        own.loc.add_(rank)
    yield "weights, log_likelihood", partial(pg.log_likelihood, own, stream), {}
    yield "weights in memory, log_likelihood", partial(pg.log_likelihood, own, rows), {}
    gap = rows.clone()
    gap[::2, 0] = torch.nan
    yield "weights, impute", partial(pg.impute, own, gap), {}
    yield "weights, by_blocks", partial(pg.by_blocks, pg.log_likelihood, own, stream), {}
    for read in (pg.log_likelihood, pg.em):
        yield f"columns, {read.__name__}", partial(read, gen, other), {}
        yield f"rows, {read.__name__}", partial(read, gen, rows[: 12 - rank]), {}
    yield (
        "particles, log_likelihood",
        partial(pg.log_likelihood, gen, rows),
        {"particles": 2 + rank},
    )
    yield "max_iter, em", partial(pg.em, gen, rows), {"max_iter": 3 + 5 * rank}
    yield "starts, em", partial(pg.em, gen, stream), {"n_init": 1 + rank}
    yield "components, em", partial(pg.em, large, rows), {}
    yield "components, em of a stream", partial(pg.em, large, stream), {}
    yield "seed, sample_report", partial(pg.sample_report, rows, rows), {"seed": rank}


CASES = {"em": [em_cases], "scores": [score_cases, row_cases, refused_cases, same_cases]}


def work():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    for cases in CASES[sys.argv[1]]:
        found = dict(cases(fabric))
        everywhere = Together(fabric).gather(found)
        if fabric.is_global_zero:
            print("RESULT" + json.dumps(everywhere), flush=True)


if __name__ == "__main__":
    sys.exit(any(forked(work)))
