"""Normalizing flows and dequantisation."""

from __future__ import annotations

from zoo.member import Member

FLOWS: list[Member] = []
