"""A page about a model: it is whole by itself, has every section, and its numbers are those of the model."""

import base64
import io
import math
import re
import tempfile
from functools import cache
from html.parser import HTMLParser
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen.diagnostics.findings import CAUTION, Finding
from probgen.diagnostics.settled import Course
from probgen.diagnostics.verdict import FitVerdict
from probgen.evaluate.result import TwoSample
from probgen.plot.samples import are_images
from probgen.reporting.page import Section, cell_table, page, paragraph, points
from probgen.reporting.sections import MEANS, SECTIONS, judgment_section

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a browser would find: sections with their text, pictures, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sections, self.pictures, self.links, self.loaded = [], {}, [], [], []
        self.heading = None
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.sections[found["id"]] = ""
        if tag == "img":
            self.pictures.append(found["src"])
        if tag == "a":
            self.links.append(found["href"])
        self.loaded += [value for name, value in attributes if name in ("src", "href", "data")]
        assert tag not in ("script", "link", "iframe", "object")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "section" in self.open:
            last = next(reversed(self.sections))
            self.sections[last] += data + " "


@cache
def images():
    torch.manual_seed(0)
    x = (torch.rand(40, 64) < torch.linspace(0.1, 0.9, 64)).float()
    vae = pg.VAE(
        pg.standard_normal(2),
        pg.heads.Bernoulli(pg.nn.MLP(2, [4], 64)),
        pg.heads.Gaussian(pg.nn.MLP(64, [4], 4)),
    )
    history = pg.fit(
        vae, x, steps=12, validation=x[:9], validate_every=4, seed=0, verdict=False, compile=False
    )
    return vae, x, {"history": history, "shape": (8, 8)}


def frame():
    torch.manual_seed(0)
    x = torch.randn(60, 2) + torch.tensor([0.0, 50.0])
    return pg.GaussianMixture(2, dims=2), pd.DataFrame(x.numpy(), columns=["a<b", "age & sex"]), {}


@cache
def implicit():
    torch.manual_seed(0)
    x = torch.randn(50, 2)
    gan = pg.GAN(pg.nn.MLP(2, [4], 2), pg.standard_normal(2))
    objective = pg.objectives.Adversarial(pg.nn.MLP(2, [4], 1))
    history = pg.fit(gan, x, objective, steps=30, verdict=False, compile=False)
    return gan, x, {"history": history}


def given():
    torch.manual_seed(0)
    context = torch.linspace(-9, 9, 50)[:, None]
    gen = pg.heads.Gaussian(pg.nn.MLP(1, [4], 2))
    return gen, (context.sin(), context), {}


def series():
    return (
        pg.HiddenMarkovModel(2, 9, pg.sequences.GaussianEmission(2, dims=1)),
        torch.randn(50, 9, 1),
        {},
    )


def unnormalized():
    return (
        pg.RBM(pg.energy.BernoulliUnits(6), hidden=3, limit=0),
        (torch.rand(50, 6) > 0.5).float(),
        {},
    )


def numbers():
    return (
        pg.Fixed(dist.Normal, event_ndim=0, loc=torch.tensor(1.0), scale=torch.tensor(2.0)),
        torch.randn(50),
        {},
    )


def holes():
    gen, x, _ = pg.GaussianMixture(2, dims=3), torch.randn(90, 3), None
    return gen, torch.where(torch.rand(90, 3) < 0.9, x, torch.nan), {}


SUBJECTS = {
    "image": images,
    "table": frame,
    "implicit": implicit,
    "conditional": given,
    "series": series,
    "unnormalized": unnormalized,
    "numbers": numbers,
    "missing": holes,
}
PICTURES = {"image": 6, "table": 2, "implicit": 5, "conditional": 1, "series": 1, "unnormalized": 1}
PICTURES |= {"numbers": 1, "missing": 2}


@cache
def made(name):
    gen, data, options = SUBJECTS[name]()
    with tempfile.TemporaryDirectory() as folder:
        path = pg.report(gen, data, f"{folder}/new/page.html", particles=8, **options)
        return path.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_page_is_whole_and_has_every_section(name):
    text = made(name)
    found = Page(text)
    history = "history" in SUBJECTS[name]()[2]
    expected = [each.lower().replace(" ", "-") for each in SECTIONS]
    assert list(found.sections) == [each for each in expected if history or each != "training"]
    assert found.links == [f"#{each}" for each in found.sections]
    assert "http:" not in text and "https:" not in text and "url(" not in text
    assert all(each.startswith(("#", "data:image/png;base64,")) for each in found.loaded)
    for source in found.pictures:
        pixels = plt.imread(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert min(pixels.shape[:2]) > 50 and pixels[..., :3].std() > 0.01
    assert len(found.pictures) == PICTURES[name]
    assert "Not available" not in text
    assert not plt.get_fignums()


KINDS = {
    "image": "unbiased",
    "table": "exact",
    "conditional": "exact",
    "unnormalized": "unnormalized",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_score_is_that_of_the_model(name):
    gen, data, options = SUBJECTS[name]()
    text = _written(gen, data, **options)
    batch = data if isinstance(data, tuple) else (data,)
    score = pg.log_likelihood(gen, *batch, particles=8, seed=0)
    told = Page(text).sections["scores"]
    assert score.kind == KINDS[name]
    assert str(score) in told and MEANS[score.kind] in told and f" {score.kind} " in told


def _written(gen, data, **options):
    with tempfile.TemporaryDirectory() as folder:
        return pg.report(gen, data, f"{folder}/page.html", particles=8, **options).read_text()


@pytest.mark.slow
def test_a_family_without_density_says_so_instead_of_a_number():
    told = Page(made("implicit")).sections
    assert "no log-likelihood" in told["scores"]
    assert not re.search(r"\d nats", told["scores"])
    assert "loss: still changing" not in told["verdict"]  # of a game it tells nothing
    assert "does not apply" in told["guide"] or "not judged" in told["guide"]


@pytest.mark.slow
def test_text_is_escaped():
    gen, data, _ = frame()
    text = _written(gen, data, title="<script>alert('a')</script> & more")
    assert "<script>" not in text and "&lt;script&gt;" in text
    Page(text)


@pytest.mark.slow
def test_k_hat_stands_where_a_guide_draws():
    found = Page(made("image")).sections
    assert "PSIS k-hat" in found["guide"]
    assert "8 draws" not in found["guide"] and "200 draws" in found["guide"]
    assert "does not apply" in Page(made("series")).sections["guide"]


@pytest.mark.slow
def test_the_course_of_a_fit_is_told():
    history = images()[2]["history"]
    told = Page(made("image")).sections["training"]
    assert "12 steps done" in told and f"{history.loss[-1]:.4g}" in told
    assert f"{min(value for _, value in history.validation):.4g}" in told


def test_it_leaves_the_model_and_the_random_state_as_they_were(tmp_path):
    gen = pg.GaussianMixture(2, dims=1).train()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in gen.state_dict().items()}
    one = pg.report(gen, torch.ones(9, 1).cumsum(0), tmp_path / "one.html", seed=3)
    assert torch.equal(torch.get_rng_state(), before) and gen.training
    torch.testing.assert_close(dict(gen.state_dict()), state, rtol=0, atol=0)
    torch.rand(5)
    two = pg.report(gen, torch.ones(9, 1).cumsum(0), tmp_path / "two.html", seed=3)
    pages = (re.sub("Written by .*? UTC", "", path.read_text()) for path in (one, two))
    assert len(set(pages)) == 1


def test_a_section_that_fails_does_not_cost_the_page(tmp_path, monkeypatch):
    def failing(about):
        raise RuntimeError("no <luck>\nat all")

    monkeypatch.setitem(SECTIONS, "Samples", failing)
    path = pg.report(pg.GaussianMixture(2, dims=1), torch.randn(9, 1), tmp_path / "page.html")
    text = path.read_text()
    assert "Not available: no &lt;luck&gt;</p>" in text and "Scores" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "FOLDER"}, r"expected the path of a file, got the folder .*report.html"),
        ({"path": 3}, "expected a path path"),
        ({"history": [3.0]}, "expected a History history"),
        ({"data": torch.zeros(0, 1)}, "expected data with at least one row"),
        ({"data": torch.zeros(4, 3)}, r"expected .*\(N, 1\)|expected .*shape"),
        ({"judged_rows": 0}, "expected judged_rows >= 1"),
        ({"names": ["a", "b"]}, "expected names of 1 columns, got 2"),
        ({"progress": "bar"}, "expected progress to be True"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, tmp_path):
    usual = {"gen": pg.GaussianMixture(2, dims=1), "data": torch.randn(9, 1), "path": "page.html"}
    given = usual | change
    if given["path"] == "FOLDER":
        given["path"] = tmp_path
    with pytest.raises((TypeError, ValueError), match=message):
        pg.report(**given)


def _badge(verdict, comparisons=None):
    about = SimpleNamespace(verdict=lambda: verdict, comparisons=lambda: comparisons)
    return str(judgment_section(about).parts[0])


BADGES = {
    "nothing was judged": (FitVerdict(notes=("baseline: not compared (x)",)), None, "nothing here"),
    "settled": (FitVerdict(Course("none", 99)), None, "no sign of trouble"),
    "still changing": (FitVerdict(Course("falling", 99)), None, "look at what is marked"),
    "a column": (
        FitVerdict(Course("none", 99), advice=(Finding(CAUTION, "columns: 0 of x"),)),
        None,
        "worth a look",
    ),
    "samples are told": (FitVerdict(Course("none", 99)), 0.001, "worth a look"),
    "samples are not told": (FitVerdict(Course("none", 99)), 0.3, "no sign of trouble"),
}


@pytest.mark.parametrize("name", BADGES)
def test_the_badge_is_as_bad_as_the_worst_that_stands_below(name):
    judged, p_value, words = BADGES[name]
    tests = None if p_value is None else [TwoSample("MMD test", 0.1, p_value=p_value)]
    assert words in _badge(judged, tests)


def test_parts_of_a_page():
    text = page(
        "<t>", "s", [Section("A b", (paragraph("x < y", "note"), points([("", "&")])))], "f"
    )
    found = Page(text)
    assert found.sections == {"a-b": " ".join(["\n", "A b", "\n", "x < y", "\n", "&", "\n", ""])}
    cells = cell_table([("n", 1234, 0.5, math.nan, None, "<")], ("", "a", "b", "c", "d", "e"))
    assert re.findall(r"<td[^>]*>(.*?)</td>", cells) == ["1,234", "0.5", "", "", "&lt;"]


SHAPES = {(1, 8, 8): True, (3, 9, 7): True, (28, 28): True, (4, 8, 8): False, (90, 2): False}
SHAPES |= {(64,): False, (): False, (1, 3, 3): False}


@pytest.mark.parametrize("shape", SHAPES)
def test_images_are_told_by_their_shape(shape):
    assert are_images(shape) is SHAPES[shape]


@pytest.mark.slow
def test_a_table_of_words_and_numbers_is_shown_in_its_own_words(tmp_path):
    torch.manual_seed(0)
    cells = torch.rand(60)
    data = pd.DataFrame({"mood": ["good" if c > 0.5 else "bad" for c in cells], "age": cells * 80})
    table = pg.Table.read(data)
    gen = pg.Tabular(table, pg.AutoregressiveTable(table.heads(), [8]))
    found = Page(pg.report(gen, data, tmp_path / "page.html", particles=2).read_text())
    assert "60 generated rows" in found.sections["samples"] and len(found.pictures) == 1
    assert "Not available" not in " ".join(found.sections.values())
