"""Pictures: functions that take models, draws and rows, and return Matplotlib axes.

Each draws in the axes that it is given (``ax=``, or ``axes=`` where there are several), or in a
figure of its own, and returns them: titles, limits and colors can be changed afterwards. Nothing is
shown or saved, and no setting of Matplotlib is changed.
"""

from probgen.plot.images import images
from probgen.plot.latents import embedding, interpolation, latent_map, reconstructions, traversal
from probgen.plot.mixtures import components, memberships
from probgen.plot.networks import graph
from probgen.plot.planes import density, paths
from probgen.plot.ranking import leaderboard
from probgen.plot.samples import samples
from probgen.plot.scores import scores
from probgen.plot.series import curves, forecast, states
from probgen.plot.tables import column_pairs, columns
from probgen.plot.training import gradient_norms, learning_rates, loss_curve
from probgen.plot.trust import khats, p_values, reliability, risk_coverage

__all__ = [
    "column_pairs",
    "columns",
    "components",
    "curves",
    "density",
    "embedding",
    "forecast",
    "gradient_norms",
    "graph",
    "images",
    "interpolation",
    "khats",
    "latent_map",
    "leaderboard",
    "learning_rates",
    "loss_curve",
    "memberships",
    "p_values",
    "paths",
    "reconstructions",
    "reliability",
    "risk_coverage",
    "samples",
    "scores",
    "states",
    "traversal",
]
