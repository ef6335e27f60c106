"""Rules of guidance: what a sampler is told in place of a network's prediction.

``gen(context).using(sampler, guidance=rule)`` and ``pg.sample(gen, n, context, guidance=rule)``, for
diffusions and flow matching alike. A number is the weight of classifier-free guidance. Rules with a
field ``base`` change what another rule says: ``Interval(CADS(ClassifierFree(3.0)))``. A function
``rule(net, z, t, context)`` is a rule too. Draws under guidance are of another distribution than the
model's, to which ``log_prob`` keeps.
"""

from probgen.distributions.guidance.annealed import CADS
from probgen.distributions.guidance.autoguidance import Autoguidance
from probgen.distributions.guidance.classifier import ClassifierGuided
from probgen.distributions.guidance.classifier_free import ClassifierFree
from probgen.distributions.guidance.interval import Interval
from probgen.distributions.guidance.negative import Negative
from probgen.distributions.guidance.repulsion import Repulsion
from probgen.distributions.guidance.rescale import Rescale
from probgen.distributions.guidance.rule import Predictor, Rule, plain
from probgen.distributions.guidance.thresholded import Thresholded

__all__ = [
    "CADS",
    "Autoguidance",
    "ClassifierFree",
    "ClassifierGuided",
    "Interval",
    "Negative",
    "Predictor",
    "Repulsion",
    "Rescale",
    "Rule",
    "Thresholded",
    "plain",
]
