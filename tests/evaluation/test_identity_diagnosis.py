from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_architectures import add_t5, batch_of, narrow
from torch import Tensor

from fastcomposer import FastComposer
from fastcomposer.evaluation.attention_share import attention_share
from fastcomposer.evaluation.identity_diagnosis import (
    CurvePoint,
    identity_curve,
    read_out,
    stage_features,
)
from fastcomposer.evaluation.report.plots import plot_curves, plot_read_out
from fastcomposer.models.fusion import FusionConfig


def mean_color(images: Tensor, boxes: Tensor) -> Tensor:
    """Embed the mean colour of an image, for each of its boxes."""
    colors = torch.nn.functional.normalize(images.mean((2, 3)) - 0.5, dim=-1)
    return colors[:, None].expand(-1, boxes.shape[1], -1)


@pytest.fixture
def batch(golden: Any) -> Any:
    found = golden.batch()
    boxes = torch.zeros(*found.subject_present.shape, 4)
    boxes[:, 0] = torch.tensor([4.0, 4.0, 24.0, 24.0])
    return found.replace(subject_face_boxes=boxes)


def test_the_read_out_finds_what_a_stage_holds() -> None:
    generator = torch.Generator().manual_seed(0)
    faces = torch.nn.functional.normalize(torch.randn(160, 4, generator=generator), dim=-1)
    mixing = torch.randn(4, 12, generator=generator)
    stages = {
        "all": faces @ mixing,
        "half": faces[:, :2] @ mixing[:2],
        "none": torch.randn(160, 12, generator=generator),
    }
    known = {name: values[:120] for name, values in stages.items()}
    unknown = {name: values[120:] for name, values in stages.items()}
    scores = read_out(known, faces[:120], unknown, faces[120:])
    assert scores["all"] > 0.99
    assert 0.5 < scores["half"] < 0.9
    assert abs(scores["none"]) < 0.3
    assert "patch" in plot_read_out({"a": {"patch states": 0.9}, "b": {"patch states": 0.8, "tokens": 0.7}})


def test_the_curve_has_a_point_for_each_noise_level(tiny_base: Any, batch: Any) -> None:
    model = FastComposer.from_pretrained(tiny_base)
    points = identity_curve(model, [batch], mean_color, [10, 900])
    assert [point.timestep for point in points] == [-1, 10, 900]
    assert points[0].subjects == points[0].text
    assert points[2].subjects != points[2].text
    expected = int((batch.subject_present[:, 0]).sum())
    assert {point.faces for point in points} == {expected}
    again = identity_curve(model, [batch], mean_color, [10, 900])
    assert again == points
    assert "timestep" in plot_curves({"a checkpoint": points})


def test_subjects_are_routed_as_in_sampling(
    tiny_base: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FastComposer.from_pretrained(tiny_base, fusion=FusionConfig(routing=True))
    choose, routed = type(model.fusion.router).choose, []
    monkeypatch.setattr(
        type(model.fusion.router), "choose", lambda *args: (routed.append(args[1]), choose(*args))[1]
    )
    layers = len(model.fusion.router.query)
    identity_curve(model, [batch], mean_color, [10, 900])
    assert len(routed) == 2 * layers  # with the subjects, not with the text alone
    attention_share(model, [batch])
    assert len(routed) == 3 * layers


@pytest.mark.parametrize("t5", [False, True])
def test_a_transformer_is_measured_at_any_noise_level(t5: bool, tmp_path: Path) -> None:
    folder = narrow("sd3", tmp_path / "sd3")
    kind = FusionConfig(num_tokens=3)
    model = FastComposer.from_pretrained(
        "no/base", architecture=add_t5(folder) if t5 else folder, weights="random", fusion=kind
    )
    batch = batch_of(model)
    boxes = torch.tensor([8.0, 8.0, 40.0, 40.0]).expand(*batch.subject_present.shape, 4)
    batch = batch.replace(subject_face_boxes=boxes)
    points = identity_curve(model, [batch], mean_color, [0, 450.5, 1000])
    assert [point.timestep for point in points] == [-1, 0, 450.5, 1000]
    # Without noise the prediction counts for nothing.
    assert points[1].subjects == points[1].text == points[0].subjects
    assert points[2].subjects != points[2].text
    features, _ = stage_features(model, [batch], mean_color)
    assert features["tokens"].shape == (3, (3 + t5) * model.encode_captions(batch).tokens.shape[-1])
    with pytest.raises(ValueError, match=r"1000\.5"):
        identity_curve(model, [batch], mean_color, [1000.5])


def test_a_u_net_is_measured_at_its_timesteps_alone(tiny_base: Any, batch: Any) -> None:
    with pytest.raises(ValueError, match=r"450\.5"):
        identity_curve(FastComposer.from_pretrained(tiny_base), [batch], mean_color, [450.5])


def test_records_without_faces_are_refused(tiny_base: Any, batch: Any) -> None:
    model = FastComposer.from_pretrained(tiny_base)
    for faces, problem in (
        (None, "subject_face_boxes"),
        (torch.zeros_like(batch.subject_face_boxes), "no record"),
    ):
        with pytest.raises(ValueError, match=problem):
            identity_curve(model, [batch.replace(subject_face_boxes=faces)], mean_color, [10])


def test_tokens_are_a_stage_of_their_own(tiny_base: Any, batch: Any) -> None:
    model = FastComposer.from_pretrained(tiny_base, fusion=FusionConfig(num_tokens=3))
    features, faces = stage_features(model, [batch, batch], mean_color)
    count, width = len(faces), model.fusion.config.embed_dim
    assert list(features) == ["pooled embedding", "patch states", "fused word", "tokens"]
    assert {len(values) for values in features.values()} == {count}
    assert features["tokens"].shape == (count, 3 * width)
    assert CurvePoint(0, 0.5, 0.1, count).faces == count


def test_patch_states_are_those_of_all_references(tiny_base: Any, batch: Any) -> None:
    model = FastComposer.from_pretrained(tiny_base)
    one, _ = stage_features(model, [batch], mean_color)
    pixels, present = batch.subject_pixel_values[:, :, None], batch.subject_present[:, :, None]
    several = {
        use: stage_features(
            model, [batch.replace(extra_pixel_values=1 - pixels, extra_present=present & use)], mean_color
        )[0]["patch states"]
        for use in (False, True)
    }
    torch.testing.assert_close(several[False], one["patch states"])
    assert not torch.allclose(several[True], one["patch states"], atol=1e-3)
