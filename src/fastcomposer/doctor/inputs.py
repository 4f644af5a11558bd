"""Walks a composed configuration and asks, for everything that it instantiates, where its files are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastcomposer.doctor import models, records
from fastcomposer.doctor.finding import Finding, at, mappings
from fastcomposer.doctor.machine import num_processes
from fastcomposer.models.base_files import TOKENIZER

Config = Mapping[str, Any]
_MINI = "make it with experiment=mini_base, or take data/mini of the repository"
READ: dict[str, tuple[str, ...]] = {
    "train": ("data.module", "method", "callbacks"),
    "evaluate": ("methods", "benchmark", "scoring"),
    "score": ("benchmark", "scoring"),
    "attention": ("data.module",),
    "diagnose": ("data.module", "fitted", "metrics.embedder"),
    "generate": (),
    "demo": (),
    "prepare": (),
}
"""Commands that are examined, and the parts of their configurations that they instantiate."""


def inputs(command: str, config: Config) -> Iterator[Finding]:
    """Findings of every file and hub id that a command reads."""
    parts = [*READ[command]]
    if command == "evaluate" and config["fid"]:
        parts.append("distances")
    if command == "prepare":
        parts += [_prepared(config)]
    if command == "demo":
        yield from package("gradio", "pip install 'fastcomposer[demo]'")
    nodes = [pair for part in parts for pair in mappings(at(config, part), part)]
    if command in ("generate", "demo", "attention", "diagnose") or config.get("cache"):
        nodes.append(("model", config["model"]))
    for key, node in nodes:
        if node.keys() >= models.BASE_KEYS:
            yield from models.base_model(key, node, command in ("generate", "demo"))
        target = str(node.get("_target_", ""))
        if target in DATA_MODULES:
            faces = any(at(config, f"{key}.loss") for key in ("identity", "readout", "reward"))
            processes = num_processes(config) if command == "train" else 1
            yield from records.data_module(node, processes, _how_made(config), faces)
        elif target in ROOTS:
            splits = node.get("splits", ("train", "test"))
            yield from records.record_folder(node["root"], splits, _how_made(config))
        if target in READERS:
            found = READERS[target](key, node)
            yield from [found] if isinstance(found, Finding) else found
        for name in (name for name, value in node.items() if value == "???" and target not in READERS):
            yield Finding("data", f"{key}.{name}", "missing", "has no value", f"{key}.{name}=<value>")
    for name in ("checkpoint", "checkpoints"):
        if command in ("generate", "demo", "attention", "diagnose") and name in config:
            given = config[name] if isinstance(config[name], list) else [config[name]]
            if name == "checkpoints" or "checkpoints" not in config:
                yield from (models.checkpoint(name, path) for path in given)
    if config.get("references"):
        files = [one for row in config["references"] for one in (row if isinstance(row, list) else [row])]
        yield records.existing("references", files, "name images that are there")
    if config.get("source"):
        yield records.existing("source", [config["source"]], "name a folder of photos")


def _prepared(config: Config) -> str:
    """The part of a preparation that is instantiated."""
    if config["cache"] is not None:
        return "data.module"
    if config["shards"] is not None:
        return "sharding"
    return "annotation" if config["faces"] else "data.prepare"


def _how_made(config: Config) -> str:
    """The command that makes a data folder."""
    root = at(config, "data.root")
    targets = [(at(config, key) or {}).get("_target_", "") for key in ("data.prepare", "data.module")]
    if any("miniworld" in target for target in targets):
        return f"fastcomposer prepare data=avatars data.root={root}"
    return (
        f"put records in the published format there (docs/method.md, Files), or data.root=<folder> ({root})"
    )


def _clip(key: str, node: Config) -> Finding:
    subfolder = node.get("subfolder")
    if subfolder:
        return models.pretrained(f"{key}.model", node["model"], [subfolder, "tokenizer"])
    return models.pretrained(f"{key}.model", node["model"], [""], first=TOKENIZER)


def package(name: str, how: str) -> Iterator[Finding]:
    """Whether a package is installed that a configuration needs beyond a plain installation."""
    there = find_spec(name) is not None
    yield Finding(
        "versions", name, "ok" if there else "missing", "" if there else "not installed", how * (not there)
    )


def _facenet(key: str, node: Config, *, embeds: bool = True) -> Iterator[Finding]:
    how = "pip install --no-deps facenet-pytorch==2.6.0, or uv sync --extra faces"
    yield from package("facenet_pytorch", how)
    if embeds:
        from fastcomposer.metrics.pretrained import find_facenet_weights

        yield models.named_weights(key, node, find_facenet_weights)
    spec = find_spec("facenet_pytorch")
    shipped = None if spec is None or not spec.origin else Path(spec.origin).parent / "data"
    folder = node.get("detector_weights") or shipped
    if folder is not None and not node["_target_"].endswith("Embedder"):
        files = [str(Path(folder).expanduser() / f"{name}.pt") for name in ("pnet", "rnet", "onet")]
        yield records.existing(f"{key}.detector_weights", files, "put MTCNN's files there")


def _inception(key: str, node: Config) -> Finding:
    from fastcomposer.metrics.pretrained import find_inception_weights

    return models.named_weights(key, node, find_inception_weights)


def _spacy(key: str, node: Config) -> Iterator[Finding]:
    yield from package("spacy", "pip install 'fastcomposer[prepare]'")
    model = node.get("model")
    if model is not None and not (Path(model).is_dir() or find_spec(model)):
        remedy = f"python -m spacy download {model}; or {key}.model=<folder>, data/phrases=words"
        yield Finding(
            "networks", f"{key}.model", "missing", f"spaCy pipeline {model} is not installed", remedy
        )


def _segmenter_of_faces(key: str, node: Config) -> Iterator[Finding]:
    yield from package("skimage", "pip install 'fastcomposer[prepare]'")
    yield from _facenet(key, node, embeds=False)


def _people(people: Mapping[str, Config]) -> Finding:
    images = [one["images"] for one in people.values()]
    files = [file for some in images for file in (some if isinstance(some, list) else [some])]
    if not files:
        return Finding(
            "data", "data.people", "missing", "nobody", "data.people={adam:{word:man,images:photos/adam}}"
        )
    return records.existing("data.people", files, "put the images there")


def _parts(*names: str) -> Callable[[str, Config], Finding]:
    """Reader of networks in folders of ``base`` or ``model``; a name in brackets is that of a setting."""

    def read(key: str, node: Config) -> Finding:
        source = "base" if "base" in node else "model"
        parts = [node[name[1:-1]] if name.startswith("[") else name for name in names]
        return models.pretrained(f"{key}.{source}", node[source], parts)

    return read


def _preprocessed(key: str, node: Config) -> Finding:
    return models.pretrained(f"{key}.model", node["model"], [""], first=[("preprocessor_config.json",)])


def _weights(key: str, node: Config) -> Iterator[Finding]:
    if node["weights"] is not None:
        yield models.checkpoint(f"{key}.weights", node["weights"])
    if node["optimizer"].get("implementation") == "8bit":
        yield from package("bitsandbytes", "pip install bitsandbytes")


DATA_MODULES = (
    "fastcomposer.data.datamodule.SubjectDataModule",
    "fastcomposer.data.datamodule.StreamingDataModule",
)
ROOTS = (
    "fastcomposer.data.shards.write_shards",
    "fastcomposer.miniworld.scene_dataset.SceneDataModule",
    "fastcomposer.preparation.face_boxes.annotate_faces",
)
"""What reads the records of a folder as they are."""
READERS: Mapping[str, Callable[[str, Config], Any]] = {
    "fastcomposer.data.portraits.reference_sets": lambda key, node: _people(node["people"] or {}),
    "fastcomposer.evaluation.benchmark.load_benchmarks": lambda key, node: records.benchmark(node),
    **dict.fromkeys(records.OTHERS, lambda key, node: records.other_benchmark(node)),
    "fastcomposer.evaluation.pipelines.load_trained": lambda key, node: models.checkpoint(
        "checkpoint", node["checkpoint"]
    ),
    "fastcomposer.metrics.distribution.ClipFeatures": _clip,
    "fastcomposer.metrics.distribution.InceptionFeatures": _inception,
    "fastcomposer.metrics.faces.FaceNetBoxes": partial(_facenet, embeds=False),
    "fastcomposer.metrics.faces.FaceNetEmbedder": _facenet,
    "fastcomposer.metrics.faces.FaceNetFaces": _facenet,
    "fastcomposer.metrics.image_text.ClipExtractor": _clip,
    "fastcomposer.miniworld.embedder.HeadEmbedder": _parts("[subfolder]"),
    "fastcomposer.miniworld.face_extractor.MiniBoxes": _parts("detector"),
    "fastcomposer.miniworld.face_extractor.MiniFaces": _parts("detector", "embedder"),
    "fastcomposer.preparation.captioners.PretrainedCaptioner": _preprocessed,
    "fastcomposer.preparation.face_boxes.annotate_faces": partial(_facenet, embeds=False),
    "fastcomposer.preparation.face_segmenter.FaceSegmenter": _segmenter_of_faces,
    "fastcomposer.preparation.phrases.ParsedPhrases": _spacy,
    "fastcomposer.preparation.phrases.WordPhrases": _spacy,
    "fastcomposer.preparation.segmenters.PretrainedSegmenter": _preprocessed,
    "fastcomposer.training.module.FastComposerModule": _weights,
    "fastcomposer.training.samples.SampleImages": lambda key, node: records.existing(
        f"{key}.references",
        [file for row in node["references"] for file in row],
        "make them with the data folder, or name others",
    ),
}
"""What reads files, by the target that the configuration names."""
