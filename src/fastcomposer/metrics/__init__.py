"""Metrics of generated images: extractors, per-image scores, and torchmetrics that only aggregate."""
