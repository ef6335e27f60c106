"""Parts of latent-variable models: levels of a hierarchy, and priors made of the encoder."""

from probgen.models.exemplar_prior import ExemplarPrior
from probgen.models.hierarchical_vae import Level, precision_weighted, relative_mean
from probgen.models.vamp_prior import VampPrior

__all__ = ["ExemplarPrior", "Level", "VampPrior", "precision_weighted", "relative_mean"]
