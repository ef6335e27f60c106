"""Hidden Markov and state space models."""

from __future__ import annotations

from zoo.member import Member

SEQUENCES: list[Member] = []
