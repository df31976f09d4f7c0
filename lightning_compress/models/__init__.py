"""The ground: structure, manifest, saving and loading."""
