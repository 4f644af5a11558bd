"""The pipelines: one sampler, with delayed subject conditioning.

- steps: ``schedulers``, ``sampling``
- a call's subjects: ``subjects``; several variants of one prompt: ``variants``
- the pipelines: ``stable_diffusion``, ``stable_diffusion_xl``, ``stable_diffusion_3``; a model's: ``kinds``
"""
