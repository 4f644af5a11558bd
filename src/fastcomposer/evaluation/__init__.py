"""Measurements on trained models.

In the order in which an evaluation walks:

- what is asked for: ``definition``, ``benchmark``
- images: ``pipelines``, ``drawing``, ``methods`` and ``personalized``, kept in a ``store`` by
  ``generation``
- scores: ``scoring``, ``distances``, ``attention``; ``sample_scores`` while a model is trained
- results: ``statistics``, ``published``, ``rows``, ``results``, ``summary``, ``result_logs``
- what is shown: ``collected`` reads an evaluation for ``report/``
- several of them: ``sweeps/``, searches of settings among them
- measurements of other things: ``base/`` of the embedded base, ``speed/``
"""
