"""From noise to data

A diffusion model of two moons: its states on the way from noise to samples, colored by where each ends.

tutorials/08_diffusion
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LinearSegmentedColormap
from sklearn.datasets import make_moons

import probgen as pg

x = torch.tensor(make_moons(4000, noise=0.06, random_state=0)[0], dtype=torch.float32)
x = (x - x.mean(0)) / x.std(0)
gen = pg.Diffusion(pg.nn.TimeMLP(2, [64, 64, 64]), (2,))
options = {"optimizer": pg.train.adam(6e-3), "ema": 0.98, "seed": 0, "verdict": False}
pg.fit(gen, x, pg.objectives.Denoising(), steps=450, batch_size=250, compile=False, **options)

STEPS = 60
states = [torch.randn(1500, 2)]
with torch.no_grad():
    for step in range(STEPS, 0, -1):  # estimate the data, then mix data and noise anew (DDIM)
        time, after = torch.tensor([step / STEPS, (step - 1) / STEPS])
        (signal, noise), (next_signal, next_noise) = gen.schedule(time), gen.schedule(after)
        data = gen().denoiser.denoise(states[-1], time)
        noise_part = (states[-1] - signal * data) / noise
        states.append(next_signal * data + next_noise * noise_part)

figure, panels = plt.subplots(2, 3)
blue_to_red = LinearSegmentedColormap.from_list("", ["C0", "C1"])
for panel, step in zip(panels.flat, (0, 36, 46, 52, 56, STEPS), strict=True):
    end = states[-1][:, 0]
    panel.scatter(*states[step].T, s=2, c=end, cmap=blue_to_red, linewidths=0)
    panel.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[])
    panel.set_title(f"time {1 - step / STEPS:.2f}", fontsize=8)
    panel.spines[:].set_visible(False)
