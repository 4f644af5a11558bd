"""Faces in images: where they are and whose they are, at both scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align
from torchvision.transforms.functional import to_pil_image

from fastcomposer.metrics.pretrained import find_facenet_weights
from fastcomposer.models.published_checkpoint import read_checkpoint

_CROP_SIZE = 160  # pixels


@dataclass(frozen=True)
class Faces:
    """Faces found in one image, in the order of the detector that found them.

    Attributes:
        boxes: (n, 4) float, x1, y1, x2, y2 in pixels.
        scores: (n,) float in [0, 1], how sure the detector is.
        embeddings: (n, d) float, unit vectors of identity.
    """

    boxes: Tensor
    scores: Tensor
    embeddings: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def by_size(self) -> Tensor:
        """Positions (n,) of the faces by falling area of their boxes; equally large ones keep their order."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).prod(1).argsort(descending=True, stable=True)

    def largest_first(self) -> Faces:
        """The same faces in the order of :meth:`by_size`."""
        order = self.by_size()
        return Faces(self.boxes[order], self.scores[order], self.embeddings[order])


class FaceExtractor(Protocol):
    """Finds and embeds the faces of images.

    Attributes:
        embed_dim: Width d of the embeddings.
    """

    embed_dim: int

    def __call__(self, images: Tensor) -> list[Faces]:
        """Extract faces.

        Args:
            images: (N, 3, H, W) float in [0, 1], on any device.

        Returns:
            One entry per image, on the device of the images; an image without faces has an empty one.
        """

    def blank(self) -> Tensor:
        """Embedding (d,) of a crop that shows nothing: the published protocol's missing face, on the CPU."""


class FaceNetFaces(nn.Module):
    """Faces of photographs: MTCNN crops, embedded by InceptionResnetV1 (docs/method.md, Evaluation protocol).

    Settings, crops and order are those of the published scorer. It leaves MTCNN's default order, so the
    largest face comes first, not the surest; images go through MTCNN one at a time, as there.

    Args:
        weights: Weights of InceptionResnetV1: ``vggface2`` or ``casia-webface``, looked up in torch's caches,
            or a file.
        detector_weights: Folder with ``pnet.pt``, ``rnet.pt`` and ``onet.pt``; ``None`` for those that
            facenet-pytorch ships.
        download: Whether weights that are given by name and not there may be downloaded.

    Raises:
        FileNotFoundError: If there are no such weights; the message names the file and where to put it.
        ValueError: If a file holds other weights.
    """

    embed_dim = 512

    def __init__(
        self,
        weights: str | Path = "vggface2",
        detector_weights: str | Path | None = None,
        download: bool = False,
    ) -> None:
        from facenet_pytorch import InceptionResnetV1

        super().__init__()
        file = find_facenet_weights(weights, download)
        self.detector = _mtcnn(detector_weights)
        self.embedder = InceptionResnetV1()
        _load(self.embedder, file, "InceptionResnetV1")
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Faces]:
        """Extract faces; see :class:`FaceExtractor`. Faces of less than 20 pixels are not found."""
        device = self.embedder.last_linear.weight.device
        found, crops = [], []
        with torch.autocast(device.type, enabled=False):
            for image, boxes, scores in _detected(self.detector, images, device):
                if len(boxes):
                    crops.append(self.detector.extract(image, boxes, None))
                found.append((_tensor(boxes), _tensor(scores)))
            vectors = self.embedder(torch.cat(crops).to(device)) if crops else torch.zeros(0, self.embed_dim)
        vectors = vectors.to(images.device)
        parts = vectors.split([len(scores) for _, scores in found])
        return [
            Faces(boxes.to(images.device), scores.to(images.device), part)
            for (boxes, scores), part in zip(found, parts, strict=True)
        ]

    @torch.no_grad()
    def blank(self) -> Tensor:
        """Embedding (d,) of a grey crop: zeros after standardization, as in the published scorer."""
        device = self.embedder.last_linear.weight.device
        return self.embedder(torch.zeros(1, 3, _CROP_SIZE, _CROP_SIZE, device=device))[0].cpu()


class FaceNetBoxes(nn.Module):
    """Boxes of the faces of photographs: those of :class:`FaceNetFaces`, without an embedder.

    Args:
        detector_weights: See :class:`FaceNetFaces`.

    Raises:
        FileNotFoundError: If there are no such weights; the message names the file.
        ValueError: If a file holds other weights.
    """

    def __init__(self, detector_weights: str | Path | None = None) -> None:
        super().__init__()
        self.detector = _mtcnn(detector_weights)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """See :class:`~fastcomposer.training.face_losses.matching.FaceDetector`."""
        device = next(self.detector.parameters()).device
        found = _detected(self.detector, images, device)
        return [_tensor(boxes).to(images.device) for _, boxes, _ in found]


class FaceNetEmbedder(nn.Module):
    """Embeds annotated faces of photographs for the identity loss; nothing is detected.

    Args:
        weights: Weights of InceptionResnetV1 as for :class:`FaceNetFaces`, but not those that score.
        download: Whether weights that are given by name and not there may be downloaded.

    Raises:
        FileNotFoundError: If there are no such weights; the message names the file and where to put it.
        ValueError: If a file holds other weights.
    """

    def __init__(self, weights: str | Path = "casia-webface", download: bool = False) -> None:
        from facenet_pytorch import InceptionResnetV1

        super().__init__()
        file = find_facenet_weights(weights, download)
        self.embedder = InceptionResnetV1()
        _load(self.embedder, file, "InceptionResnetV1")
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        """See :class:`~fastcomposer.training.face_losses.face_loss.FaceEmbedder`."""
        crops = roi_align(images * 255, list(boxes.to(images)), _CROP_SIZE, sampling_ratio=-1, aligned=True)
        return self.embedder((crops - 127.5) / 128).unflatten(0, boxes.shape[:2])


def _mtcnn(weights: str | Path | None) -> Any:
    """MTCNN with the settings of the published scorer."""
    from facenet_pytorch import MTCNN

    detector = MTCNN(
        image_size=_CROP_SIZE,
        margin=0,
        min_face_size=20,
        thresholds=[0.6, 0.7, 0.7],
        factor=0.709,
        post_process=True,
        keep_all=True,
    )
    if weights is not None:
        for name in ("pnet", "rnet", "onet"):
            part = Path(weights).expanduser() / f"{name}.pt"
            _load(detector.get_submodule(name), part, f"MTCNN's {name}")
    return detector


def _detected(mtcnn: Any, images: Tensor, device: torch.device) -> Iterator[tuple[Any, Any, Any]]:
    """PIL image, boxes (n, 4) and scores (n,) of each of the images (N, 3, H, W) in [0, 1]."""
    mtcnn.device = device  # not a tensor: it does not follow the module
    for pixels in (images.clamp(0, 1) * 255).round().byte().cpu():
        image = to_pil_image(pixels)
        boxes, scores = mtcnn.detect(image)
        yield (image, np.zeros((0, 4)), np.zeros(0)) if boxes is None else (image, boxes, scores)


def _load(network: nn.Module, file: Path, what: str) -> None:
    # The published files hold the classifier that the network was trained with, too.
    state = {name: value for name, value in read_checkpoint(file).items() if not name.startswith("logits.")}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{file} holds no weights of {what}: {error}") from error


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))  # MTCNN's arrays hold objects
