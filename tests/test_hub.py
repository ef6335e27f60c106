"""A folder with a model and its card, and the calls of the library of repositories."""

import inspect
import re

import pytest
import torch
from torch import nn

import probgen as pg
from probgen.core import Recorded
from probgen.heads import Gaussian
from probgen.nn import MLP
from probgen.train.checkpoint import CheckpointError


class Own(Recorded, nn.Module):
    """A user's network."""

    def __init__(self, size: int):
        super().__init__()
        self.layer = nn.Linear(size, 2 * size)

    def forward(self, x):
        return self.layer(x)


def mixture():
    torch.manual_seed(0)
    gen = pg.GaussianMixture(2, 2)
    pg.em(gen, torch.randn(40, 2), max_iter=2, tol=0.0, seed=0)
    return gen


def score(gen, rows=30):
    return pg.log_likelihood(gen, torch.randn(rows, 2), seed=0)


def test_a_folder_is_a_model(tmp_path):
    gen = mixture()
    folder = pg.hub.save_to_folder(gen, tmp_path / "new" / "folder")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.safetensors"]
    again = pg.hub.from_hub(folder)
    x = torch.randn(5, 2)
    assert torch.equal(again().log_prob(x), gen().log_prob(x))
    assert pg.train.training_records(again) == pg.train.training_records(gen)
    assert pg.hub.from_hub(str(folder), into=pg.GaussianMixture(2, 2)) is not again


def test_other_files_of_a_folder_are_left_alone(tmp_path):
    (tmp_path / "data.csv").write_text("1")
    pg.hub.save_to_folder(mixture(), tmp_path)
    pg.hub.save_to_folder(mixture(), tmp_path)
    assert (tmp_path / "data.csv").read_text() == "1"


def test_own_classes_are_refused_unless_allowed(tmp_path):
    pg.hub.save_to_folder(Gaussian(Own(2)), tmp_path)
    with pytest.raises(CheckpointError, match=r"Own is code beyond .* allow="):
        pg.hub.from_hub(tmp_path)
    assert isinstance(pg.hub.from_hub(tmp_path, allow=[Own]).net, Own)


# -- the card


def test_a_card_says_what_the_model_is():
    gen = mixture()
    test = score(gen)
    card = pg.hub.model_card(
        gen,
        scores={"test | rows": test},
        name="two clusters",
        description="Of random rows.",
        license="mit",
        tags=["example"],
    )
    assert "# two clusters\n\nOf random rows." in card and 'license: "mit"' in card
    assert "GaussianMixture(components=2, dims=2)" in card and "$$" in card
    assert f"| {test.mean:.6g} | {test.stderr:.2g} | nats | exact | density | 30 |" in card
    assert r"| test \| rows |" in card
    assert "- *exact*: it is the log-likelihood." in card
    assert "| the model | em | `log-likelihood` | 2 | 40 |" in card
    assert f"torch {torch.__version__}" in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8, 9}  # no cell ends early


def test_a_card_has_the_kinds_of_all_scores():
    decoder = Gaussian(MLP(2, [4], 4))
    gen = pg.VAE(pg.standard_normal(2), decoder, Gaussian(MLP(2, [4], 4)))
    card = pg.hub.model_card(gen, scores={"a": score(gen, 6)})
    assert "unbiased, 64 particles" in card and "The density of this model is *unbiased*" in card
    implicit = pg.hub.model_card(pg.GAN(MLP(2, [4], 2), pg.standard_normal(2)))
    assert "The density of this model is *implicit*" in implicit
    assert "No record of how it was trained" in implicit


def test_scores_are_scores():
    with pytest.raises(TypeError, match=r"pass what pg\.log_likelihood gave"):
        pg.hub.model_card(mixture(), scores={"test": -3.0})
    with pytest.raises(TypeError, match="expected a Module gen"):
        pg.hub.model_card("model")


def test_the_random_state_is_left_alone():
    before = torch.get_rng_state()
    pg.hub.model_card(mixture_without_training())
    assert torch.equal(before, torch.get_rng_state())


def mixture_without_training():
    with torch.random.fork_rng():
        return pg.GaussianMixture(2, 2)


def test_the_library_of_repositories_reads_the_card(tmp_path):
    library = pytest.importorskip("huggingface_hub")
    gen = mixture()
    test = score(gen)
    pg.hub.save_to_folder(gen, tmp_path, scores={'a "test"': test}, license="mit")
    data = library.ModelCard.load(tmp_path / "README.md").data
    assert data.license == "mit" and data.library_name == "probgen" and "probgen" in data.tags
    (result,) = data.eval_results
    assert result.dataset_name == 'a "test"'
    assert result.metric_value == pytest.approx(test.mean, rel=1e-5)


# -- repositories: what is called, and how


class Api:
    """Takes calls as ``HfApi`` does, and keeps them."""

    calls: list = []

    def __init__(self, token=None):
        self.calls.append(("HfApi", {"token": token}))

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))

    def create_branch(self, repo_id, **options):
        self.calls.append(("create_branch", {"repo_id": repo_id, **options}))

    def upload_folder(self, *, folder_path, **options):
        from pathlib import Path

        self.calls.append(("upload_folder", {"folder_path": folder_path, **options}))
        for path in Path(folder_path).iterdir():
            self.uploaded[path.name] = path.read_bytes()
        return "the address"

    uploaded: dict = {}


class Library:
    """What stands in for huggingface_hub."""

    HfApi = Api
    downloads: list = []

    def hf_hub_download(self, repo_id, filename, **options):
        self.downloads.append({"repo_id": repo_id, "filename": filename, **options})
        return self.path


@pytest.fixture
def library(monkeypatch, tmp_path):
    Api.calls, Api.uploaded, Library.downloads = [], {}, []
    stand_in = Library()
    stand_in.path = str(tmp_path / "downloaded.safetensors")
    monkeypatch.setattr("probgen.hub._library", lambda: stand_in)
    return stand_in


def test_a_model_is_pushed_and_comes_back(library):
    gen = mixture()
    address = pg.hub.push_to_hub(gen, "me/mixture", revision="next", private=True, token="t")
    assert address == "the address"
    assert [name for name, _ in Api.calls] == [
        "HfApi",
        "create_repo",
        "create_branch",
        "upload_folder",
    ]
    assert Api.uploaded.keys() == {"README.md", "model.safetensors"}
    card = Api.uploaded["README.md"].decode()
    assert "# mixture\n" in card and 'gen = pg.hub.from_hub("me/mixture")' in card
    with open(library.path, "wb") as file:  # noqa: PTH123
        file.write(Api.uploaded["model.safetensors"])
    again = pg.hub.from_hub("me/mixture", revision="next", token="t")
    x = torch.randn(5, 2)
    assert torch.equal(again().log_prob(x), gen().log_prob(x))
    assert library.downloads == [
        {
            "repo_id": "me/mixture",
            "filename": "model.safetensors",
            "revision": "next",
            "token": "t",
        }
    ]


def test_a_repository_is_data_too(library):
    pg.save(Gaussian(Own(2)), library.path)
    with pytest.raises(CheckpointError, match=r"Own is code beyond"):
        pg.hub.from_hub("me/own")


def test_the_library_takes_these_calls(library):
    real = pytest.importorskip("huggingface_hub")
    pg.hub.push_to_hub(mixture(), "me/mixture", revision="next")
    pg.save(mixture(), library.path)
    pg.hub.from_hub("me/mixture")
    for name, options in Api.calls[1:]:
        inspect.signature(getattr(real.HfApi, name)).bind(None, **options)
    inspect.signature(real.HfApi.__init__).bind(None, **Api.calls[0][1])
    inspect.signature(real.hf_hub_download).bind(**library.downloads[0])


@pytest.mark.parametrize("name", ["model", "a/b/c", "no folder/", ""])
def test_what_is_no_repository_is_refused(library, name):
    for call in (pg.hub.from_hub, lambda at: pg.hub.push_to_hub(mixture(), at)):
        with pytest.raises((ValueError, TypeError), match="expected"):
            call(name)
    assert Api.calls == [] and library.downloads == []


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"found none; give a folder of pg\.hub"):
        pg.hub.from_hub(tmp_path)


def test_without_the_library_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'probgen\[hub\]'.*save_to_folder"):
        pg.hub.from_hub("me/mixture")
    pg.hub.save_to_folder(mixture(), tmp_path)  # as the error advises


def test_scores_are_named_by_strings() -> None:
    gen = pg.standard_normal(2)
    with pytest.raises(TypeError, match="scores"):
        pg.hub.model_card(gen, scores={1: pg.log_likelihood(gen, torch.zeros(3, 2))})
