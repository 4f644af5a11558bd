"""The model: its parts, subject conditioning, attention capture, and checkpoint import and export.

- parts: ``source``, ``loading``, ``networks``
- the denoising network, called backbone, and the process that it is trained on: ``families``
- subject conditioning: ``text``, ``fusion``, ``conditioning``
- attention to subjects' words: ``attention_capture``
- weights: ``published_checkpoint`` (the released layout), ``weights_io``, ``weight_delta``
- speed: ``compilation`` of the denoising network

:class:`~fastcomposer.composer.FastComposer` joins them; it comes after the pipelines that it is made into.
"""
