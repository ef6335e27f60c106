"""Diffusions whose noise is not Gaussian."""

from __future__ import annotations

from zoo.member import Member

NOISING: list[Member] = []
