"""Training of the identity embedder, a metric model of the mini world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import BinaryAUROC

from fastcomposer.data.records import RecordError
from fastcomposer.miniworld.degradation import blur, jitter_boxes, jitter_colors, occlude, soften
from fastcomposer.miniworld.embedder import IdentityEmbedder, pair_up
from fastcomposer.miniworld.part_module import PartModule, save_half
from fastcomposer.miniworld.scene_dataset import SceneBank, SceneBatch
from fastcomposer.training.base_module import OptimizerFactory
from fastcomposer.utils.ranges import Amount, Fraction, Positive


def margin_loss(embeddings: Tensor, proxies: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """Softmax over cosines with a margin at the right class (Wang et al. 2018, "CosFace", equation 4).

    Embeddings are (N, d) unit vectors; proxies (C, d), of any length; labels (N,) long. ``scale`` is the
    inverse temperature s; by the margin m the right cosine must lead.
    """
    cosine = embeddings @ F.normalize(proxies, dim=-1).T
    return F.cross_entropy(scale * (cosine - margin * F.one_hot(labels, len(proxies))), labels)


class EmbedderModule(PartModule):
    """Classify the people of the training split by heads that are soft, noisy and partly hidden.

    The loss is a softmax over all of them with a margin on the sphere (CosFace), as in face verification:
    training and use both compare vectors by their cosine, every step compares a head with everybody, and the
    margin carries over to strangers (Wang et al. 2018; Deng et al. 2019). The proxy of a person is the sum of
    learned vectors for skin, hair, hair colour and beard: a stranger is a new combination of known features,
    and each vector learns from thousands of heads, where the proxy of one person would learn from ten.

    People who differ in nose or brows only are one class, because these are a pixel or two in a scene. The
    embedder does not distinguish them.

    Args:
        embedder: The embedder.
        optimizer: Makes the optimizer.
        scale: Inverse temperature of the softmax.
        margin: Lead in cosine that the right class must have.
        color_jitter: Range of contrast and of each colour's brightness, relative to 1; small, because colour
            is identity here.
        box_jitter: Range of each side of a box, relative to the box.
        occlusion: Fraction of heads that are partly hidden.
        max_hidden: Largest fraction of such a head's box that is hidden.
        max_blur: Largest standard deviation in pixels of the Gaussian blur of the images, above that which
            all heads get; for an embedder of predictions at high noise levels. 0 for none.
        subfolder: Name of the folder that the weights go to.
        **recipe: Further arguments of :class:`RecipeModule`.

    Raises:
        ValueError: If ``occlusion`` or ``max_hidden`` is not between 0 and 1.
    """

    PART = "embedder"
    LOGGED = ("train/loss", "val/auc", "val/gap")

    def __init__(
        self,
        embedder: IdentityEmbedder,
        optimizer: OptimizerFactory,
        scale: Positive = 16.0,
        margin: Fraction = 0.2,
        color_jitter: Fraction = 0.06,
        box_jitter: Fraction = 0.06,
        occlusion: Fraction = 0.5,
        max_hidden: Fraction = 0.4,
        max_blur: Amount = 0.0,
        subfolder: str = "embedder",
        **recipe: Any,
    ) -> None:
        super().__init__(optimizer, **recipe)
        for name, value in (("occlusion", occlusion), ("max_hidden", max_hidden)):
            if not 0 <= value <= 1:
                raise ValueError(f"method.{name}={value}: a fraction between 0 and 1")
        self.embedder = embedder
        self.scale, self.margin = scale, margin
        self.color_jitter, self.box_jitter = color_jitter, box_jitter
        self.occlusion, self.max_hidden, self.max_blur = occlusion, max_hidden, max_blur
        self.subfolder = subfolder
        self.auroc = BinaryAUROC()

    def setup(self, stage: str) -> None:
        """List the looks of the training split and give each of their features a vector."""
        self.labels, self.looks = list_looks(self.scenes.train)
        generator = torch.Generator().manual_seed(self.seed)
        count, width = int(self.looks.max()) + 1, self.embedder.config.embed_dim
        self.parts = nn.Parameter(torch.randn(count, width, generator=generator) / width**0.5)

    def proxies(self) -> Tensor:
        """Sum the vectors of each look's features, (C, d)."""
        return self.parts[self.looks.to(self.device)].sum(1)

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        """Classify the heads of a batch of scenes."""
        generator = self.step_generator()
        images = jitter_colors((batch.pixel_values + 1) / 2, self.color_jitter, generator)
        images = soften(images, generator)
        if self.max_blur:
            images = blur(images, self.max_blur, generator)
        sample, slot = torch.nonzero(batch.present, as_tuple=True)
        boxes = batch.heads[sample, slot]
        draws = torch.rand(2, len(sample), generator=generator, device=self.device)
        shares = self.max_hidden * draws[0] * (draws[1] < self.occlusion)
        heads = occlude(images[sample], boxes, shares, generator)
        crops = self.embedder.crop(heads, jitter_boxes(boxes, self.box_jitter, generator))
        labels = self.labels[batch.index.cpu()].to(self.device)[sample, slot]
        loss = margin_loss(self.embedder(crops), self.proxies(), labels, self.scale, self.margin)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: SceneBatch, batch_idx: int) -> None:
        """Verify held-out people: is it the same person in two images?"""
        sample, slot = torch.nonzero(batch.present, as_tuple=True)
        with self.averaged_weights():
            images = (batch.pixel_values + 1) / 2
            vectors = self.embedder.embed(images[sample], batch.heads[sample, slot])
        pairs = pair_up(vectors, batch.identities[sample, slot], sample[:, None] != sample)
        self.auroc.update(pairs.cosine, pairs.same.long())
        self.log("val/auc", self.auroc, prog_bar=True)
        self.log("val/gap", pairs.gap, batch_size=len(sample), prog_bar=True)

    def write(self, folder: Path) -> None:
        """Write the embedder into the subfolder."""
        save_half(self.embedder, folder / self.subfolder)


def visible_features(identity: str) -> tuple[str, ...]:
    """List what distinguishes an identity at the size of a scene: skin, hair, hair colour and beard.

    Its name in a record joins word, skin, hair, hair colour, beard, nose and brows by hyphens; any other name
    counts as one feature. The colour is unseen without hair and beard.
    """
    parts = identity.split("-")
    if len(parts) != 7:
        return (identity,)
    word, skin, hair, color, beard, _, _ = parts
    shown = "unseen" if hair == beard == "none" else color
    return f"skin {skin}", f"hair {word} {hair}", f"color {shown}", f"beard {beard}"


def list_looks(bank: SceneBank) -> tuple[Tensor, Tensor]:
    """Number the looks of a bank's slots, (N, K), -1 in empty ones, and the features of each look, (C, F)."""
    seen = [visible_features(str(name)) for name in bank.identity_names]
    looks = {look: number for number, look in enumerate(dict.fromkeys(seen))}
    if len({len(look) for look in looks}) > 1:
        raise RecordError(f"{bank.root}: some identities list their features by hyphens and some do not")
    look_of = torch.tensor([looks[look] for look in seen])
    labels = torch.where(bank.identities >= 0, look_of[bank.identities], -1)
    features = {name: number for number, name in enumerate(dict.fromkeys(n for look in looks for n in look))}
    return labels, torch.tensor([[features[name] for name in look] for look in looks])
