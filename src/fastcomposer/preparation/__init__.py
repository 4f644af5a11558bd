"""Preparation of a user's photos: captions, segments, phrases, matching, records, statistics."""

from fastcomposer.preparation.photo_preparation import prepare_photos

__all__ = ["prepare_photos"]
