"""What ArviZ 0.x and 1.x call by different names."""


def groups(found):
    """The names of the groups of an InferenceData or a DataTree."""
    return sorted(found.children if hasattr(found, "children") else found.groups())


def elpd(found):
    """The expected log predictive density by ArviZ's own leave-one-out."""
    return found.elpd if hasattr(found, "elpd") else found.elpd_loo


def parameters(found):
    """The effective number of parameters."""
    return found.p if hasattr(found, "p") else found.p_loo


def pointwise(found):
    """What each row has of it."""
    return (found.elpd_i if hasattr(found, "elpd_i") else found.loo_i).values
