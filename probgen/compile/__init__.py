"""Functions of tensors as graphs.

Recorded once, made smaller, compiled by inductor, run again and again.
"""
