# %% [markdown]
# # Few steps, and geometry
#
# A diffusion or a flow calls its network dozens of times for a draw. Three objectives make one to
# four calls enough, and this tutorial lets them compete on digits. Then flows leave flat space:
# places on a globe, with a density that can be drawn on a map, and clouds of points whose density
# does not care how they are turned. About a minute on one core.

# %%
import argparse
import copy
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

import probgen as pg
from probgen.diffusion import DDIM, ConsistencySteps
from probgen.flows import Euler, MeanSteps, Midpoint, Sphere
from probgen.nn import EGNN, FourierFeatures, SpanTime, TimeMLP
from probgen.objectives import Consistency, Denoising, MeanFlow, Reflow

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("few_steps_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)


def train(gen, data, objective, steps, lr=2e-3):
    """Adam with a learning rate that falls to zero, and an average of the last parameters."""
    history = pg.fit(
        gen.train(),
        data,
        objective,
        steps=steps,
        batch_size=128,
        optimizer=pg.train.adam(lr),
        scheduler=lambda optimizer: CosineAnnealingLR(optimizer, steps),
        clip=100.0,
        ema=0.99,
        compile=False,
        progress=False,
        verdict=False,
        seed=0,
    )
    print(f"{type(objective).__name__:12s} {history}")
    return gen.eval()


def save(figure, name, dpi=90):
    figure.savefig(OUTPUT / name, dpi=dpi, bbox_inches="tight")


# %% [markdown]
# ## Two teachers
#
# Digits as rows of 64 pixels. A diffusion and a flow, trained as ever: by many calls they draw well,
# by one call they draw the mean of all digits.

# %%
images, labels = pg.datasets.load_digits(labels=True)
x = images.train.flatten(1).float() / 8 - 1
held_out = images.test.flatten(1).float() / 8 - 1
judge = pg.evaluate.classifier_features(x, labels.train, steps=200)
hidden = [192, 192]
diffusion = train(pg.Diffusion(TimeMLP(64, hidden), (64,)), x, Denoising(), steps=2000)
flow = train(pg.FlowMatching(TimeMLP(64, hidden), (64,)), x, Denoising(), steps=600)

# %% [markdown]
# ## Three ways to one call
#
# `Consistency(diffusion)` asks the network at two neighboring states of one path, which a step of
# the teacher connects, and wants the same answer: then it says where the whole path ends. `Reflow`
# learns from pairs of noise and what the flow makes of it, whose paths never cross: they become
# straight, and one step of Euler's method follows a straight path. `MeanFlow` has no teacher: its
# network tells mean velocities over spans of time, by an identity between them and the velocity.
#
# Each student begins with a copy of its teacher. What they are trained by is an argument of `fit`,
# what they are drawn by an argument of `using`.

# %%
consistent = train(
    copy.deepcopy(diffusion), x, Consistency(diffusion, levels=18, rho=3.0), steps=600
)
straight = train(copy.deepcopy(flow), x, Reflow(flow, Midpoint(4)), steps=150, lr=5e-4)
spans = pg.FlowMatching(TimeMLP(64, hidden, time=SpanTime()), (64,), spans=True)
mean = train(spans, x, MeanFlow(), steps=600)

drawn_by = {
    "diffusion": lambda calls: diffusion().using(DDIM(calls)),
    "flow": lambda calls: flow().using(Euler(calls)),
    "consistency": lambda calls: consistent().using(ConsistencySteps(calls)),
    "reflow": lambda calls: straight().using(Euler(calls)),
    "MeanFlow": lambda calls: mean().using(MeanSteps(calls)),
}


def drawn(name, calls, count=447):
    torch.manual_seed(1)
    return drawn_by[name](calls).sample((count,))


def distance(rows):
    """Fréchet distance to held-out digits, in the features of a classifier of digits."""
    return pg.evaluate.frechet_distance(rows, held_out, features=judge, splits=0).value


curve = {name: [distance(drawn(name, calls)) for calls in (1, 2, 4, 32)] for name in drawn_by}
for name, found in curve.items():
    print(f"{name:12s}: " + " ".join(f"{value:8.2f}" for value in found))
print(f"training digits: {distance(x[:447]):.2f}")

# %% [markdown]
# The distance by 1, 2, 4 and 32 calls. Teachers need the many. All students have most of the way
# behind them after one call. The consistency model is for one call here: it noises its guesses anew in
# each, and meets the errors of its teacher's paths once more, which is why that teacher was trained
# for longer than the flow. Below: draws of one call, and of the flow by 32.

# %%
shown = [("flow", 1), ("flow", 32), ("consistency", 1), ("reflow", 1), ("MeanFlow", 1)]
figure, panels = plt.subplots(len(shown), 1, figsize=(9, 5.2))
for panel, (name, calls) in zip(panels, shown, strict=True):
    rows = drawn(name, calls, 14).unflatten(1, (1, 8, 8))
    pg.plot.images(rows, columns=14, bounds=(-1.0, 1.0), cmap="gray_r", ax=panel)
    panel.set_title(f"{name}, calls: {calls}", fontsize=10, loc="left")
save(figure, "one_call.png")

# %% [markdown]
# ## Places on a globe
#
# Made in the manner of a catalogue of earthquakes: eight faults, which are arcs of great circles,
# places scattered along them, and some anywhere. A map that is flat tears and stretches; on the
# sphere there is no edge. `RiemannianFlowMatching` learns velocities along great circles, draws stay
# on the sphere, and the density is exact, with respect to area. Its network sees each place through
# waves of it, `FourierFeatures`: of the three coordinates alone it would learn wide bands instead of
# faults.

# %%
sphere = Sphere(2)
like = torch.zeros(())
starts, ends = sphere.draw(torch.Size([8]), like), sphere.draw(torch.Size([8]), like)
fault = torch.randint(8, (3000,))
along, _ = sphere.geodesic(starts[fault], sphere.log(starts, ends)[fault], torch.rand(3000, 1))
scattered = sphere.onto(along + 0.05 * torch.randn(3000, 3))
anywhere = sphere.draw(torch.Size([3000]), like)
places = torch.where(torch.rand(3000, 1) < 0.1, anywhere, scattered)

waves = FourierFeatures(sphere.inputs, count=48, scale=3.0)
net = TimeMLP(sphere.inputs, [96, 96], outputs=sphere.outputs, encoding=waves)
globe = pg.RiemannianFlowMatching(net, sphere)
train(globe, places[:2600], Denoising(), steps=600, lr=4e-3)
score = pg.log_likelihood(globe, places[2600:])
print(f"held-out places: {score}")
print(f"uniform: {-math.log(4 * math.pi):.3f}")
away = (pg.sample(globe, 500, seed=0).norm(dim=-1) - 1).abs().max()
print(f"draws off the sphere by at most {away:.1e}")

# %%
longitude = torch.linspace(-math.pi, math.pi, 91)
latitude = torch.linspace(-math.pi / 2, math.pi / 2, 46)
lat, lon = torch.meshgrid(latitude, longitude, indexing="ij")
grid = torch.stack((lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()), -1)
with torch.no_grad():
    density = globe().log_prob(grid.flatten(0, 1)).view(lat.shape)
area = lat.cos() * (math.pi / 45) ** 2
print(f"mass of the whole globe: {(density.exp() * area)[:, :-1].sum():.2f}")

figure = plt.figure(figsize=(9, 4.6))
panel = figure.add_subplot(projection="mollweide")
bounds = {"vmin": -6.0, "vmax": density.max().item()}
image = panel.pcolormesh(lon, lat, density, cmap="viridis", shading="gouraud", **bounds)
east = torch.atan2(places[2600:, 1], places[2600:, 0])
panel.scatter(east, places[2600:, 2].asin(), s=3, color="white", alpha=0.6)
panel.set_xticklabels([])
panel.set_yticklabels([])
figure.colorbar(image, ax=panel, shrink=0.7, label="log density per unit of area")
panel.set_title("held-out places, and the density that was learned", fontsize=11)
save(figure, "globe.png")

# %% [markdown]
# ## Points that may turn
#
# Four points at the corners of a square, moved a little, then turned, shifted and numbered at
# random: as molecules lie in a file. An equivariant network and a base without a place make a flow
# whose density is the same for all of these. Nothing is left to learn of turns.

# %%
corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])


def squares(count):
    angle = 2 * math.pi * torch.rand(count)
    turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), -1)
    points = (corners + 0.1 * torch.randn(count, 4, 2)) @ turn.unflatten(-1, (2, 2))
    order = torch.rand(count, 4, 1).argsort(1)
    points = points.gather(1, order.expand(-1, -1, 2))
    return points - points.mean(1, keepdim=True)


clouds = pg.FlowMatching(EGNN(2, width=24, layers=2), (4, 2), base=pg.CenteredNormal(4, 2))
train(clouds, squares(1000), Denoising(), steps=150, lr=4e-3)
one = squares(1)
turned = one[:, [2, 0, 3, 1]].flip(-1) + torch.tensor([5.0, -3.0])
with torch.no_grad():
    before, after = clouds().log_prob(one).item(), clouds().log_prob(turned).item()
print(f"a square, and the same one mirrored, moved, numbered anew: {before:.3f} {after:.3f}")
