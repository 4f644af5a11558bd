"""The model: its parts, subject conditioning, attention capture, and checkpoint import and export.

- parts and where they come from: ``source``, ``single_file``, ``untrained``, ``loading``, ``networks``
- subject conditioning: ``text``, ``fusion``, ``conditioning``
- attention to subjects' words: ``attention_capture``
- weights: ``checkpoint`` (the released layout), ``trained``, ``difference``
- metric models of the mini world: ``detector``, ``embedder``
- speed: ``compilation`` of the U-Net

:class:`~fastcomposer.composer.FastComposer` joins them; it comes after the pipelines that it is made into.
"""
