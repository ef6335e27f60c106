"""A network under evidence

Probabilities before (gray) and after (blue) the lawn was found wet. Exact, by elimination.

howto/bayesian_network_evidence
"""

import matplotlib.pyplot as plt
import torch

import probgen as pg

tables = {
    "cloudy": torch.tensor([0.5, 0.5]),
    "rain": torch.tensor([[0.8, 0.2], [0.2, 0.8]]),
    "sprinkler": torch.tensor([[0.5, 0.5], [0.9, 0.1]]),
    "wet lawn": torch.tensor([[[1.0, 0.0], [0.1, 0.9]], [[0.1, 0.9], [0.01, 0.99]]]),
}
parents = {"rain": ["cloudy"], "sprinkler": ["cloudy"], "wet lawn": ["rain", "sprinkler"]}
network = pg.BayesianNetwork.from_tables(tables, parents)

nothing = torch.full((1, 4), torch.nan)
wet = nothing.clone()
wet[0, 3] = 1.0
prior, found = network.marginals(nothing), network.marginals(wet)

figure, panel = plt.subplots()
places = {"cloudy": (1, 2), "rain": (0, 1), "sprinkler": (2, 1), "wet lawn": (1, 0)}
for child, causes in parents.items():
    for cause in causes:
        (x, y), (below_x, below_y) = places[cause], places[child]
        side = 0.2 * (below_x - x)
        ends = (below_x - side, below_y + 0.34), (x + side, y - 0.28)
        panel.annotate("", *ends, arrowprops={"arrowstyle": "-|>", "color": "#8d99a6"})
for name, (x, y) in places.items():
    panel.text(x, y + 0.15, name, ha="center", weight="bold")
    for shift, color, answer in ((0.0, "0.75", prior), (-0.16, "C0", found)):
        probability = answer[name][0, 1].item()
        panel.barh(y + shift, 0.6, 0.12, x - 0.3, color="0.93")
        panel.barh(y + shift, 0.6 * probability, 0.12, x - 0.3, color=color)
        panel.text(x + 0.33, y + shift, f"{probability:.2f}", va="center", fontsize=7)
panel.set(xlim=(-0.5, 2.65), ylim=(-0.45, 2.4))
panel.axis("off")
