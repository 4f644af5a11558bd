"""Evaluation: from benchmarks to images, scores and ``results.json``, and from these to reports."""
