"""Arguments checked at the door, one line a kind, each with one sentence that says what to do.

Every function takes the arguments by their names, and returns nothing: ``at_least(1, dims=dims,
layers=layers)``. What has the wrong type is a ``TypeError``, what has the wrong value a
``ValueError``. Numbers of NumPy and tensors without dims are numbers too; a boolean is none, and
2.0 is no whole number. Constructors and functions check here, never the code that runs in every
step.
"""

from probgen.core.checks.contexts import BUILD, context, context_words
from probgen.core.checks.objects import (
    callable_,
    factory,
    families,
    function,
    functions,
    generative,
    has,
    instance,
    instances,
    mapping,
    network,
    path,
    subclass,
    text,
    texts,
)
from probgen.core.checks.reports import given, no_class
from probgen.core.checks.scalars import (
    at_least,
    at_most,
    finite,
    flag,
    is_number,
    is_seed,
    not_negative,
    number,
    one_of,
    ordered,
    positive,
    scheduled,
    within,
)
from probgen.core.checks.several import (
    bounds,
    length,
    numbers,
    numeric,
    pair,
    scales,
    sizes,
    vector,
    whole_pairs,
)

__all__ = [
    "BUILD",
    "at_least",
    "at_most",
    "bounds",
    "callable_",
    "context",
    "context_words",
    "factory",
    "families",
    "finite",
    "flag",
    "function",
    "functions",
    "generative",
    "given",
    "has",
    "instance",
    "instances",
    "is_number",
    "is_seed",
    "length",
    "mapping",
    "network",
    "no_class",
    "not_negative",
    "number",
    "numbers",
    "numeric",
    "one_of",
    "ordered",
    "pair",
    "path",
    "positive",
    "scales",
    "scheduled",
    "sizes",
    "subclass",
    "text",
    "texts",
    "vector",
    "whole_pairs",
    "within",
]
