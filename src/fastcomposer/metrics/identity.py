"""Identity preservation: whether the people in an image are those of the references."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fastcomposer.metrics.faces import Faces
from fastcomposer.utils.matching import greedy_pairs, optimal_pairs

IdentityProtocol = Literal["corrected", "published"]


@dataclass(frozen=True)
class IdentityScore:
    """Identity of one image.

    Attributes:
        value: Score of the image, the minimum over its subjects.
        detected: Number of faces found in it, also more than there are subjects.
        matched: Similarity of each subject with the face taken for it, not clipped.
        faces: Position in the image's faces of the one taken for each subject; ``None`` where there was
            none left.
    """

    value: float
    detected: int
    matched: tuple[float, ...]
    faces: tuple[int | None, ...]


def identity_score(
    faces: Faces, references: Tensor, protocol: IdentityProtocol = "corrected", blank: Tensor | None = None
) -> IdentityScore:
    """Score one image with K subjects.

    ======================= ============================ ================================
    rule                    ``published``                ``corrected``
    ======================= ============================ ================================
    faces looked at         the detector's first K       the largest K
    who is who              greedily, best pair first    the assignment of greatest sum
    subject without a face  takes a blank crop's         counts exactly 0
                            embedding
    no face at all          0                            0
    score of the image    minimum over subjects        minimum over subjects
    negative score          clipped at 0                 stays negative
    ======================= ============================ ================================

    ``published`` is the rule behind the paper's figures (docs/method.md, Evaluation protocol), there for K of
    1 and 2. What it leaves to chance: which faces a detector names first, and the pairs that are left over
    once the best pair is taken. What it hides: a stranger's face scores as no face does, which is why the
    detection rate belongs beside either figure.

    Args:
        faces: What was found in the image.
        references: (K, d) unit vectors of the subjects' reference faces, at least one.
        protocol: Which rules.
        blank: (d,) embedding of a blank crop; ``published`` needs it for more than one subject.

    Raises:
        ValueError: If there are no references or they are not as wide as the embeddings, the protocol is
            unknown, or the blank embedding is needed and missing.
    """
    if protocol not in get_args(IdentityProtocol):
        known = ", ".join(get_args(IdentityProtocol))
        raise ValueError(f"metrics.protocol={protocol}: must be one of {known}")
    count, width = len(references), faces.embeddings.shape[-1]
    if not count or references.shape != (count, width):
        raise ValueError(
            f"references of shape {tuple(references.shape)}: at least one subject, as wide as the faces' "
            f"embeddings, {width}"
        )
    published = protocol == "published"
    looked_at = (torch.arange(len(faces)) if published else faces.by_size().cpu())[:count]
    embeddings = faces.embeddings.cpu()[looked_at]
    if published and count > 1:
        if blank is None:
            raise ValueError("protocol=published scores a missing face with a blank crop: give its embedding")
        missing = count - len(looked_at) if len(looked_at) else 0  # no face at all scores 0 instead
        embeddings = torch.cat([embeddings, blank.to(embeddings).expand(missing, width)])
    similarity = (embeddings.double() @ references.cpu().double().T).numpy()  # (faces, K)
    matched = [0.0] * count
    taken: list[int | None] = [None] * count
    for row, subject in greedy_pairs(similarity) if published else optimal_pairs(similarity):
        matched[subject] = float(similarity[row, subject])
        taken[subject] = int(looked_at[row]) if row < len(looked_at) else None
    value = max(min(matched), 0.0) if published else min(matched)
    return IdentityScore(value, len(faces), tuple(matched), tuple(taken))
