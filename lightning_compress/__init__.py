"""Make a Hugging Face transformer small and fast with PyTorch Lightning, and prove it."""
