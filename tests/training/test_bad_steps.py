"""Steps with losses that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback

from fastcomposer.training.recipe import NonFiniteLossError

Make = Callable[..., Any]


class _Poison(Callback):
    """Makes the gradients of chosen steps NaN."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step in self.steps:
            for parameter in pl_module.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))


def test_single_bad_steps_pass_and_leave_finite_weights(
    make_module: Make, make_data: Make, make_trainer: Make
) -> None:
    module = make_module()
    make_trainer(max_steps=6, callbacks=[_Poison({2, 4})]).fit(module, make_data())
    assert module.global_step == 6
    assert all(
        value.isfinite().all() for value in module.model.state_dict().values() if value.is_floating_point()
    )


class _Seen(Callback):
    """Notes the records of each batch."""

    def __init__(self) -> None:
        self.records: list[tuple[str, ...]] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.records.append(batch.record_ids)


@pytest.mark.parametrize("parts", [1, 3])
def test_lasting_bad_steps_end_the_training_and_name_records(
    parts: int, make_module: Make, make_data: Make, make_trainer: Make
) -> None:
    module, seen = make_module(max_bad_steps=3), _Seen()
    callbacks = [_Poison(set(range(2, 20))), seen]
    trainer = make_trainer(max_steps=20, callbacks=callbacks, accumulate_grad_batches=parts)
    with pytest.raises(NonFiniteLossError, match=r"4 steps in a row.*method\.optimizer\.lr") as end:
        trainer.fit(module, make_data())
    assert len(seen.records) == 6 * parts
    last = [name for batch in seen.records[-parts:] for name in batch]
    assert len(last) == 2 * parts
    assert str(end.value).endswith(f"the records of the last batch: {', '.join(last)}")
