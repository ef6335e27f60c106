"""Implicit models."""

from __future__ import annotations

from zoo.member import Member

ADVERSARIAL: list[Member] = []
