"""Distributions of diffusions: noise added step by step, and taken away by a learned denoiser."""
