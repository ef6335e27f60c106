"""Energy-based models."""

from __future__ import annotations

from zoo.member import Member

ENERGY: list[Member] = []
