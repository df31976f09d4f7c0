"""Runtimes: what executes a model while it is measured."""
