"""One small member of every family, with data that it is meant for.

What the conformance tests run over.
"""

from zoo.adversarial import ADVERSARIAL
from zoo.autoregressive import AUTOREGRESSIVE
from zoo.diffusion import DIFFUSION
from zoo.discrete_diffusion import DISCRETE_DIFFUSION
from zoo.energy import ENERGY
from zoo.flows import FLOWS
from zoo.graphical import GRAPHICAL
from zoo.images import IMAGES
from zoo.latent import CORE, FAMILIES, HEADS, Enumerated, vae
from zoo.member import Member, constant, sampled
from zoo.sequences import SEQUENCES
from zoo.tables import TABLES
from zoo.translations import TRANSLATIONS
from zoo.variable_length import VARIABLE_LENGTH

__all__ = [
    "TRANSLATIONS",
    "VARIABLE_LENGTH",
    "ZOO",
    "Enumerated",
    "Member",
    "constant",
    "sampled",
    "vae",
]

ZOO = CORE + HEADS + FAMILIES + TABLES + AUTOREGRESSIVE + IMAGES + FLOWS + GRAPHICAL + SEQUENCES
ZOO += ENERGY + ADVERSARIAL + DIFFUSION + DISCRETE_DIFFUSION + VARIABLE_LENGTH
