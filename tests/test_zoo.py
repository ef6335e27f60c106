"""Every family keeps the promises of the contract."""

import importlib
import inspect
import pkgutil

import pytest
import torch
from devices import DEVICES
from zoo import TRANSLATIONS, ZOO, Member

import probgen.heads
import probgen.models
from probgen.core.module import DistributionModule, LatentVariableModel
from probgen.core.program import Program
from probgen.testing import check_generative

LONG = {  # members whose family has others, which are quicker
    "BPF given a context",
    "ContinuousFlow given a context",
    "DeepMarkovModel with a flow guide",
    "Diffusion of images given texts",
    "DiffusionChain, Gamma",
    "DiffusionChain, absorbing",
    "EDM on images",
    "FlowMatching by optimal pairs",
    "FlowMatching of images",
    "PixelCNN of colors given a context",
    "Transformer given texts",
    "UNAF",
    "VAE with a diffusion prior",
    "VariableLengthLatents deep Markov model",
    "ladder VAE given a context",
}
MEMBERS = [
    pytest.param(member, id=member.name, marks=[pytest.mark.slow] * (member.name in LONG))
    for member in ZOO
]


@DEVICES
@pytest.mark.parametrize("member", MEMBERS)
def test_member_conforms(member: Member, device: str):
    case = member.on(device)
    check_generative(case.gen, *case.batch, objective=case.objective)


@pytest.mark.parametrize("member", ZOO, ids=lambda member: member.name)
def test_no_attribute_hides_a_method_of_modules(member: Member):
    hidden = {
        (type(part).__name__, name)
        for part in member.gen().modules()
        for name in vars(part)
        if inspect.isfunction(getattr(torch.nn.Module, name, None))
    }
    assert hidden == set()


def test_every_public_family_has_a_member():
    shown = {type(part) for member in ZOO + TRANSLATIONS for part in member.gen().modules()}
    families = set(filter(inspect.isclass, vars(probgen.heads).values()))
    for module in pkgutil.iter_modules(probgen.models.__path__, "probgen.models."):
        families |= set(
            filter(inspect.isclass, vars(importlib.import_module(module.name)).values())
        )
    lacking = {
        family.__name__
        for family in families - shown
        if issubclass(family, DistributionModule | LatentVariableModel | Program)
        and not inspect.isabstract(family)
        and not family.__name__.startswith("_")
        and family.__module__.startswith(("probgen.models", "probgen.heads"))
    }
    assert lacking == {"Point"}  # a point mass has no density: tests/test_ex_post_density.py
