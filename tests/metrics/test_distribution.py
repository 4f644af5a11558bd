"""FID and KID of features, and the features of images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from toy_evaluation import judged_base

from fastcomposer.metrics import distribution
from fastcomposer.metrics.distribution import ClipFeatures, InceptionFeatures, feature_distance


def test_distances_by_hand() -> None:
    # Uncorrelated features of unit variance in both sets, moved by 3: FID is the squared distance of means.
    real = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    drawn = real + torch.tensor([3.0, 0])
    measured = feature_distance(drawn, real)
    assert measured.fid == pytest.approx(9.0, abs=1e-4)

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y.T / 2 + 1) ** 3

    # Every subset holds all four images: the unbiased estimate leaves the diagonals out.
    own = sum((kernel(x, x).sum() - kernel(x, x).diag().sum()) / 12 for x in (real, drawn))
    assert measured.kid == pytest.approx(float(own - 2 * kernel(real, drawn).mean()), rel=1e-4)
    assert measured.kid_std == pytest.approx(0, abs=1e-3)


def test_images_like_the_real_ones_are_near_and_others_far() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(300, 8, generator=generator)
    alike = torch.randn(200, 8, generator=generator)
    near, far = feature_distance(alike, real), feature_distance(alike * 2 + 1, real)
    assert 0 < near.fid < 0.4 and abs(near.kid) < 3 * near.kid_std + 0.02
    assert far.fid > 10 and far.kid > 10 * far.kid_std
    state = torch.get_rng_state()
    assert feature_distance(alike, real) == near  # KID's subsets are the same every time
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("drawn", "real"), [((1, 4), (9, 4)), ((9, 4), (1, 4)), ((9, 4), (9, 5))])
def test_too_few_or_other_features_are_refused(drawn: tuple[int, ...], real: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="of at least two images each, equally wide"):
        feature_distance(torch.rand(drawn), torch.rand(real))


def test_clip_describes_images(small_base: Path, tmp_path: Path) -> None:
    extractor = ClipFeatures(judged_base(small_base, tmp_path / "base"), "clip")
    images = torch.rand(2, 3, 32, 32)
    features = extractor(images)
    assert features.shape == (2, extractor.num_features) == (2, 8)
    assert features.square().mean() == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(features / 8**0.5, extractor.embed_images(images))


def test_inception_says_which_file_goes_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(FileNotFoundError) as caught:
        InceptionFeatures()
    message = str(caught.value)
    assert "weights-inception-2015-12-05-6726825d.pth" in message
    assert str(tmp_path / "torch" / "hub" / "checkpoints") in message
    assert "metrics.features.download=true" in message
    with pytest.raises(FileNotFoundError, match=r"metrics\.features\.weights=gone\.pth: neither a file nor"):
        InceptionFeatures("gone.pth")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth holds no weights of torch-fidelity's Inception"):
        InceptionFeatures(tmp_path / "other.pth")


def test_inception_gets_whole_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Noted(nn.Module):
        def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
            super().__init__()
            assert (name, features_list) == ("inception-v3-compat", ["2048"])

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.dtype == torch.uint8
            return images.flatten(1).float()

    monkeypatch.setattr(distribution, "NoTrainInceptionV3", Noted)
    torch.save({}, tmp_path / "weights.pth")
    features = InceptionFeatures(tmp_path / "weights.pth")(torch.full((1, 3, 2, 2), 199.6 / 255))
    assert features.unique().tolist() == [200.0]
