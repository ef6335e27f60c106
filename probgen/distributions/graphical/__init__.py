"""Distributions that factorize along a graph."""
