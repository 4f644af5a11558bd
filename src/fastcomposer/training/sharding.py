"""Trained weights sharded over all devices (FSDP2), where one has no room for them and their optimizer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from fastcomposer.composer import FastComposer


class ShardedStrategy(ModelParallelStrategy):
    """Every device computes a part of the batch and keeps a shard of weights, gradients and optimizer.

    Checkpoints are full files as those of other strategies: a training resumes with any of them.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        """Start the processes, and shard over all of them."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(model: FastComposer, mesh: DeviceMesh) -> None:
    """Shard a model's trained weights, stage by stage of the backbone; frozen weights stay full tensors."""
    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    for part in (*model.family.stages, model):
        if any(parameter.requires_grad for parameter in part.parameters()):
            # Resharded after a validation, too, for the moving average replaces the local shards there.
            fully_shard(part, mesh=mesh, ignored_params=frozen, reshard_after_forward=True)
    register_fsdp_forward_method(model, "training_losses")


def full_tensor(value: Tensor) -> Tensor:
    """Gather a tensor of which each process has a shard; all processes have to call it together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local_shard(value: Tensor) -> Tensor:
    """What this process has of a tensor, to be read or changed in place."""
    if not isinstance(value, DTensor):
        return value
    local: Tensor = value.detach().to_local()  # type: ignore[attr-defined]
    return local.requires_grad_(value.requires_grad)


def shard_like(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """This process's shard of a full tensor, sharded as a parameter is."""
    if not isinstance(parameter, DTensor):
        return value
    placed = value.to(parameter.device)
    return local_shard(distribute_tensor(placed, parameter.device_mesh, parameter.placements))


def gather_like(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """Gather a tensor that is sharded as a parameter is; see :func:`full_tensor`."""
    if not isinstance(parameter, DTensor):
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    sharded = DTensor.from_local(value, mesh, placements, shape=parameter.shape, stride=parameter.stride())
    return full_tensor(sharded)
