"""Metrics of generated pictures: extractors, per-picture scores, and torchmetrics that only aggregate."""
