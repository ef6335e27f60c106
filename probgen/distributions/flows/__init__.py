"""Bijections and the distributions they push forward."""
