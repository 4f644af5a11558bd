"""Preparation of a user's photos: captions, segments, phrases, matching, records, statistics."""

from fastcomposer.data.photos.prepare import prepare_photos

__all__ = ["prepare_photos"]
