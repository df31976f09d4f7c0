"""Encoder-block substitution: compact blocks replace groups of encoder layers.

A compact block is a down-projection, layers of the model's own kind at a smaller width, and an
up-projection.
"""
