"""Faces: the two extractors, and where their weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from facenet_pytorch import MTCNN, InceptionResnetV1
from PIL import Image
from torchvision.transforms.functional import to_tensor

from fastcomposer.metrics.faces import FaceExtractor, FaceNetBoxes, FaceNetFaces, Faces
from fastcomposer.metrics.pretrained import FACENET_FILES, find_facenet_weights
from fastcomposer.miniworld.detector import HeadDetector
from fastcomposer.miniworld.embedder import IdentityEmbedder
from fastcomposer.miniworld.face_extractor import MiniBoxes, MiniFaces


def test_largest_first_keeps_what_belongs_together() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 2, 9], [5, 5, 9, 9], [0, 0, 1, 1]])
    faces = Faces(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.eye(4))
    ordered = faces.largest_first()
    assert torch.equal(ordered.scores, torch.tensor([0.8, 0.9, 0.7, 0.6]))  # 18, 16, 16 and 1 square pixels
    assert torch.equal(ordered.boxes[0], boxes[1])
    assert ordered.embeddings.argmax(1).tolist() == [1, 0, 2, 3]
    assert len(Faces(boxes[:0], torch.zeros(0), torch.zeros(0, 4)).largest_first()) == 0


@pytest.fixture(scope="module")
def mini_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder with untrained metric models."""
    folder = tmp_path_factory.mktemp("mini_faces")
    torch.manual_seed(0)
    HeadDetector(channels=(8, 8, 8, 8), head_channels=8).half().save_pretrained(folder / "detector")
    embedder = IdentityEmbedder(embed_dim=16, crop_size=16, margin=1.0, channels=(8, 8, 8))
    embedder.half().save_pretrained(folder / "embedder")
    return folder


def test_heads_of_the_mini_world(mini_base: Path) -> None:
    # Untrained, the heat is about 0.1 everywhere: a low threshold finds a different number in each image.
    extractor: FaceExtractor = MiniFaces(mini_base, threshold=0.1)
    assert extractor.embed_dim == 16
    images = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    found = extractor(images)
    detector = HeadDetector.from_pretrained(mini_base, subfolder="detector")
    embedder = IdentityEmbedder.from_pretrained(mini_base, subfolder="embedder")
    for image, faces in zip(images, found, strict=True):
        alone = detector.detect(image[None], 0.1)[0]
        assert len(faces) == len(alone) > 0
        torch.testing.assert_close(faces.boxes, alone.boxes)
        assert (faces.scores.diff() <= 0).all()
        torch.testing.assert_close(faces.embeddings, embedder.embed(image[None], [alone.boxes]))
    for faces, boxes in zip(found, MiniBoxes(mini_base, threshold=0.1)(images), strict=True):
        assert torch.equal(faces.boxes, boxes)
    nothing = MiniFaces(mini_base, threshold=1.0)(images)
    assert [(len(faces), faces.embeddings.shape) for faces in nothing] == [(0, (0, 16))] * 3


def test_the_blank_head_is_grey(mini_base: Path) -> None:
    extractor = MiniFaces(mini_base)
    grey = extractor.embedder.embed(torch.full((1, 3, 16, 16), 0.5), torch.tensor([[0.0, 0, 16, 16]]))
    torch.testing.assert_close(extractor.blank(), grey[0])


def test_a_base_without_metric_models(mini_base: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"metrics\.faces\.base=.*: detector/ of it holds no HeadDetector"
    ):
        MiniFaces(tmp_path)
    HeadDetector().save_pretrained(tmp_path / "detector")
    with pytest.raises(FileNotFoundError, match="embedder/ of it holds no IdentityEmbedder"):
        MiniFaces(tmp_path)


@pytest.fixture(scope="module")
def embedder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of the published files, with their classifier."""
    torch.manual_seed(0)
    state = InceptionResnetV1().state_dict() | {"logits.weight": torch.zeros(8, 512)}
    file = tmp_path_factory.mktemp("facenet") / "weights.pt"
    torch.save(state, file)
    return file


@pytest.fixture(scope="module")
def facenet(embedder_file: Path) -> FaceNetFaces:
    return FaceNetFaces(embedder_file)


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    """A photograph of one person, which matplotlib ships."""
    from matplotlib import cbook

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return Image.open(file).convert("RGB").resize((256, 300))


def test_a_photograph_has_one_face(facenet: FaceNetFaces, portrait: Image.Image) -> None:
    (faces,) = facenet(to_tensor(portrait)[None])
    assert len(faces) == 1
    assert faces.scores.item() > 0.99
    left, top, right, bottom = faces.boxes[0].tolist()
    assert 60 < left < 110
    assert 35 < top < 75
    assert 150 < right < 200
    assert 150 < bottom < 200
    # The crop and its embedding are what facenet-pytorch itself makes of the photograph.
    crop = MTCNN(keep_all=True)(portrait)
    with torch.no_grad():
        torch.testing.assert_close(faces.embeddings, facenet.embedder(crop))
    assert faces.embeddings.norm().item() == pytest.approx(1)


def test_autocast_changes_no_face(facenet: FaceNetFaces, portrait: Image.Image) -> None:
    images = to_tensor(portrait)[None]
    (expected,) = facenet(images)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = facenet(images)
    assert torch.equal(found.boxes, expected.boxes) and torch.equal(found.embeddings, expected.embeddings)
    assert torch.equal(FaceNetBoxes()(images)[0], expected.boxes)


def test_largest_faces_come_first_as_published(facenet: FaceNetFaces, portrait: Image.Image) -> None:
    """The published scorer keeps MTCNN's default, which sorts by size."""
    sheet = Image.new("RGB", (256 + 160, 300))
    sheet.paste(portrait.resize((160, 188)), (0, 0))
    sheet.paste(portrait, (160, 0))
    blank = torch.zeros(1, 3, 300, 416)
    found = facenet(torch.cat([blank, to_tensor(sheet)[None], blank]))
    assert [len(faces) for faces in found] == [0, 2, 0]
    assert found[1].boxes[:, 0].argmax() == 0  # the larger one, on the right
    assert found[1].by_size().tolist() == [0, 1]


def test_the_blank_crop_is_zero_after_standardization(facenet: FaceNetFaces) -> None:
    with torch.no_grad():
        torch.testing.assert_close(facenet.blank(), facenet.embedder(torch.zeros(1, 3, 160, 160))[0])


def test_detector_weights_from_a_folder(
    facenet: FaceNetFaces, embedder_file: Path, portrait: Image.Image, tmp_path: Path
) -> None:
    for name in ("pnet", "rnet", "onet"):
        state = facenet.detector.get_submodule(name).state_dict()
        torch.save({key: torch.zeros_like(value) for key, value in state.items()}, tmp_path / f"{name}.pt")
    blind = FaceNetFaces(embedder_file, detector_weights=tmp_path)
    assert len(blind(to_tensor(portrait)[None])[0]) == 0
    (tmp_path / "onet.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"onet\.pt does not exist"):
        FaceNetFaces(embedder_file, detector_weights=tmp_path)


def test_weights_that_are_others(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt holds no weights of InceptionResnetV1"):
        FaceNetFaces(tmp_path / "other.pt")
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.pt cannot be read"):
        FaceNetFaces(tmp_path / "broken.pt")


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""

    def refuse(url: str, *_: Any, **__: Any) -> None:
        raise OSError(f"no route to {url}")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "torch"


@pytest.mark.parametrize("name", ["vggface2", "casia-webface"])
def test_named_weights_are_found_in_either_cache(torch_home: Path, name: str) -> None:
    for folder in ("hub/checkpoints", "checkpoints"):  # torch.hub's, then facenet-pytorch's own, which wins
        (torch_home / folder).mkdir(parents=True)
        file = torch_home / folder / FACENET_FILES[name]
        file.touch()
        assert find_facenet_weights(name) == file


def test_missing_weights_say_which_file_goes_where(torch_home: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        FaceNetFaces("vggface2")
    message = str(caught.value)
    assert "20180402-114759-vggface2.pt" in message
    assert str(torch_home / "checkpoints") in message
    assert str(torch_home / "hub" / "checkpoints") in message
    assert "metrics.faces.download=true" in message
    assert not torch_home.exists()  # nothing was tried
    with pytest.raises(FileNotFoundError, match=r"weights=vggface3: neither a file nor one of"):
        find_facenet_weights("vggface3")


def test_a_download_happens_only_when_asked_for(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"no route to https://.*vggface2\.pt.*put .* into"):
        find_facenet_weights("vggface2", download=True)

    def fetch(url: str, destination: str, progress: bool) -> None:
        Path(destination).write_text(url)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    file = find_facenet_weights("casia-webface", download=True)
    assert file == torch_home / "checkpoints" / "20180408-102900-casia-webface.pt"
    assert file.read_text().endswith("/v2.2.9/20180408-102900-casia-webface.pt")


def test_float_images_lose_nothing(facenet: FaceNetFaces, portrait: Image.Image) -> None:
    """Rounding gives back the bytes of an image, so scores do not depend on who read the file."""
    straight = facenet(to_tensor(portrait)[None])[0]
    noisy = facenet(to_tensor(portrait)[None] - 1e-3)[0]
    assert torch.equal(straight.embeddings, noisy.embeddings)
