"""Encoder-block substitution: a compact encoder between projections in the place of layers."""
