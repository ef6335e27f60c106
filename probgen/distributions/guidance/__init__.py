"""Guidance: rules that change what a network predicts while one samples."""
