"""What every command takes: types and ranges of its keys, checked before a folder is made or torch is loaded.

Keys of nodes with ``_target_`` are described by what they call, whose signature is read without importing it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError
from pydantic.fields import FieldInfo

from fastcomposer.utils.ranges import Amount, Count, Fraction, MethodName, Seed, Side, Text, Threads, Whole
from fastcomposer.utils.signatures import parameters

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
_LARGEST = 1e9


def _scalar(value: Any) -> Any:
    number = isinstance(value, int | float) and abs(value) <= _LARGEST
    if not number and not isinstance(value, str | None):
        raise ValueError(f"a text, true, false, null, or a number of at most {_LARGEST:g}")
    return value


def _scalars(value: Any) -> Any:
    return [_scalar(entry) for entry in value] if isinstance(value, list) else _scalar(value)


def _references(value: Any) -> Any:
    subjects = value if isinstance(value, list) else [value]
    files = [file for entry in subjects for file in (entry if isinstance(entry, list) else [entry])]
    if not all(isinstance(file, str) and file for file in files):
        raise ValueError("a file, or a list of files and lists of files")
    return value


def _node(value: Any) -> Any:
    if not isinstance(value, dict) or "_target_" not in value:
        raise ValueError("a node with _target_")
    return value


def _limit(value: Any) -> Any:
    whole = isinstance(value, int) and 0 <= value <= _LARGEST
    if isinstance(value, bool) or not (whole or (isinstance(value, float) and 0 <= value <= 1)):
        raise ValueError("a number of batches, or a fraction of them between 0.0 and 1.0")
    return value


def _scheduler(value: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value.get("name"), str):
        raise ValueError("the name of a scheduler of diffusers, with settings")
    return value


Scalar: TypeAlias = Annotated[Any, AfterValidator(_scalar)]
Node: TypeAlias = Annotated[Any, AfterValidator(_node)]
"""A node that makes an object."""
References: TypeAlias = Annotated[Any, AfterValidator(_references)]
Scheduler: TypeAlias = Annotated[
    dict[str, Annotated[Any, AfterValidator(_scalars)]], AfterValidator(_scheduler)
]
Resume: TypeAlias = Literal["auto", "restart"]
Objective: TypeAlias = Text | None
_Numbers: TypeAlias = Annotated[
    list[Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]], Field(min_length=1, max_length=1000)
]
_Size: TypeAlias = Annotated[list[Annotated[int, Field(ge=0, le=2**16)]], Field(min_length=2, max_length=2)]
_Limit: TypeAlias = Annotated[Any, AfterValidator(_limit)]
_Step: TypeAlias = Annotated[int, Field(ge=1, le=1000)]
_Prompt: TypeAlias = Annotated[str, Field(max_length=100_000)]


class Sampler(BaseModel):
    """Arguments of a pipeline call that a file can hold, and the scheduler."""

    model_config = ConfigDict(**_STRICT, extra="forbid")

    alpha: Fraction = 1.0
    num_inference_steps: _Step = 50
    guidance_scale: Annotated[float, Field(ge=-1000, le=1000)] = 1.0
    guidance_interval: _Numbers | None = None
    guidance_rescale: Fraction | None = None
    negative_prompt: _Prompt | None = None
    negative_prompt_2: _Prompt | None = None
    prompt_2: _Prompt | None = None
    scheduler: Scheduler | None = None
    timesteps: _Numbers | None = None
    sigmas: _Numbers | None = None
    eta: Fraction | None = None
    clip_skip: Annotated[int, Field(ge=0, le=100)] | None = None
    denoising_end: Fraction | None = None
    height: Side | None = None
    width: Side | None = None
    original_size: _Size | None = None
    crops_coords_top_left: _Size | None = None
    target_size: _Size | None = None
    negative_original_size: _Size | None = None
    negative_crops_coords_top_left: _Size | None = None
    negative_target_size: _Size | None = None


class Model(BaseModel):
    """The group ``model``."""

    base: Text
    image_encoder: Text | None
    architecture: Text | None
    weights: Literal["pretrained", "random"]
    variant: Text | None
    t5: bool
    max_subjects: Annotated[int, Field(ge=1, le=64)]
    resolution: Side
    reference_size: Side
    train_backbone: bool | Literal["lora"] = True
    gradient_checkpointing: bool = False


class Metrics(BaseModel):
    """The group ``metrics``."""

    reference_size: Side | None


class Data(BaseModel):
    """The group ``data``."""

    root: Text
    module: Node
    prepare: Node | None


class Command(BaseModel):
    """Keys of all commands."""

    threads: Threads | None
    model: Model
    data: Data
    sampler: Sampler
    trainer: Node
    method: Node
    name: Text
    output: Text
    run_dir: Text
    seed: Seed
    objective: Objective


class Train(Command):
    """Keys of ``train``."""

    resume: Resume | Text | None
    export: Text
    matmul_precision: Literal["highest", "high", "medium"]
    callbacks: dict[str, Node | None]
    logger: dict[str, Node | None] | None


class Prepare(Command):
    """Keys of ``prepare``."""

    source: Text | None
    cache: Text | None
    shards: Text | None
    faces: bool
    restart: bool
    precompute: Node
    sharding: Node
    annotation: Node


class Generate(Command):
    """Keys of ``generate``."""

    checkpoint: Text | None
    settings: Text | None
    prompt: _Prompt | None
    references: References
    alpha: Fraction
    num_images: _Step
    seed: Annotated[int, Field(ge=0, lt=2**63)]  # type: ignore[assignment]  # of torch, not of numpy
    compile: Text | None


class Evaluate(Command):
    """Keys of ``evaluate``."""

    checkpoint: Text | None
    benchmark: Node
    methods: dict[str, Node]
    metrics: Metrics
    scoring: Node
    distances: Node
    logger: dict[str, Node | None] | None
    alphas: Annotated[list[Fraction], Field(min_length=1)]
    num_references: Annotated[int, Field(ge=1, le=5)]
    labels: dict[str, Scalar] | None
    batch_size: Count
    group_size: Count
    save_attention: bool
    fid: bool
    resume: Resume


class ExportCases(Command):
    """Keys of ``benchmark``."""

    benchmark: Node
    export: Text


class Score(Command):
    """Keys of ``score``."""

    images: Text
    manifest: Text | None
    method_name: MethodName
    version: Text | None
    note: Annotated[str, Field(max_length=4096)]
    reference_images: Annotated[int, Field(ge=1, le=5)]
    skip_missing: bool
    benchmark: Node
    metrics: Metrics
    scoring: Node
    resume: Resume


class Report(Command):
    """Keys of ``report``."""

    benchmark: Node | None
    jobs: Text | None
    baseline: Whole | None
    results: Text
    formats: Annotated[list[Literal["md", "csv", "tex", "html"]], Field(min_length=1)]
    alpha: Fraction
    readme: Text | None
    document: Text | None


class _Loader(BaseModel):
    records: Count
    side: Side


class _Reading(BaseModel):
    records: Count
    batch_size: Count
    workers: Annotated[list[Annotated[int, Field(ge=0, le=512)]], Field(min_length=1)]


class _Plan(BaseModel):
    devices: Annotated[list[Count], Field(min_length=1)]
    records: Annotated[list[Annotated[int, Field(ge=1, le=10**12)]], Field(min_length=1)]
    strategies: Annotated[list[Literal["ddp", "fsdp"]], Field(min_length=1)]
    machines: Node


class Bench(Command):
    """Keys of ``bench``."""

    suites: Annotated[list[Text], Field(min_length=1)]
    weights: Literal["pretrained", "random"]
    repeats: Annotated[int, Field(ge=1, le=10_000)]
    variants: list[Text] | None
    sampler_batches: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=1)]
    loader: _Loader
    reading: _Reading
    min_seconds: Annotated[float, Field(ge=0, le=86_400)]
    min_rounds: Annotated[int, Field(ge=1, le=10_000)]
    batch_size: Count
    document: Text | None
    step: Node
    startup: dict[str, list[Text]]
    plan: _Plan


class Demo(Command):
    """Keys of ``demo``."""

    checkpoint: Text
    server: Node
    limits: Node
    examples: Node | None


class Attention(Command):
    """Keys of ``attention``."""

    checkpoint: Text | None
    checkpoints: Annotated[list[Text | None], Field(min_length=1)]
    num_batches: Count
    resume: Resume


class Diagnose(Attention):
    """Keys of ``diagnose``."""

    names: list[Text] | None
    document: Text | None
    levels: Annotated[list[Annotated[float, Field(ge=0, le=999)]], Field(min_length=1)]
    fitted: Node
    metrics: Metrics


class Card(Command):
    """Keys of ``card``."""

    scenes: Node
    benchmark: Node
    num_scenes: Count
    num_generated: Count
    evaluation: Text | None
    checkpoint: Text
    twin: Text
    card: Text | None
    runs: Text
    alpha: Fraction


class Workspace(Command):
    """Keys of ``workspace``."""

    project: Text
    entity: Text | None


class Trainer(BaseModel):
    """Ranges of Lightning's Trainer, whose own signature has types alone."""

    accelerator: Text = "auto"
    devices: Annotated[int, Field(ge=-1, le=4096)] | Literal["auto"] | list[Whole] = "auto"
    num_nodes: Annotated[int, Field(ge=1, le=100_000)] = 1
    max_steps: Annotated[int, Field(ge=-1, le=10**9)] = -1
    max_epochs: Annotated[int, Field(ge=-1, le=10**9)] | None = None
    max_time: Annotated[str, Field(pattern=r"^\d+:\d\d:\d\d:\d\d$")] | None = None
    accumulate_grad_batches: Count = 1
    gradient_clip_val: Amount | None = None
    val_check_interval: _Limit | None = None
    check_val_every_n_epoch: Count | None = None
    limit_train_batches: _Limit | None = None
    limit_val_batches: _Limit | None = None
    num_sanity_val_steps: Annotated[int, Field(ge=-1, le=10**6)] | None = None
    log_every_n_steps: Count | None = None
    default_root_dir: Text | None = None
    strategy: Text = "auto"
    logger: bool = True
    enable_checkpointing: bool = True
    enable_progress_bar: bool = True
    enable_model_summary: bool = True


class Checkpoints(BaseModel):
    """Ranges of Lightning's ModelCheckpoint."""

    every_n_train_steps: Whole | None = None
    save_top_k: Annotated[int, Field(ge=-1, le=10_000)] = 1
    mode: Literal["min", "max"] = "min"


class CsvLog(BaseModel):
    """Ranges of Lightning's CSVLogger."""

    name: Text | None = None
    flush_logs_every_n_steps: Count = 100


_RANGES: dict[str, type[BaseModel]] = {
    "lightning.Trainer": Trainer,
    "fastcomposer.training.callbacks.ResumableCheckpoint": Checkpoints,
    "fastcomposer.training.loggers.ContinuedCSVLogger": CsvLog,
}
_COMMANDS: dict[str, type[Command]] = {
    one.__name__.lower(): one
    for one in (
        Train, Prepare, Generate, Evaluate, Score, Report,
        Bench, Demo, Attention, Diagnose, Card, Workspace
    )
} | {"benchmark": ExportCases}  # fmt: skip


def check_settings(config: DictConfig, command: str) -> None:
    """Refuse settings of another type or out of range by a ValueError that lists all of them.

    Args:
        config: Composed; its node ``hydra`` is left out.
        command: Which command's.
    """
    found = [*dict(_problems(config, command)).values()]
    if found:
        raise ValueError("\n  ".join(["these settings are not valid:", *found] if len(found) > 1 else found))


def _problems(config: DictConfig, command: str) -> Iterator[tuple[str, str]]:
    """Keys that are not valid, each with a message."""
    raw = OmegaConf.to_container(config, resolve=False)
    assert isinstance(raw, dict)
    raw.pop("hydra", None)
    unresolved: dict[str, str] = {}
    values = _resolved(config, raw, "", unresolved)
    for key, reason in unresolved.items():
        yield _origin(raw, key), f"{_origin(raw, key)}: {reason}"
    for key, value in _leaves(values, ""):
        if isinstance(value, float) and not math.isfinite(value):
            origin = _origin(raw, key)
            yield origin, f"{origin}={value}: takes no such number"
    fields = [*_fields(_COMMANDS[command], values, "")]
    own = {key for key, _, _ in fields}  # null may be valid there, and not for a node that stays unused
    for key, value, kind in (*fields, *_of_nodes(values, "")):
        origin = _origin(raw, key)
        if key not in own and origin in own:
            continue
        wanted = _mismatch(value, kind)
        if wanted:
            yield origin, f"{origin}={_shown(value)}: takes {wanted}"
    cores = os.cpu_count() or 1
    for key, node in _nodes(values, ""):
        devices = node.get("devices")
        on_cpu = node["_target_"] == "lightning.Trainer" and node.get("accelerator") == "cpu"
        if on_cpu and isinstance(devices, int) and devices > cores:
            yield f"{key}.devices", f"{key}.devices={devices}: this machine has {cores} CPU cores"


class _Missing:
    """Stands for a value that could not be resolved, or is still missing (``???``)."""


def _resolved(config: Any, raw: Any, path: str, unresolved: dict[str, str]) -> Any:
    """The values, each interpolation on its own."""
    if isinstance(raw, dict):
        found = {
            key: _resolved(config, value, f"{path}.{key}" if path else str(key), unresolved)
            for key, value in raw.items()
        }
        return {key: value for key, value in found.items() if value is not _Missing}
    if isinstance(raw, list):
        listed = [_resolved(config, value, f"{path}[{i}]", unresolved) for i, value in enumerate(raw)]
        return [value for value in listed if value is not _Missing]
    if raw == "???":
        return _Missing
    if not isinstance(raw, str) or "${" not in raw:
        return raw
    try:
        value = OmegaConf.select(config, path, throw_on_missing=False)
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        unresolved[path] = str(error).splitlines()[0].rpartition("interpolation: ")[2]
        return _Missing
    # A node is checked where it stands, and not again where it is referred to.
    return _Missing if any(_nodes(plain, "")) else plain


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _leaves(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _leaves(entry, f"{path}[{number}]")
    else:
        yield path, value


def _nodes(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All nodes with ``_target_``."""
    if isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _nodes(entry, f"{path}[{number}]")
    elif isinstance(value, dict):
        if isinstance(value.get("_target_"), str):
            yield path, value
        for key, entry in value.items():
            yield from _nodes(entry, f"{path}.{key}" if path else str(key))


def _fields(model: type[BaseModel], values: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Key, value and type of every field that is there."""
    if not isinstance(values, dict):
        yield path, values, dict[str, Any]
        return
    forbidden = model.model_config.get("extra") == "forbid"
    for key, value in values.items():
        name = f"{path}.{key}" if path else str(key)
        field = model.model_fields.get(key)
        if field is None:
            if forbidden:
                yield name, value, Literal["no such key"]
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, value, name)
        else:
            yield name, value, _kind(field)


def _of_nodes(values: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Key, value and type of the arguments of every node, but for those that hold nodes."""
    for where, node in _nodes(values, path):
        own = _RANGES[node["_target_"]].model_fields if node["_target_"] in _RANGES else {}
        types = {**parameters(node["_target_"]), **{key: _kind(field) for key, field in own.items()}}
        for key in node:
            if types.get(key, Any) is not Any and not any(_nodes(node[key], "")):
                yield f"{where}.{key}", node[key], types[key]


def _kind(field: FieldInfo) -> Any:
    return Annotated[field.annotation, field] if field.metadata else field.annotation


def _mismatch(value: Any, kind: Any) -> str | None:
    """What a type takes, where a value is not of it."""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind, config=_STRICT)
    except PydanticSchemaGenerationError:
        return None
    try:
        # As JSON, lists are tuples and texts are paths; 1 is a float, but neither true nor "1" is a number.
        adapter.validate_json(json.dumps(value))
    except ValidationError as error:
        own = [
            one["msg"].removeprefix("Value error, ") for one in error.errors() if one["type"] == "value_error"
        ]
        return own[0] if own else _described(kind, adapter)
    return None


def _described(kind: Any, adapter: TypeAdapter[Any]) -> str:
    try:
        return _in_words(adapter.json_schema())
    except PydanticInvalidForJsonSchema:
        return "a node with _target_" + ", or null" * ("None" in str(kind))


def _in_words(schema: Mapping[str, Any]) -> str:
    """A JSON schema as a phrase, such as ``a whole number from 1 to 1000, or null``."""
    if "anyOf" in schema:
        options = dict.fromkeys(map(_in_words, schema["anyOf"]))
        return " or ".join(options)
    if "enum" in schema or "const" in schema:
        choices = schema.get("enum", [schema.get("const")])
        return ("one of " if len(choices) > 1 else "") + ", ".join(map(str, choices))
    kind = schema.get("type")
    low, high = schema.get("minimum"), schema.get("maximum")
    over = schema.get("exclusiveMinimum")
    span = f" from {low:,}" if low is not None else f" above {over:,}" if over is not None else ""
    below = schema.get("exclusiveMaximum")
    span += f" to {high:,}" if high is not None else f" below {below:,}" if below is not None else ""
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + span
    if kind == "array":
        items = schema.get("items") or {"anyOf": schema.get("prefixItems", [])}
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        entries = re.sub("^a (text|whole number|number)", r"\1s", _in_words(items))
        if least and least == most:
            return f"a list of {least} {entries}"
        return f"a list of {entries}" + f", at least {least}" * bool(least)
    if kind == "string":
        return "a text" + (f" like {schema['pattern']}" if "pattern" in schema else "")
    return {"boolean": "true or false", "null": "null", "object": "a mapping"}.get(str(kind), "other values")


def _origin(raw: Any, key: str) -> str:
    """The key that a user sets, where a value is an interpolation of it."""
    found = re.fullmatch(r"\$\{(?:oc\.select:)?([\w.]+)(?:,\w*)?\}", str(_at(raw, key)))
    return _origin(raw, found[1]) if found and _at(raw, found[1]) is not _Missing else key


def _at(node: Any, key: str) -> Any:
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(node, list):
            node = node[int(part)]
        else:
            node = node.get(part, _Missing) if isinstance(node, dict) else _Missing
    return node


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"
