"""Autoregressive models of images, tokens and sequences."""

from __future__ import annotations

from zoo.member import Member

IMAGES: list[Member] = []
