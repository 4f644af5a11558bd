"""Trainings on faces are refused where the records have none, or where they would train on the scorer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from configurations import composed

from fastcomposer.cli.train import check_embedders, check_faces
from fastcomposer.data.index import RecordIndex
from fastcomposer.data.records import record_path


def test_faces_are_looked_for_all_over_the_records(world: Path, tmp_path: Path) -> None:
    world = Path(shutil.copytree(world, tmp_path / "world"))
    config = composed("train", "experiment=mini_id", f"data.root={world}")
    data = SimpleNamespace(train_dataset=SimpleNamespace(index=RecordIndex(world, "train")))
    table = data.train_dataset.index
    check_faces(config, data)
    contents = {name: json.loads(record_path(world, name, ".json").read_bytes()) for name in table.record_ids}
    for name in table.record_ids[:-1]:
        record_path(world, name, ".json").write_text(json.dumps({**contents[name], "heads": None}))
    check_faces(config, data)  # the last one has faces
    last = table.record_ids[-1]
    record_path(world, last, ".json").write_text(json.dumps({**contents[last], "heads": None}))
    with pytest.raises(ValueError, match=r"identity, readout: .*faces=true"):
        check_faces(config, data)
    check_faces(composed("train", "experiment=mini"), data)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["experiment=mini_id", "identity.loss.embedder.subfolder=embedder"], "identity"),
        (["experiment=mini_id", "readout.loss.embedder.subfolder=embedder"], "readout"),
        (["metrics=paper", "reward=matching", "metrics.faces.weights=casia-webface"], "reward"),
    ],
)
def test_the_embedder_that_scores_is_not_trained_on(overrides: list[str], key: str) -> None:
    more = [] if "metrics=paper" in overrides else ["metrics=mini"]
    with pytest.raises(ValueError, match=rf"{key}\.loss\.embedder"):
        check_embedders(composed("train", *overrides, *more))
    check_embedders(composed("train", *overrides[: 2 - len(more)], *more))
