"""What ArviZ 0.x and 1.x call by different names."""

import arviz as az


def groups(found):
    """The names of the groups of an InferenceData or a DataTree."""
    return sorted(found.children if hasattr(found, "children") else found.groups())


def psislw(log_weights):
    """Smoothed log weights and k-hat, over the last dim."""
    if hasattr(az, "psislw"):
        return az.psislw(log_weights)
    from arviz_stats.base import array_stats

    return array_stats.psislw(log_weights)


def elpd(found):
    """The expected log predictive density by ArviZ's own leave-one-out."""
    return found.elpd if hasattr(found, "elpd") else found.elpd_loo


def pointwise(found):
    """What each row has of it."""
    return (found.elpd_i if hasattr(found, "elpd_i") else found.loo_i).values
