"""Models that factorise one entry after the other."""

from __future__ import annotations

from zoo.member import Member

AUTOREGRESSIVE: list[Member] = []
