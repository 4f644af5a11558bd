"""Metric models: who is in a picture, and where. They are trained on rendered scenes alone."""
