"""Bayesian networks and Markov random fields."""

from __future__ import annotations

from zoo.member import Member

GRAPHICAL: list[Member] = []
