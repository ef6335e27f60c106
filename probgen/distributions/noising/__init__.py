"""Diffusions in discrete time by the law of their noise.

Gaussian, Gamma, mixtures, labels that change.
"""
