"""Trained weights divided among all devices (FSDP2), where one has no room for them and their optimizer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from fastcomposer.composer import FastComposer


class ShardedStrategy(ModelParallelStrategy):
    """Every device computes its share of the batch and keeps its share of weights, gradients and optimizer.

    Checkpoints are whole files as those of other strategies: a training goes on with any of them.

    Args:
        **options: Further arguments of :class:`lightning.pytorch.strategies.ModelParallelStrategy`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        """Start the processes, and divide among all of them."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(model: FastComposer, mesh: DeviceMesh) -> None:
    """Divide a model's trained weights, block by block of the U-Net; those that are frozen stay whole.

    Args:
        model: The model, whose :meth:`~FastComposer.training_losses` gathers each block while it needs it.
        mesh: The devices.
    """
    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    unet = model.unet
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    for part in (*blocks, model):
        if any(parameter.requires_grad for parameter in part.parameters()):
            # Divided again after a validation, too, for the moving average takes the shares' place there.
            fully_shard(part, mesh=mesh, ignored_params=frozen, reshard_after_forward=True)
    register_fsdp_forward_method(model, "training_losses")


def whole(value: Tensor) -> Tensor:
    """Gather a tensor of which each process has a share; all processes have to ask together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def share(value: Tensor) -> Tensor:
    """What this process has of a tensor, to be read or changed in place."""
    if not isinstance(value, DTensor):
        return value
    local: Tensor = value.detach().to_local()  # type: ignore[attr-defined]
    return local.requires_grad_(value.requires_grad)


def share_of(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """This process's share of a whole tensor, divided as a parameter is."""
    if not isinstance(parameter, DTensor):
        return value
    placed = value.to(parameter.device)
    return share(distribute_tensor(placed, parameter.device_mesh, parameter.placements))


def gathered(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """Gather a tensor of which each process has the share that it has of a parameter; see :func:`whole`."""
    if not isinstance(parameter, DTensor):
        return value
    divided = DTensor.from_local(
        value,
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return whole(divided)
