"""How far generated images are from real ones, as distributions of features: FID and KID."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.kid import KernelInceptionDistance

from fastcomposer.data.transforms import isolated_rng
from fastcomposer.metrics.image_text import ClipExtractor
from fastcomposer.metrics.pretrained import find_inception_weights
from fastcomposer.models.published_checkpoint import read_checkpoint

_SUBSETS, _LARGEST_SUBSET = 100, 1000  # of KID, as Binkowski et al. 2018 have them


class ImageFeatures(Protocol):
    """Describes full images.

    Attributes:
        num_features: Width d of the features.
    """

    num_features: int

    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, d) of images (N, 3, H, W) float in [0, 1]."""


class ClipFeatures(ClipExtractor):
    """Image features of a CLIP, in place of Inception's where there is none for the kind of images.

    In the mini world these are the features to take: CLIP saw full scenes and texts on everything in them,
    while the embedder sees crops of heads only and was taught to look past all that is not the person. The
    unit vectors are multiplied by the root of their width, for KID's kernel divides products by it.

    Args:
        model: See :class:`~fastcomposer.metrics.image_text.ClipExtractor`.
        subfolder: See :class:`~fastcomposer.metrics.image_text.ClipExtractor`.
    """

    def __init__(self, model: str | Path, subfolder: str | None = None) -> None:
        super().__init__(model, subfolder)
        self.num_features = int(self.clip.config.projection_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, d) of images (N, 3, H, W) float in [0, 1]."""
        return self.embed_images(images) * self.num_features**0.5


class InceptionFeatures(nn.Module):
    """The pooled features of the Inception network that published FID and KID are measured with.

    Args:
        weights: ``inception-2015-12-05``, looked up in torch's caches, or a file.
        download: Whether weights that are given by name and not there may be downloaded.

    Raises:
        FileNotFoundError: If there are no such weights; the message names the file and where to put it.
        ValueError: If the file holds other weights, or more than weights.
    """

    num_features = 2048

    def __init__(self, weights: str | Path = "inception-2015-12-05", download: bool = False) -> None:
        super().__init__()
        file = find_inception_weights(weights, download)
        read_checkpoint(file)  # the library would run whatever a pickle carries
        try:
            self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file))
        except RuntimeError as error:
            raise ValueError(f"{file} holds no weights of torch-fidelity's Inception: {error}") from error

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features (N, 2048) of images (N, 3, H, W) float in [0, 1]."""
        return self.network((images.clamp(0, 1) * 255).round().byte())


class FeatureDistance(NamedTuple):
    """Distances between two sets of images; 0 where they have one distribution.

    Attributes:
        fid: Heusel et al. 2017. It is too large for few images, the more the fewer there are.
        kid: Binkowski et al. 2018; without such a bias, and below 0 by chance where there is no distance.
        kid_std: Standard deviation of KID over subsets.
    """

    fid: float
    kid: float
    kid_std: float


def feature_distance(generated: Tensor, real: Tensor, seed: int = 0) -> FeatureDistance:
    """Measure FID and KID.

    Args:
        generated: (N, d) features of generated images, N at least 2.
        real: (M, d) of real ones, M at least 2.
        seed: Of KID's subsets, which hold 1000 images each or as many as there are.

    Raises:
        ValueError: If there are too few images, or the features differ in width.
    """
    if min(len(generated), len(real)) < 2 or generated.shape[1:] != real.shape[1:]:
        raise ValueError(
            f"features of shape {tuple(generated.shape)} and {tuple(real.shape)}: of at least two images "
            "each, equally wide"
        )
    given = _Given(generated.shape[1])
    # Every process has all features of a run: nothing is to be gathered.
    fid = FrechetInceptionDistance(given, sync_on_compute=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*will save all extracted features")  # as is meant here
        size = min(_LARGEST_SUBSET, len(generated), len(real))
        kid = KernelInceptionDistance(given, subsets=_SUBSETS, subset_size=size, sync_on_compute=False)
    for metric in (fid, kid):
        metric.update(generated, real=False)
        metric.update(real, real=True)
    with isolated_rng(seed):
        mean, deviation = kid.compute()
    return FeatureDistance(float(fid.compute()), float(mean), float(deviation))


class _Given(nn.Module):
    """Stands where torchmetrics expects a network: features are extracted once for both metrics."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features
