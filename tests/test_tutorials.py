"""The tutorials run from start to end and leave what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import arviz
import pandas
import pytest

import probgen as pg

TUTORIALS = Path(__file__).parents[1] / "tutorials"
PRIORS = ("VAE, normal prior    ", "VAE, diffusion prior ")


def run(name, output):
    command = [sys.executable, str(TUTORIALS / name), "--output", str(output)]
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def score(text, name):
    line = next(line for line in text.splitlines() if line.startswith(name))
    return float(line[len(name) :].replace("=", "").replace(">", "").split("±")[0])


@pytest.mark.slow
def test_quickstart(tmp_path):
    text = run("01_quickstart.py", tmp_path)
    assert "behind the first" in text and text.count("Torgersen") >= 5  # rows, filled in
    assert score(text, "pixel counts") == pytest.approx(-106.3, abs=0.1)
    assert -90 < score(text, "VAE  ") < -75
    assert score(text, "mixture, EM") > -130 and score(text, "Bayesian mixture") > -130
    assert "the VAE is better than counting pixels: True" in text and "is inconclusive" in text
    data = arviz.from_netcdf(tmp_path / "bayesian_mixture.nc")
    assert dict(data.posterior["means"].sizes) == {
        "chain": 1,
        "draw": 300,
        "cluster": 10,
        "pixel": 64,
    }
    assert float(abs(data.posterior["weights"].sum("cluster") - 1).max()) < 1e-4
    pictures = {
        "mixture_means",
        "weights_forest",
        "weights_trace",
        "weights_pair",
        "vae",
        "vae_samples",
        "imputation",
    }
    assert pictures <= {path.stem for path in tmp_path.glob("*.png")}


@pytest.mark.slow
def test_your_own_model(tmp_path):
    text = run("02_your_own_model.py", tmp_path)
    gap = float(text.split("largest difference of a posterior mean: ")[1].split()[0])
    assert gap < 0.6  # posterior standard deviations between SVI and NUTS
    assert "pooled: History(1500 steps" in text and "loss: settled" in text
    data = arviz.from_netcdf(tmp_path / "hierarchical.nc")
    assert list(data.posterior["line"].coords["age"].values) == [
        "19-34",
        "35-44",
        "45-54",
        "55-64",
        "65-79",
    ]
    assert {"forest", "predictive_check", "lines"} <= {path.stem for path in tmp_path.glob("*.png")}


@pytest.mark.slow
def test_fast_inference(tmp_path):
    text = run("03_fast_inference.py", tmp_path)
    gaps = [float(rest.split()[0]) for rest in text.split("steps differ by at most ")[1:]]
    assert len(gaps) == 3 and max(gaps) < 1e-3  # nats per row, between program and compiled graph
    width = pandas.read_csv(tmp_path / "summary.csv", index_col=0)[
        "width"
    ]  # of the guides, relative to NUTS
    assert width["mean field"] < 0.6 and width["mean field"] < width["multivariate"] < 1
    assert abs(width["mixture"] - 1) < 0.15 and abs(width["schools"] - 1) < 0.2
    assert float(text.split("chains from the guide: ")[1].split(",")[0]) < 1.1  # R-hat
    assert (
        float(text.split("held-out log score, NUTS: ")[1].split()[0]) > -0.1
    )  # -0.66 without any measurement
    data = arviz.from_netcdf(tmp_path / "tumors.nc")
    assert dict(data.posterior["slope"].sizes) == {"chain": 4, "draw": 250, "kind": 10, "part": 3}
    assert {"schools", "slopes", "mixture", "chains", "trust"} <= {
        path.stem for path in tmp_path.glob("*.png")
    }


@pytest.mark.slow
def test_autoregressive(tmp_path):
    text = run("04_autoregressive.py", tmp_path)
    assert (
        "joint table        511 parameters" in text and "chain of order 1    17 parameters" in text
    )
    assert score(text, "pixel counts") == pytest.approx(-106.3, abs=0.1)
    assert score(text, "PixelCNN     ") > -83 and "PixelCNN is better than MADE: True" in text
    assert float(text.split("area under the curve ")[1].split()[0]) > 0.98
    assert "lower half: exact; upper half: asymptotic" in text
    assert {"completions", "surprise_and_samples", "uses"} <= {
        path.stem for path in tmp_path.glob("*.png")
    }


@pytest.mark.slow
def test_flows(tmp_path):
    text = run("05_flows.py", tmp_path)
    assert score(text, "two moons, spline flow") > score(text, "two moons, mixture of 8 Gaussians")
    assert score(text, "pixel counts") == pytest.approx(-106.5, abs=0.1)
    for name in ("autoregressive flow", "VAE, flow prior", "VAE, flow prior and posterior"):
        line = next(line for line in text.splitlines() if line.startswith(f"{name}  "))
        assert "better than counting: True" in line
    assert {"flows", "digits"} <= {path.stem for path in tmp_path.glob("*.png")}


@pytest.mark.slow
def test_graphical_and_sequences(tmp_path):
    text = run("06_graphical_and_sequences.py", tmp_path)
    dyspnoea = next(
        line for line in text.splitlines() if line.startswith("short of breath")
    ).split()
    assert [float(value) for value in dyspnoea[-4:]] == pytest.approx(
        [0.0188, 0.1028, 0.8340, 0.4360], abs=1e-3
    )
    assert score(text, "EM on all with gaps") > score(text, "complete records only") + 0.3
    assert score(text, "tree  ") > score(text, "independent pixels") + 2
    data = arviz.from_netcdf(tmp_path / "earthquakes.nc")
    stays = data.posterior["transitions"].mean(("chain", "draw")).values.diagonal()
    assert ((stays > 0.5) & (stays < 0.95)).all()
    assert float(arviz.rhat(data)["rates"].max()) < 1.1
    assert (tmp_path / "graphical.png").exists()


@pytest.mark.slow
def test_diffusion(tmp_path):
    text = run("08_diffusion.py", tmp_path)
    assert score(text, "two moons, flow matching") > score(
        text, "two moons, mixture of 8 Gaussians"
    )
    kinds = {
        "diffusion, bound": "(bound",
        "diffusion, its equation": "(approximate",
        "flow matching  ": "(exact",
    }
    for name, kind in kinds.items():
        assert kind in next(
            line for line in text.splitlines() if line.startswith(f"two moons, {name}")
        )
    assert (
        "the diffusion, told the labels, is better than counting pixels: True" in text
        and "completions are heuristic" in text
    )
    distance = {
        name: float(text.split(f"{name} Fréchet distance")[1].split()[0]) for name in PRIORS
    }
    assert distance["VAE, diffusion prior "] < 0.6 * distance["VAE, normal prior    "]
    assert "real : real" in text and "copying test" in text
    pictures = {
        "moons",
        "paths",
        "denoising",
        "diffusion",
        "samplers",
        "guidance",
        "halves",
        "codes",
        "latent",
    }
    assert pictures <= {path.stem for path in tmp_path.glob("*.png")}


def numbers(text, name):
    line = next(line for line in text.splitlines() if line.startswith(name))
    return [float(value) for value in re.findall(r"(?<![\w.])-?\d+\.?\d*", line[len(name) :])]


@pytest.mark.slow
def test_energy_and_gan(tmp_path):
    text = run("07_energy_and_gan.py", tmp_path)
    truth, low, _, high, *_ = numbers(text, "small machine, enumerated")
    assert abs(low - truth) < 0.2 and abs(high - truth) < 0.2  # annealing against enumeration
    low, _, high, *_ = numbers(text, "wide machine, annealed")
    assert abs(high - low) < 0.5
    assert score(text, "independent pixels") == pytest.approx(-25.05, abs=0.02)
    assert (
        score(text, "wide machine, reverse")
        > score(text, "small machine  ")
        > score(text, "tree of pixels")
    )
    assert "wide machine better than the tree: True" in text and "is inconclusive" in text
    assert "(approximate)" in text and "(unnormalized)" in text
    assert "small machine exact; wide machine asymptotic" in text
    grid, low, _, high, *_ = numbers(text, "noise contrast: log Z = ")
    learned = float(text.split(" as learned along with the network")[0].split()[-1])
    assert max(abs(low - grid), abs(high - grid), abs(learned - grid)) < 0.4
    plain, tamed = (
        [numbers(text, f"{name}, seed {seed}") for seed in range(3)]
        for name in ("plain", "relativistic, R1, R2")
    )
    assert min(modes for modes, *_ in tamed) >= 7
    assert (
        sum(good for *_, good in tamed) > sum(good for *_, good in plain) + 30
    )  # percent, of three seeds
    collapsed, spread = text.split("plain MLP: ")[1].split("DCGAN with R1: ")
    assert numbers(spread, "Fréchet")[0] < numbers(collapsed, "Fréchet")[0] / 2
    assert numbers(collapsed, "recall")[0] < 0.15 < numbers(spread, "recall")[0]
    assert (
        "log_likelihood: this distribution is implicit" in text
        and "sample_report(draws, rows)" in text
    )
    assert numbers(text, "codes by adversarial")[0] < numbers(text, "codes by ELBO")[0] / 3
    assert score(text, "12 independent bits") == pytest.approx(
        score(text, "the same, not enumerated"), abs=0.1
    )
    *_, gain, error = numbers(text, "and trained on together")
    assert gain > max(0.2, 3 * error)
    assert (
        "a machine of 16 and 16 units: ELBO: expected density exact" in text
        and "got unnormalized" in text
    )
    pictures = {"machines", "energy", "ring", "digits", "latents", "energy_and_gan"}
    assert pictures <= {path.stem for path in tmp_path.glob("*.png")}


@pytest.mark.slow
def test_the_code_on_the_readmes_first_screen():
    text = (TUTORIALS.parent / "README.md").read_text()
    table, images = (part.split("```")[0] for part in text.split("```python\n")[1:3])
    assert len(table.strip().splitlines()) <= 7 and len(images.strip().splitlines()) <= 6
    plan = pg.portfolio(pg.Table.read(pg.datasets.load_penguins()))
    names = {"two": dict(list(plan.items())[:2])}
    exec(table.replace('budget="30 s"', 'budget="3 s", candidates=two, progress=False'), names)
    assert names["synthetic"].shape == (1000, 8)
    assert names["frame"].isna().any(axis=None) and not names["complete"].isna().any(axis=None)
    exec(images.replace("steps=1500", "steps=5, verdict=False"), names)
    assert names["pg"].sample(names["vae"], 3).shape == (3, 1, 8, 8)


@pytest.mark.slow
def test_translation_and_style(tmp_path):
    text = run("10_translation_and_style.py", tmp_path)
    names = ("identity, no cycle", "identity, cycle", "wrong sign, cycle", "right signs, cycle")
    error, lost = zip(*(numbers(text, name) for name in names), strict=True)
    assert error[3] < 0.2 and min(error[:3]) > 0.4  # all begin as far, one arrives
    assert max(lost[1:]) < 0.1 < lost[0]  # what comes back is no proof
    changed, partners = numbers(text, "digits read right")
    assert changed > partners - 8
    error, before = numbers(text, "error to the true partner")
    assert error < before / 2.5
    psi = [line.partition(":")[0] for line in text.splitlines() if line.startswith("psi")]
    curve = [numbers(text, name) for name in psi]
    assert curve[0] == [1.0, 0.0] and curve[-1][0] < curve[1][0] and curve[-1][1] > curve[1][1]
    assert {"arcs", "attributes", "style"} <= {path.stem for path in tmp_path.glob("*.png")}


@pytest.mark.slow
def test_latents(tmp_path):
    text = run("09_latents.py", tmp_path)
    for name in ("VAE, normal prior", "VAE, VampPrior", "two levels"):
        assert -26 < score(text, name) < -20
    assert score(text, "four tokens, Transformer") > score(text, "four tokens, uniform prior")
    assert "(bound)" in next(line for line in text.splitlines() if "four tokens" in line)
    correlation = [
        float(line.split("total correlation")[1].split()[0])
        for line in text.splitlines()
        if "total correlation" in line
    ]
    assert correlation[1] < 0.6 * correlation[0]
    by_labels = text.split("by 50 labels:")[1].split("%")
    alone, with_the_others = float(by_labels[0]), float(by_labels[1].split(",")[1])
    assert with_the_others < alone - 5
    pictures = {"pseudo_inputs", "levels", "tokens", "styles"}
    assert pictures <= {path.stem for path in tmp_path.glob("*.png")}


@pytest.mark.slow
def test_control_and_diversity(tmp_path):
    text = run("11_control_and_diversity.py", tmp_path)
    weak, strong = (numbers(text, f"weight {weight}:") for weight in ("1.00", "3.00"))
    assert strong[0] > weak[0] and strong[1] < weak[1] - 0.3 and strong[2] >= weak[2]
    for rule in ("interval of 3 :", "autoguidance 2:"):
        precision, recall, _ = numbers(text, rule)
        assert precision > weak[0] and recall > strong[1] + 0.1
    guided = [
        numbers(text, f"{name:15s} guidance 3:")[0] for name in ("as before", "class balancing")
    ]
    assert guided[1] > 1.15 * guided[0]
    told = [
        numbers(text, f"guidance 3, {name:27s}:")
        for name in ("pairs of the training data", "pairs never seen")
    ]
    for tone, color, digit, _ in told:  # of ten digits, three colors, two tones
        assert tone > 70 and color > 70 and digit > 20
    pictures = {"control_and_diversity", "long_tail", "captions"}
    assert pictures <= {path.stem for path in tmp_path.glob("*.png")}


@pytest.mark.slow
def test_tables(tmp_path):
    text = run("13_tables.py", tmp_path)
    assert "expected values 0, 1, 2, ... in column 'bill_length_mm'" in text
    assert "3 levels: 2007, 2008, 2009" in text and "positive, in steps of 25" in text
    (hidden,) = numbers(text, "error of the mass: ")
    (mean,) = numbers(text, "error of the mean of all penguins: ")
    (right,) = numbers(text, "sex is right for ")
    assert hidden < 0.75 * mean and right > 60
    drawn, real = numbers(text, "body_mass_g ")
    assert drawn == pytest.approx(real, rel=0.06)
    assert score(text, "held-out penguins:") > -22
    assert "the loaded model draws the same rows: True" in text
    assert {"leaderboard", "columns", "pairs"} <= {path.stem for path in tmp_path.glob("*.png")}


@pytest.mark.slow
def test_decisions(tmp_path):
    text = run("14_decisions.py", tmp_path)
    (right,) = numbers(text, "known digits: ")
    (answered,) = numbers(text, "known digits answered: ")
    (wrong,) = numbers(text, "wrong among these: ")
    assert right > 96 and answered > 85 and wrong < (100 - right)
    plain, calibrated = (numbers(text, name)[0] for name in ("as they are", "calibrated"))
    assert calibrated < plain / 3
    (outlying,) = numbers(text, "eights and nines called outliers: ")
    (sure,) = numbers(text, "eights and nines of a confidence above 0.9: ")
    assert outlying > 60 and sure > 40  # what a density knows and a probability of classes does not
    assert numbers(text, "50% of the pixels missing: ")[0] > 90
    (few,) = numbers(text, "70% of the pixels missing: ")
    _, risk = numbers(text, "new rows above it: ")
    assert risk < 12 and risk < 100 - few
    assert "p-values of 67 rows against 170: uniform" in text
    assert numbers(text, "malignant rows listed: ")[0] > 50
    assert numbers(text, "falsely listed: ")[0] < 15
    assert "nats (exact)" in text and "(unbiased, 20000 draws" in text
    pixels, tree = (numbers(text, name) for name in ("pixels alone", "tree  "))
    for size, told in (pixels, tree):
        assert told < size < told + 30  # a header
    assert tree[0] < pixels[0] < numbers(text, "one bit a pixel: ")[1]  # which is lzma's
    assert "what is read is what was written: True" in text
    paid, told = numbers(text, "extra bits a row: ")
    assert paid == pytest.approx(told, abs=0.3)
    assert "damaged or cut off" in text and "expected the model that compressed" in text
    pictures = {"reliability", "rejected", "risk_coverage", "p_values"}
    assert pictures <= {path.stem for path in tmp_path.glob("*.png")}


@pytest.mark.slow
def test_classics(tmp_path):
    text = run("12_classics.py", tmp_path)
    assert numbers(text, "P(the second is better) = ")[0] > 0.9
    assert "variant" in text or "probability[first]" in text
    assert numbers(text, "StudentTMixture  means off by ")[0] < 0.4
    assert numbers(text, "GaussianMixture  means off by ")[0] > 0.5
    assert numbers(text, "clusters of the partition to show: ")[0] == 4 and "r_hat" in text
    assert numbers(text, "P(four or five clusters) = ")[0] > 0.5
    assert min(numbers(text, "correlations of what was found with the truth: tensor([")) > 0.95
    copula, normal = (numbers(text, name)[0] for name in ("Copula  ", "normal distribution  "))
    assert copula > normal + 0.3 and "exact 0." in text
    assert numbers(text, "bars found: ")[0] == 10
    two, ten = (numbers(text, f"{k} topics: perplexity ")[0] for k in (" 2", "10"))
    assert ten < two - 3 and "unbiased" in text and "bound" in text
    plane, curved = (numbers(text, f"{name}: nearest") for name in ("PPCA", "BayesianGPLVM"))
    assert curved[0] > plane[0] + 15 and curved[1] > plane[1] + 5
    pictures = {"update", "outliers", "clusters", "unmixed", "copula", "topics", "map"}
    assert pictures <= {path.stem for path in tmp_path.glob("*.png")}


@pytest.mark.slow
def test_series(tmp_path):
    text = run("15_series.py", tmp_path)
    assert "converged" in text and "1959-01" in text  # the calendar goes on
    (error,) = numbers(text, "error of the forecast: ")
    assert error < numbers(text, "error of the same month before: ")[0] / 2
    assert numbers(text, "inside of the 90% intervals: ")[0] > 80
    assert min(numbers(text, "coverage over 60 origins: ")) > 85
    (filled,) = numbers(text, "error of what is filled in: ")
    assert filled < 5 < numbers(text, "error of a straight line: ")[0]
    assert "Imputation(exact" in text and numbers(text, "lost months inside of 90 %: ")[0] >= 9
    with_season, alone = (numbers(text, name)[0] for name in ("trend and season", "trend alone"))
    assert with_season > alone + 0.5
    assert "BIC takes 2" in text and "changes: [1899]" in text
    pictures = {"components", "forecast", "regimes"}
    assert pictures <= {path.stem for path in tmp_path.glob("*.png")}


@pytest.mark.slow
def test_serving(tmp_path):
    text = run("16_serving.py", tmp_path)
    assert "served draws are those of the model: True" in text
    assert "served scores (exact, nats): True" in text
    assert "three numbers for four columns: expected" in text
    assert "expected at most 10000 draws, got 1000000000; ask several times" in text
    assert "Exported(density, exact, any number of rows)" in text
    assert "scores without probgen are the same: True" in text
    assert "the folder is the model: True" in text
    assert score(text, "held-out penguins:") > -20
    assert (tmp_path / "serving.png").exists()


@pytest.mark.slow
def test_few_steps_and_geometry(tmp_path):
    text = run("17_few_steps_and_geometry.py", tmp_path)
    names = ("diffusion   :", "flow        :", "consistency :", "reflow      :", "MeanFlow    :")
    by_calls = {name.split()[0]: numbers(text, name) for name in names}
    (real,) = numbers(text, "training digits:")
    for teacher in ("diffusion", "flow"):
        assert by_calls[teacher][0] > 3 * by_calls[teacher][-1]
    assert by_calls["consistency"][0] < by_calls["diffusion"][0] / 4
    for student in ("reflow", "MeanFlow"):
        assert real < by_calls[student][0] < by_calls["flow"][0] / 2
    assert score(text, "held-out places:") > score(text, "uniform:") + 0.7
    assert "(exact" in next(line for line in text.splitlines() if "held-out places" in line)
    off = next(line for line in text.splitlines() if line.startswith("draws off the sphere"))
    assert float(off.split()[-1]) < 1e-5
    assert numbers(text, "mass of the whole globe:")[0] == pytest.approx(1.0, abs=0.05)
    before, after = numbers(text, "a square, and the same one mirrored, moved, numbered anew:")
    assert before == pytest.approx(after, abs=0.05)
    assert {"one_call", "globe"} <= {path.stem for path in tmp_path.glob("*.png")}
