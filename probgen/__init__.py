"""probgen: generative models as Pyro programs."""

import pyro

pyro.settings.set(module_local_params=True)
