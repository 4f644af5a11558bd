"""All scenes of a small data set in memory, for training the embedded base and the metric models."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from fastcomposer.data.index import RecordIndex
from fastcomposer.data.records import RecordError, read_record
from fastcomposer.utils.ranges import Count, Seed


@dataclass
class SceneBatch:
    """Scenes with their truth."""

    pixel_values: Tensor  # (B, 3, S, S) float in [-1, 1]
    segment_maps: Tensor  # (B, S, S) uint8; 0 is background
    heads: Tensor  # (B, K, 4) float, x1, y1, x2, y2 in pixels; empty slots are zero
    present: Tensor  # (B, K) bool, slots that hold a person
    identities: Tensor  # (B, K) long, number of the identity in the bank; -1 in empty slots
    index: Tensor  # (B,) long, positions in the bank, where captions are kept

    def __len__(self) -> int:
        return len(self.index)

    def flipped(self, flip: Tensor) -> SceneBatch:
        """Mirror the scenes where ``flip`` (B,) is true."""
        size = self.pixel_values.shape[-1]
        heads = self.heads.clone()
        heads[..., 0], heads[..., 2] = size - self.heads[..., 2], size - self.heads[..., 0]
        mirror = flip[:, None, None]
        return replace(
            self,
            pixel_values=torch.where(mirror[..., None], self.pixel_values.flip(-1), self.pixel_values),
            segment_maps=torch.where(mirror, self.segment_maps.flip(-1), self.segment_maps),
            heads=torch.where(mirror & self.present[..., None], heads, self.heads),
        )


class SceneBank:
    """The scenes of one split of a data folder made by ``prepare data=avatars``, decoded once.

    A scene has at most ``slots`` people; ``identity_names`` are in the order of their numbers.

    Raises:
        RecordError: If a record has no ``rich_caption`` or ``heads``, as only rendered scenes have.
    """

    def __init__(self, root: str | Path, split: str, slots: int = 3) -> None:
        self.root = root
        index = RecordIndex(root, split)
        with ThreadPoolExecutor(4) as pool:
            loaded = list(pool.map(lambda name: read_record(root, name), index.record_ids))
        for item in loaded:
            if not {"rich_caption", "heads"} <= item.record.extra.keys():
                raise RecordError(
                    f"{root}: record {item.record.record_id} has no rich_caption or heads: not a scene"
                )
        self.captions = [item.record.caption for item in loaded]
        self.rich_captions = [str(item.record.extra["rich_caption"]) for item in loaded]
        images = torch.from_numpy(np.stack([item.image for item in loaded]))
        self.images = images.permute(0, 3, 1, 2).contiguous()
        self.maps = torch.from_numpy(np.stack([item.segment_map for item in loaded]).astype(np.uint8))
        self.heads = torch.zeros(len(loaded), slots, 4)
        self.identities = torch.full((len(loaded), slots), -1)
        numbers: dict[str | None, int] = {}
        for row, item in enumerate(loaded):
            people = zip(item.record.segments, item.record.extra["heads"], strict=True)
            for slot, (segment, head) in enumerate(people):
                self.heads[row, slot] = torch.tensor(head)
                self.identities[row, slot] = numbers.setdefault(segment.identity, len(numbers))
        self.identity_names = tuple(numbers)

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, index: Tensor) -> SceneBatch:
        """Return the scenes at some positions."""
        identities = self.identities[index]
        return SceneBatch(
            pixel_values=self.images[index].float() / 127.5 - 1,
            segment_maps=self.maps[index],
            heads=self.heads[index],
            present=identities >= 0,
            identities=identities,
            index=index,
        )


class _SeededBatches(Sampler[list[int]]):
    """Batches that depend on (seed, step) alone, so that a resumed run continues with the right ones.

    A step has one batch for each of ``world_size`` processes, without common scenes.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.step, self.rank, self.world_size = 0, 0, 1

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            generator = np.random.default_rng([self.seed, self.step])
            self.step += 1
            number = min(self.batch_size * self.world_size, self.size)
            rows = generator.choice(self.size, number, replace=False)
            yield rows[self.rank :: self.world_size].tolist()


class SceneDataModule(L.LightningDataModule):
    """Endless seeded batches of scenes, mirrored half of the time, and the held-out ones for validation.

    Args:
        root: Data folder made by ``prepare data=avatars``.
        batch_size: Scenes in a batch.
        seed: Seed of order and mirroring.
        num_validation: Number of held-out scenes to measure on.
    """

    def __init__(
        self, root: str | Path, batch_size: Count, seed: Seed = 0, num_validation: Count = 512
    ) -> None:
        super().__init__()
        self.root, self.batch_size, self.seed = root, batch_size, seed
        self.num_validation = num_validation

    @cached_property
    def train(self) -> SceneBank:
        """Training scenes, read at first use."""
        return SceneBank(self.root, "train")

    @cached_property
    def test(self) -> SceneBank:
        """Held-out scenes, read at first use."""
        return SceneBank(self.root, "test")

    def train_dataloader(self) -> DataLoader[int]:
        """Loader that continues after the steps that a checkpoint has done."""
        bank = self.train
        batches = _SeededBatches(len(bank), self.batch_size, self.seed)
        if (trainer := self.trainer) is not None:
            batches.step = trainer.global_step * trainer.accumulate_grad_batches
            batches.rank, batches.world_size = trainer.global_rank, trainer.world_size

        def collate(index: list[int]) -> SceneBatch:
            flip = torch.from_numpy(np.random.default_rng([self.seed, *index[:4]]).random(len(index)) < 0.5)
            return bank.batch(torch.tensor(index)).flipped(flip)

        return DataLoader(range(len(bank)), batch_sampler=batches, collate_fn=collate)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[int]:
        """Loader over held-out scenes, in order."""
        bank = self.test
        rows: Any = range(min(self.num_validation, len(bank)))
        return DataLoader(rows, 64, collate_fn=lambda index: bank.batch(torch.tensor(index)))
