"""Bijections and the laws they push forward."""
