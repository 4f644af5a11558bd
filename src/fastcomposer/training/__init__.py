"""LightningModules and callbacks.

- ``recipe`` is what all trainings share, with ``optimizers`` and ``sharding``; ``module`` trains
  FastComposer, ``base/`` the parts of the embedded base, ``personalization/`` the fine-tuning baselines
- ``precompute`` fills the cache that a training may read
- around a training: ``callbacks``, ``checkpoints``, ``samples``, ``loggers``, ``lineage``, ``objective``
"""
