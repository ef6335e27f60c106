"""Every public name, those of the namespaces included."""

import inspect

import probgen


def public() -> dict[str, object]:
    """Values by name; no name stands in two places for two things."""
    found = {}
    modules = [
        value for value in map(vars(probgen).get, probgen.__all__) if inspect.ismodule(value)
    ]
    for module in (probgen, *modules):
        for name in module.__all__:
            value = getattr(module, name)
            if not inspect.ismodule(value):
                assert found.setdefault(name, value) is value, name
    return found
