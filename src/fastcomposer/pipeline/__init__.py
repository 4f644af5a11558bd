"""The pipelines: one sampler, with delayed subject conditioning.

- steps: ``schedulers``, ``sampling``
- a call's subjects: ``subjects``; several variants of one prompt: ``variants``
- the two pipelines: ``stable_diffusion``, ``stable_diffusion_xl``; the class for a model: ``kinds``
"""
