"""Whatever strangers' files and texts hold: a result, or an error that names them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from toy_records import CAPTION, LEFT, RIGHT, add_record

from fastcomposer.data.dataset import SubjectDataset
from fastcomposer.data.pixels import eight_bit
from fastcomposer.data.portraits import read_square
from fastcomposer.data.record import RecordError
from fastcomposer.data.records import Record, parse_record, read_record, record_path, write_ids
from fastcomposer.data.reference import prepare_reference
from fastcomposer.data.sample_settings import SampleSettings
from fastcomposer.models.published_checkpoint import read_checkpoint
from fastcomposer.preparation.photos import PhotoFile, UnusablePhotoError, open_photo
from fastcomposer.prompt import MARKER, PromptError, parse_prompt

_MANY = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

# --- records -----------------------------------------------------------------------------------------------

_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_JSON = st.recursive(
    _PLAIN,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
)
_ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "id": _JSON | st.integers(-3, 300),
        "bbox": _JSON | st.lists(st.integers(-9, 99) | st.floats(), min_size=4, max_size=4),
        "end": _JSON | st.integers(-3, 40),
        "coco_label": _JSON | st.just("person"),
        "identity": _JSON,
    },
)
_RECORDS = _JSON | st.fixed_dictionaries(
    {}, optional={"caption": _JSON | st.just(CAPTION), "segments": _JSON | st.lists(_ENTRIES, max_size=4)}
)


@_MANY
@given(content=_RECORDS)
def test_any_json_is_a_record_or_named(content: Any) -> None:
    try:
        record = parse_record(content, Path("x/00000.json"), "00000")
    except RecordError as error:
        assert str(error).startswith("x/00000.json: ")
        return
    assert isinstance(record, Record)
    for segment in record.segments:
        assert 0 < segment.end <= len(record.caption)
        assert segment.bbox[0] < segment.bbox[2] and segment.bbox[1] < segment.bbox[3]


@pytest.mark.parametrize("suffix", [".json", ".jpg", ".npy"])
@_MANY
@given(data=st.data())
def test_any_bytes_are_a_record_or_named(
    suffix: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("records")
    add_record(root, "0000000", LEFT, RIGHT, seed=1)
    path = record_path(root, "0000000", suffix)
    good = path.read_bytes()
    start = data.draw(st.integers(0, len(good)))
    junk = data.draw(st.binary(max_size=40))
    end = data.draw(st.integers(start, len(good)))
    path.write_bytes(good[:start] + junk + good[end:])
    try:
        loaded = read_record(root, "0000000")
    except RecordError as error:
        assert "0000000" in str(error)
    else:
        assert loaded.segment_map.shape == loaded.image.shape[:2]


# --- captions ----------------------------------------------------------------------------------------------

_PIECES = st.lists(
    st.sampled_from([MARKER, "<|image|", " ", "a man", "and", "\n", "\u200d", "é", "👩‍🚀", "﷽", "\x00", "!"])
    | st.text(max_size=6),
    max_size=25,
)


@_MANY
@given(pieces=_PIECES, references=st.none() | st.integers(0, 4))
def test_any_caption_is_parsed_or_named(pieces: list[str], references: int | None, tokenizer: Any) -> None:
    caption = "".join(pieces)
    try:
        parsed = parse_prompt(caption, tokenizer, num_references=references, max_subjects=3)
    except PromptError as error:
        assert repr(caption) in str(error)
        return
    assert len(parsed.input_ids) == 12
    assert parsed.num_subjects == caption.count(MARKER) == len(parsed.subject_token_idx)
    assert all(0 < index < 11 for index in parsed.subject_token_idx)
    assert tokenizer.eos_token_id in parsed.input_ids


# --- images ----------------------------------------------------------------------------------------------


def saved(kind: str, image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


_NOISE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
_RGB = Image.fromarray(_NOISE)
_DEEP = Image.fromarray(_NOISE[..., 0].astype(np.uint16) * 257)
_FRAMES = [Image.fromarray(np.roll(_NOISE, shift, 1)) for shift in range(3)]
GOOD = {
    "cmyk.jpg": saved("jpeg", _RGB.convert("CMYK")),
    "grey.jpg": saved("jpeg", _RGB.convert("L")),
    "palette.png": saved("png", _RGB.convert("P")),
    "bits.png": saved("png", _RGB.convert("1")),
    "deep.png": saved("png", _DEEP),
    "deep.tif": saved("tiff", _DEEP),
    "animated.gif": saved("gif", _FRAMES[0], save_all=True, append_images=_FRAMES[1:]),
    "animated.webp": saved("webp", _FRAMES[0], save_all=True, append_images=_FRAMES[1:]),
    "png_named.jpg": saved("png", _RGB),
    "jpeg_named.png": saved("jpeg", _RGB),
    "pixel.png": saved("png", _RGB.resize((1, 1))),
    "line.png": saved("png", _RGB.resize((1, 900))),
}
BAD = {
    "empty.png": b"",
    "text.jpg": b"<html>404 not found</html>",
    "half.jpg": saved("jpeg", _RGB)[:300],
    "half.png": saved("png", _RGB)[:400],
    "bomb.png": saved("png", Image.new("1", (14_000, 14_000))),
    "float.tif": saved("tiff", Image.fromarray(_NOISE[..., 0].astype(np.float32))),
}


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(name: str) -> Path:
        (tmp_path / name).write_bytes({**GOOD, **BAD}[name])
        return tmp_path / name

    return write


def photo(path: Path) -> PhotoFile:
    return PhotoFile("x", path, path.name, "a man")


@pytest.mark.parametrize("name", GOOD)
def test_unusual_images_are_read(name: str, file: Callable[[str], Path]) -> None:
    path = file(name)
    reference, portrait = prepare_reference(path, 32), read_square(path, 32)
    image = open_photo(photo(path), 1, None)
    assert reference.shape == (3, 32, 32)
    assert portrait.shape == (4, 32, 32)
    assert image.mode == "RGB"
    if image.size == (48, 40):  # about as bright as it was
        expected = 127 if name == "bits.png" else _NOISE.mean()
        assert abs(np.asarray(image).mean() - expected) < 12, "brightness has changed"


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_named(name: str, file: Callable[[str], Path]) -> None:
    path = file(name)
    for read in (prepare_reference, read_square):
        with pytest.raises(ValueError, match=f"{path} cannot be read as an image: "):
            read(path, 32)
    with pytest.raises(UnusablePhotoError) as end:
        open_photo(photo(path), 1, None)
    assert end.value.reason == "unreadable"


def test_sixteen_bits_become_eight() -> None:
    values = np.array([[0, 128, 129, 257, 32_896, 65_407, 65_535]], dtype=np.uint16)
    expected = [[0, 0, 1, 1, 128, 255, 255]]
    assert np.asarray(eight_bit(Image.fromarray(values))).tolist() == expected
    assert np.asarray(eight_bit(Image.fromarray(values.astype(np.int32)))).tolist() == expected
    small = Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32))
    assert np.asarray(eight_bit(small)).tolist() == [[0, 7, 255]]


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_records_of_unusual_images(name: str, tokenizer: Any, tmp_path: Path) -> None:
    """A sample, or an error that names the record's file; the map has the image's size."""
    content = {**GOOD, **BAD}[name]
    add_record(tmp_path, "0000000", LEFT, RIGHT, seed=1)
    write_ids(tmp_path, "train", ["0000000"])
    path = record_path(tmp_path, "0000000", ".jpg")
    path.write_bytes(content)
    width, height = Image.open(io.BytesIO(content)).size if name in GOOD else (48, 40)
    segment_map = np.ones((height, width), dtype=np.uint8)
    np.save(path.with_suffix(".npy"), segment_map)
    segment = {"id": 1, "bbox": [0, 0, width, height], "end": LEFT.end, "coco_label": "person"}
    path.with_suffix(".json").write_text(json.dumps({"caption": CAPTION, "segments": [segment]}))
    dataset = SubjectDataset(tmp_path, "train", tokenizer, SampleSettings(64, 56, max_subjects=2))
    if name in BAD:
        with pytest.raises(RecordError, match=rf"{path}: image: unreadable"):
            dataset[0]
        return
    sample = dataset[0]
    assert sample.pixel_values.shape == (1, 3, 64, 64)
    assert sample.subject_pixel_values.isfinite().all()
    assert sample.subject_present.sum() == (name != "line.png")  # narrower than a pixel of the target


# --- checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@_MANY
@given(data=st.data())
def test_any_bytes_are_a_checkpoint_or_named(
    suffix: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from safetensors.torch import save

    state = {"unet.weight": torch.arange(6.0).reshape(2, 3), "vae.bias": torch.ones(2)}
    stream = io.BytesIO()
    torch.save(state, stream)
    good = stream.getvalue() if suffix == ".bin" else save(state)
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, len(good)))
    content = good[:start] + data.draw(st.binary(max_size=30)) + good[end:]
    assume(content != good)
    file = tmp_path_factory.mktemp("checkpoints") / f"x{suffix}"
    file.write_bytes(content)
    try:
        read = read_checkpoint(file)
    except ValueError as error:
        assert str(file) in str(error)
    else:
        assert all(isinstance(value, torch.Tensor) for value in read.values())
