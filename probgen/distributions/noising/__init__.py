"""Diffusions in discrete time by the distribution of their noise.

Gaussian, Gamma, mixtures, labels that change.
"""
