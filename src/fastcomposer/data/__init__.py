"""From records on disk to :class:`fastcomposer.batch.SubjectBatch`.

- records: ``record`` and ``records`` (the published format), ``pixels``, ``index``; ``shards`` and
  ``shard_files`` hold the same in large files
- samples: ``sample_settings``, ``segment_crop``, ``transforms``, ``dataset``;
  ``cache_files`` stands in for the frozen networks
- loaders: ``samplers``, ``datamodule``
- ``portraits``: a few images of a person, for fine-tuning
- ``reference``: the reference images that users pass to a pipeline
"""
