"""Tasks: model class, loss, metrics and predictions of what a model is trained for."""
