"""From records on disk to :class:`fastcomposer.batch.SubjectBatch`."""
