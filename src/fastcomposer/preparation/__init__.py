"""Preparation of a user's photos: captions, segments, phrases, matching, records, statistics."""

from fastcomposer.preparation.preparation_stage import prepare_photos

__all__ = ["prepare_photos"]
