"""From records on disk to :class:`fastcomposer.batch.SubjectBatch`.

In the order in which a sample comes to be:

- records: ``record`` and ``records`` (the published format), ``pixels``, ``index``, ``manifest``;
  ``shards`` hold the same in large files
- a sample: ``choice`` of subjects, ``reference_source``, ``cutout``, ``transforms`` (with ``equivalents``
  of torchvision's), ``dataset``; ``cache_files`` and ``precomputed`` stand in for frozen networks
- loaders: ``order``, ``datamodule``, ``streaming`` from shards
- the mini world: ``avatars``, ``scenery``, ``scenes``, ``prepare``; ``bank`` and ``portraits`` load it for
  other trainings
- what users hand in: ``reference`` images; ``photos/`` makes records of photos
"""
