"""How to prune: one technique a file."""
