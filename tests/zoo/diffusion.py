"""Gaussian diffusions and flow matching."""

from __future__ import annotations

from zoo.member import Member

DIFFUSION: list[Member] = []
