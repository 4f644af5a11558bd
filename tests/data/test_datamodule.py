from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from toy_records import LEFT, add_record

from fastcomposer.batch import SubjectBatch
from fastcomposer.cli.common import message_of
from fastcomposer.data.datamodule import SubjectDataModule
from fastcomposer.data.records import RecordError, write_ids
from fastcomposer.data.samplers import EpochSampler
from fastcomposer.data.transforms import PUBLISHED

Seen = list[tuple[tuple[str, ...], float]]


def module(folder: Path, tokenizer: Any, **changes: Any) -> SubjectDataModule:
    settings: dict[str, Any] = {"resolution": 24, "reference_size": 24, "batch_size": 2}
    return SubjectDataModule(folder, **({"tokenizer": tokenizer} | settings | changes))


# --- construction ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"num_workers": -1}, "num_workers must not be negative"),
        ({"train_split": "val"}, "split must be one of train, test, all, not 'val'"),
        ({"reference_size": 20}, r"reference_size 20 must exceed 20 .* set augmentation\.elastic=0"),
        ({"resolution": 100}, r"data\.module\nresolution\n"),
        ({"reference": "other"}, r"data\.module\nreference\n"),
        ({"labels": "person"}, r"data\.module\nlabels\n"),
        ({"train_share": 0}, r"data\.module\ntrain_share\n"),
        ({"seed": -1}, r"data\.module\nseed\n"),
        ({"share": 0.5}, r"data\.module\nshare\n"),  # no such key
    ],
)
def test_settings_are_checked_at_construction(
    folder: Path, tokenizer: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        module(folder, tokenizer, **changes)


def test_all_bad_settings_are_reported_in_one_line(folder: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="2 validation errors") as end:
        module(folder, tokenizer, flip=2, seed=-1)
    message = message_of(end.value)
    assert re.fullmatch(r"data\.module: flip: [^\n]*, not 2; seed: [^\n]*, not -1", str(message))


def test_labels_that_nobody_has_are_refused(folder: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"data\.module\.labels=\['persn'\]: no segment of split 'train'"):
        module(folder, tokenizer, labels=["persn"]).setup("fit")
    for labels in ([], ["persn", "person"], None):
        module(folder, tokenizer, labels=labels).setup("fit")


def test_missing_data_is_found_at_construction(folder: Path, tokenizer: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"root: no data folder at .*/nowhere"):
        module(folder / "nowhere", tokenizer)
    write_ids(folder, "train", [])
    with pytest.raises(RecordError, match=r"image_ids_train\.txt: id list: holds no ids"):
        module(folder, tokenizer)
    (folder / "image_ids_test.txt").unlink()
    with pytest.raises(RecordError, match=r"image_ids_test\.txt: id list: file is missing"):
        module(folder, tokenizer, train_split="all")
    assert module(folder, tokenizer, train_split="all", val_split=None).val_dataloader() == []


def test_an_epoch_smaller_than_a_batch_is_an_error(folder: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="8 records of split 'train' do not fill one batch of 9 on 1"):
        module(folder, tokenizer, batch_size=9).train_dataloader()


# --- order -------------------------------------------------------------------------------------------------


def passes(sampler: EpochSampler, epoch: int = 0) -> list[tuple[int, int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


def sampler_of(records: int, batch_size: int, **options: Any) -> EpochSampler:
    return EpochSampler(range(records), batch_size, **options)  # type: ignore[arg-type]


def test_an_epoch_is_a_permutation_of_its_own() -> None:
    sampler = sampler_of(11, 1, seed=3)
    orders = [[index for _, index in passes(sampler, epoch)] for epoch in range(3)]
    assert [sorted(order) for order in orders] == [list(range(11))] * 3
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert passes(sampler, 2) == [(2, index) for index in orders[2]]
    assert passes(sampler_of(11, 1, seed=4)) != passes(sampler)


def test_global_batches_are_the_same_on_any_number_of_processes() -> None:
    alone = [index for _, index in passes(sampler_of(11, 4, seed=3))]
    pair = [sampler_of(11, 2, num_replicas=2, rank=rank, seed=3) for rank in range(2)]
    assert [len(alone), *map(len, pair)] == [8, 4, 4]
    shares = [[index for _, index in passes(sampler)] for sampler in pair]
    for batch in range(2):
        together = {index for share in shares for index in share[2 * batch : 2 * batch + 2]}
        assert together == set(alone[4 * batch : 4 * batch + 4])


def test_a_pass_begins_anywhere_and_continues_into_the_next_epoch() -> None:
    plain = sampler_of(9, 2, num_replicas=2, rank=1)  # 2 batches of 2 an epoch
    stream = [pair for epoch in range(4) for pair in passes(plain, epoch)]
    assert len(stream) == 16
    for start in range(6):
        sampler = sampler_of(9, 2, num_replicas=2, rank=1, position=lambda start=start: start)
        assert list(sampler) == list(sampler) == stream[2 * start : 2 * start + 4]


def test_loaders(folder: Path, tokenizer: Any) -> None:
    data = module(folder, tokenizer, batch_size=3)
    train = data.train_dataloader()
    assert len(train) == 2  # of 8 records; the rest is dropped
    state = torch.get_rng_state()
    batches = list(train)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(batch) for batch in batches] == [3, 3]
    assert len({name for batch in batches for name in batch.record_ids}) == 6
    first, second = (list(data.val_dataloader()) for _ in range(2))
    assert [batch.record_ids for batch in first] == [("0000008", "0000009")]
    assert torch.equal(first[0].subject_pixel_values, second[0].subject_pixel_values)
    assert data.train_dataset.reference_transform.augmentation == PUBLISHED  # type: ignore[union-attr]
    assert data.val_dataset.reference_transform.augmentation is None  # type: ignore[union-attr]


# --- resuming ----------------------------------------------------------------------------------------------


class Probe(pl.LightningModule):
    """Trains a single number and writes down what it is given."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: Seen = []
        self.fail_at = fail_at

    def training_step(self, batch: SubjectBatch, batch_idx: int) -> torch.Tensor:
        if self.global_step == self.fail_at:
            raise RuntimeError("interrupted")
        content = float(batch.subject_pixel_values.sum() + batch.pixel_values.sum())
        self.seen.append((batch.record_ids, content))
        return self.weight * 1.0

    def validation_step(self, batch: SubjectBatch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Keep(LambdaCallback):
    """Saves a checkpoint at every occasion that Lightning offers."""

    def __init__(self, folder: Path) -> None:
        def saving(name: str) -> Callable[..., None]:
            return lambda trainer, *args: trainer.save_checkpoint(
                folder / f"{name}-{trainer.global_step}.ckpt"
            )

        super().__init__(
            on_train_epoch_start=saving("epoch-start"),
            on_train_batch_end=saving("batch-end"),
            on_validation_end=saving("validation-end"),
            on_train_epoch_end=saving("epoch-end"),
            on_exception=saving("exception"),
            on_train_end=saving("end"),
        )


def fit(
    data: SubjectDataModule,
    *,
    checkpoint: Path | None = None,
    keep: Path | None = None,
    fail_at: int | None = None,
    **trainer: Any,
) -> Seen:
    probe = Probe(fail_at)
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    runner = pl.Trainer(**(options | trainer), callbacks=[Keep(keep)] if keep else [])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*dataloader is not resumable.*")
        warnings.filterwarnings("ignore", message=".*num_workers.*|.*logging interval.*|.*val_loop.*")
        runner.fit(probe, data, ckpt_path=checkpoint, weights_only=False)
    return probe.seen


BY_STEPS: dict[str, Any] = {"max_steps": 10}
BY_EPOCHS: dict[str, Any] = {"max_epochs": 3}
VALIDATING: dict[str, Any] = {"max_epochs": 3, "limit_val_batches": 1, "val_check_interval": 2}


@pytest.mark.parametrize("limits", [BY_STEPS, BY_EPOCHS, VALIDATING], ids=["steps", "epochs", "validating"])
def test_a_resumed_run_sees_the_batches_that_would_have_come(
    folder: Path, tokenizer: Any, tmp_path: Path, limits: dict[str, Any]
) -> None:
    kept = tmp_path / "kept"
    straight = fit(module(folder, tokenizer), keep=kept, **limits)  # 4 batches an epoch
    assert len(straight) == limits.get("max_steps", 12)
    assert len({content for _, content in straight}) == len(straight)
    checkpoints = sorted(kept.iterdir())
    assert len(checkpoints) >= 16
    for checkpoint in checkpoints:
        step = int(checkpoint.stem.split("-")[-1])
        resumed = fit(module(folder, tokenizer), checkpoint=checkpoint, **limits)
        wanted = straight[step:]
        if checkpoint.stem.startswith("epoch-start"):  # from these the trainer itself may stop too soon
            wanted = wanted[: len(resumed)]
        assert resumed == wanted, checkpoint.stem


def test_resuming_with_workers_that_outlive_an_epoch(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    straight = fit(module(folder, tokenizer), max_steps=10)
    first = fit(module(folder, tokenizer, num_workers=2), keep=tmp_path, max_steps=3)
    checkpoint = tmp_path / "batch-end-3.ckpt"
    second = fit(module(folder, tokenizer, num_workers=2), keep=tmp_path, checkpoint=checkpoint, max_steps=8)
    checkpoint = tmp_path / "end-8.ckpt"  # the end of an epoch
    third = fit(module(folder, tokenizer, num_workers=2), checkpoint=checkpoint, max_steps=10)
    assert first + second + third == straight
    assert [len(part) for part in (first, second, third)] == [3, 5, 2]


@pytest.mark.parametrize("step", [0, 4, 7])
def test_an_interrupted_step_is_repeated(folder: Path, tokenizer: Any, tmp_path: Path, step: int) -> None:
    straight = fit(module(folder, tokenizer), max_steps=9)
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(module(folder, tokenizer), keep=tmp_path, fail_at=step, max_steps=9)
    resumed = fit(module(folder, tokenizer), checkpoint=tmp_path / f"exception-{step}.ckpt", max_steps=9)
    assert resumed == straight[step:]


def test_every_step_accumulates_as_many_batches(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    straight = fit(module(folder, tokenizer), max_steps=15)  # 4 batches an epoch
    assert fit(module(folder, tokenizer), keep=tmp_path, max_steps=5, accumulate_grad_batches=3) == straight
    fit(module(folder, tokenizer), keep=tmp_path, max_steps=3, accumulate_grad_batches=3)
    settings: dict[str, Any] = {"checkpoint": tmp_path / "end-3.ckpt", "accumulate_grad_batches": 3}
    assert fit(module(folder, tokenizer), max_steps=5, **settings) == straight[9:]
    assert len(fit(module(folder, tokenizer), max_steps=2, accumulate_grad_batches=9)) == 18


def test_resuming_with_another_batch_size(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    straight = fit(module(folder, tokenizer), keep=tmp_path, max_steps=8)
    checkpoint = tmp_path / "batch-end-6.ckpt"
    resumed = fit(module(folder, tokenizer, batch_size=4), checkpoint=checkpoint, max_steps=8)
    assert resumed[0][0] == straight[6][0] + straight[7][0]
    assert len(resumed) == 2


def test_a_run_from_shards_resumes_within_an_epoch(streamed: Callable[..., Any], tmp_path: Path) -> None:
    straight = fit(streamed(window=2), keep=tmp_path, max_steps=10)
    assert len({content for _, content in straight}) == 10
    for step, num_workers in ((2, 0), (7, 2)):
        checkpoint = tmp_path / f"batch-end-{step}.ckpt"
        resumed = fit(streamed(window=2, num_workers=num_workers), checkpoint=checkpoint, max_steps=10)
        assert resumed == straight[step:]


def test_a_fresh_run_after_a_resumed_one_begins_at_the_beginning(
    folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    straight = fit(module(folder, tokenizer), keep=tmp_path, max_steps=5)
    data = module(folder, tokenizer)
    assert fit(data, checkpoint=tmp_path / "batch-end-2.ckpt", max_steps=5) == straight[2:]
    assert fit(data, max_steps=5) == straight


def test_resuming_with_other_data(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    fit(module(folder, tokenizer), keep=tmp_path, max_steps=2)
    checkpoint = tmp_path / "end-2.ckpt"
    with pytest.raises(ValueError, match=r"data\.seed is 1, but the checkpoint was trained with 42"):
        fit(module(folder, tokenizer, seed=1), checkpoint=checkpoint, max_steps=3)
    add_record(folder, "0000010", LEFT)
    write_ids(folder, "train", [f"{number:07d}" for number in (0, 1, 2, 3, 10, 5)])
    with pytest.warns(UserWarning, match="resumed with 6 records instead of 8"):
        assert len(fit(module(folder, tokenizer), checkpoint=checkpoint, max_steps=3)) == 1
