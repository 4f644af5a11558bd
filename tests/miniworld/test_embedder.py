"""The embedder's crops, vectors and pairs."""

from __future__ import annotations

import pytest
import torch

from fastcomposer.miniworld.embedder import IdentityEmbedder, pair_up


@pytest.fixture
def embedder() -> IdentityEmbedder:
    torch.manual_seed(0)
    return IdentityEmbedder(embed_dim=16, crop_size=16, margin=1.0, channels=(8, 8, 8)).eval()


def test_vectors_have_length_one_in_the_order_of_the_boxes(embedder: IdentityEmbedder) -> None:
    images = torch.rand(3, 3, 32, 32)
    boxes = torch.tensor([[2.0, 2, 18, 18], [10, 5, 30, 31], [0, 0, 32, 32]])
    vectors = embedder.embed(images, boxes)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    lists = embedder.embed(images, [boxes[:1], boxes[:0], boxes[[1, 2]]])
    assert lists.shape == (3, 16)
    torch.testing.assert_close(lists[0], vectors[0])
    torch.testing.assert_close(lists[2], vectors[2])
    assert embedder.embed(images, [boxes[:0]] * 3).shape == (0, 16)
    with pytest.raises(ValueError, match="boxes for 2 images, but there are 3"):
        embedder.embed(images, boxes[:2])


def test_a_crop_is_the_box_enlarged_and_grey_outside(embedder: IdentityEmbedder) -> None:
    image = torch.rand(1, 3, 32, 32)
    crop = embedder.crop(image, torch.tensor([[8.0, 4, 24, 20]]))
    torch.testing.assert_close(crop[0], 2 * image[0, :, 4:20, 8:24] - 1)  # one pixel to one pixel
    wide = IdentityEmbedder(embed_dim=16, crop_size=16, margin=2.0, channels=(8, 8, 8))
    crop = wide.crop(torch.ones(1, 3, 32, 32), torch.tensor([[0.0, 0, 16, 16]]))[0]
    assert (crop[:, 4:, 4:] == 1).all()  # the image
    assert (crop[:, :3] == 0).all()  # beyond its upper edge


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="crop_size=20"):
        IdentityEmbedder(crop_size=20)
    with pytest.raises(ValueError, match=r"margin=0\.5"):
        IdentityEmbedder(margin=0.5)


def test_pairs_count_once_and_only_where_allowed() -> None:
    vectors = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1]])
    allowed = ~torch.eye(3, dtype=torch.bool)
    allowed[0, 2] = allowed[2, 0] = False
    pairs = pair_up(vectors, torch.tensor([4, 4, 7]), allowed)
    torch.testing.assert_close(pairs.cosine, torch.tensor([0.6, 0.8]))
    assert pairs.same.tolist() == [True, False]
    torch.testing.assert_close(pairs.gap, torch.tensor(-0.2))
