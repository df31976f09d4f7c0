"""The built-in corpus: a generated sentiment data set that needs no download."""
