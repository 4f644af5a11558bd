"""Scenes of the mini world: one to three people at a place, with exact masks and two captions.

A scene is a function of (seed, split, index) alone: any subset can be rendered again, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image

from fastcomposer.miniworld.avatars import (
    ACCESSORIES,
    CANVAS,
    CLOTHES,
    CLOTHING_COLORS,
    HEAD_BOX,
    Appearance,
    Identity,
    render_avatar,
)
from fastcomposer.miniworld.scenery import CONTEXTS, STYLES, apply_style, draw_background
from fastcomposer.utils.ranges import Count, Fraction, Seed, Side

NUM_HELD_OUT = 15
HELD_OUT_SEED = 20230517
"""The same in all worlds: these people never appear in a training split."""
_WIDTH = {1: 1.0, 2: 0.78, 3: 0.6}
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class Person:
    """One subject of a scene."""

    identity: Identity
    appearance: Appearance
    end: int  # character offset in the caption directly after the class word
    bbox: tuple[int, int, int, int]  # x1, y1, x2, y2 of the visible pixels; x2 and y2 are exclusive
    head: tuple[int, int, int, int]  # x1, y1, x2, y2 of head and hair, clipped to the image


@dataclass(frozen=True)
class Scene:
    """An image with its ground truth."""

    image: np.ndarray  # (S, S, 3) uint8
    segment_map: np.ndarray  # (S, S) uint8; 0 is background, i + 1 the visible pixels of people[i]
    caption: str  # names what a prompt controls, and no feature of identity
    rich_caption: str  # names skin, hair and beard too
    people: tuple[Person, ...]  # from left to right


class AvatarScenes:
    """A seeded world.

    Args:
        size: Side of a scene in pixels, a multiple of 8.
        seed: Seed of the training identities and of all scenes.
        num_identities: Number of people in the training split.
        subject_odds: Probabilities of one, two and three people.
        style_odds: Probability of a style.
        context_odds: Probability of a place rather than a plain wall.
    """

    def __init__(
        self,
        size: Side = 64,
        seed: Seed = 0,
        num_identities: Count = 4000,
        subject_odds: Sequence[float] = (0.45, 0.4, 0.15),
        style_odds: Fraction = 0.3,
        context_odds: Fraction = 0.65,
    ) -> None:
        if size < 16 or size % 8:
            raise ValueError(f"size={size}: the side is a multiple of 8 and at least 16 pixels")
        if len(subject_odds) != 3 or abs(sum(subject_odds) - 1) > 1e-6 or min(subject_odds) < 0:
            raise ValueError(f"subject_odds={list(subject_odds)}: three probabilities that sum to 1")
        if num_identities < 3:
            raise ValueError(f"num_identities={num_identities}: at least 3 people share a scene")
        self.size, self.seed, self.num_identities = size, seed, num_identities
        self.subject_odds, self.style_odds, self.context_odds = tuple(subject_odds), style_odds, context_odds

    @cached_property
    def train_identities(self) -> tuple[Identity, ...]:
        """People of the training split; none has skin, hair and beard of a held-out one."""
        rng = np.random.default_rng([self.seed, 7])
        forbidden = {_look(identity) for identity in held_out_identities()}
        chosen: dict[Identity, None] = {}
        while len(chosen) < self.num_identities:
            identity = Identity.sample(rng)
            if _look(identity) not in forbidden:
                chosen[identity] = None
        return tuple(chosen)

    def identities(self, split: str) -> tuple[Identity, ...]:
        """People of a split, ``train`` or ``test``."""
        return self.train_identities if split == "train" else held_out_identities()

    def scene(self, split: str, index: int) -> Scene:
        """Render one scene."""
        rng = np.random.default_rng([self.seed, _SPLITS.index(split), index])
        count = int(rng.choice(3, p=self.subject_odds)) + 1
        known = self.identities(split)
        people = [known[i] for i in rng.choice(len(known), count, replace=False)]
        looks = [_appearance(rng, split) for _ in people]
        shared = count > 1 and rng.random() < 0.35
        if shared:
            expression = _appearance(rng, split).expression
            looks = [replace(look, expression=expression) for look in looks]
        context = str(rng.choice(list(CONTEXTS))) if rng.random() < self.context_odds else ""
        style = str(rng.choice(list(STYLES))) if rng.random() < self.style_odds else ""
        return self.compose(people, looks, context, style, rng, expression_shared=shared)

    def compose(
        self,
        identities: Sequence[Identity],
        appearances: Sequence[Appearance],
        context: str,
        style: str,
        rng: np.random.Generator,
        expression_shared: bool = False,
    ) -> Scene:
        """Render given people at a given place, and caption them."""
        image = draw_background(context, self.size, rng)
        segment_map = np.zeros((self.size, self.size), np.uint8)
        heads = {}
        for i in rng.permutation(len(identities)).tolist():
            width, x, y = _position(i, len(identities), self.size, rng)
            avatar = render_avatar(identities[i], appearances[i], width)
            heads[i] = _paste(image, segment_map, avatar, i + 1, x, y)
        image = apply_style(style, image, rng)
        state = rng.bit_generator.state
        described = identities, appearances, context, style, expression_shared, rng
        caption, ends = _describe(*described, rich=False)
        rng.bit_generator.state = state  # the same things are named in both captions
        rich_caption, _ = _describe(*described, rich=True)
        people = tuple(
            Person(identity, appearance, ends[i], bounding_box(segment_map == i + 1), heads[i])
            for i, (identity, appearance) in enumerate(zip(identities, appearances, strict=True))
        )
        return Scene(np.asarray(image), segment_map, caption, rich_caption, people)


def held_out_identities() -> tuple[Identity, ...]:
    """The 15 people for evaluation, eight men and seven women, no two with the same hair."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    chosen: list[Identity] = []
    while len(chosen) < NUM_HELD_OUT:
        identity = Identity.sample(rng)
        wanted = "man" if len(chosen) % 2 == 0 else "woman"
        taken = {i.hair for i in chosen} | {(i.skin, i.hair_color) for i in chosen}
        own = {identity.hair, (identity.skin, identity.hair_color)}
        if identity.word == wanted and taken.isdisjoint(own):
            chosen.append(identity)
    return tuple(chosen)


def reference_image(identity: Identity, size: int, seed: int = 0) -> np.ndarray:
    """A portrait in neutral expression, as a user would give it; see :func:`render_portrait`.

    The seed is that of the colour of the clothes.
    """
    rng = np.random.default_rng([seed, 3])
    look = Appearance(clothes_color=str(rng.choice(list(CLOTHING_COLORS))))
    return render_portrait(identity, look, size)


def render_portrait(identity: Identity, appearance: Appearance, size: int) -> np.ndarray:
    """A person from the chest up, (size, size, 4) uint8 RGBA, transparent around them."""
    return np.ascontiguousarray(render_avatar(identity, appearance, size)[:size])


def is_held_out(appearance: Appearance) -> bool:
    """Whether a pair of clothing and colour is kept from the training split (one in six of the pairs)."""
    if appearance.clothes not in CLOTHES:
        return False
    pair = list(CLOTHES).index(appearance.clothes) + list(CLOTHING_COLORS).index(appearance.clothes_color)
    return pair % 6 == 0


def _look(identity: Identity) -> tuple[str, ...]:
    return (identity.word, identity.skin, identity.hair, identity.hair_color, identity.beard)


def _appearance(rng: np.random.Generator, split: str) -> Appearance:
    while True:
        appearance = Appearance.sample(rng)
        if split != "train" or not is_held_out(appearance):
            return appearance


def _position(slot: int, count: int, size: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Width, left and top in pixels of the person in a slot; the lower edge of the image cuts everyone."""
    width = round(_WIDTH[count] * size * rng.uniform(0.95, 1.05))
    height = round(width * CANVAS[1] / CANVAS[0])
    center = size * (slot + 0.5 if count > 1 else 0.5) / (count if count > 1 else 1)
    x = round(center - width / 2 + size * rng.uniform(-0.03, 0.03))
    lowest = round(size * 0.04)
    if count > 1:
        return width, x, size - height + int(rng.integers(0, lowest + 1))
    return width, x, max(round(size * rng.uniform(0.0, 0.08)), size - height)


def _paste(
    image: Image.Image, segment_map: np.ndarray, avatar: np.ndarray, segment_id: int, x: int, y: int
) -> tuple[int, int, int, int]:
    """Paste an avatar into image and map in place; returns the box of the head."""
    size, width = image.width, avatar.shape[1]
    image.paste(Image.fromarray(avatar[..., :3]), (x, y), Image.fromarray(avatar[..., 3]))
    top, left = max(y, 0), max(x, 0)
    visible = avatar[top - y : size - y, left - x : size - x, 3] >= 128
    region = segment_map[top : top + visible.shape[0], left : left + visible.shape[1]]
    region[visible] = segment_id
    scale = width / CANVAS[0]
    x1, y1, x2, y2 = (round(v * scale) for v in HEAD_BOX)
    box = np.clip([x + x1, y + y1, x + x2, y + y2], 0, size)
    return int(box[0]), int(box[1]), int(box[2]), int(box[3])


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of the pixels of a mask (H, W); x2 and y2 are exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _describe(
    identities: Sequence[Identity],
    appearances: Sequence[Appearance],
    context: str,
    style: str,
    expression_shared: bool,
    rng: np.random.Generator,
    rich: bool,
) -> tuple[str, list[int]]:
    """Caption and the offset directly after each class word; as in web captions, not everything is named."""
    count = len(identities)
    text = f"{style} of " if style else ("a photo of " if rng.random() < 0.5 else "")
    ends: list[int] = []
    for i, (identity, look) in enumerate(zip(identities, appearances, strict=True)):
        text += "" if i == 0 else (" and " if i == count - 1 else ", ")
        name = identity.describe() if rich else identity.word
        text += f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
        ends.append(len(text))
        worn = []
        if rng.random() < 0.55:
            worn.append(look.describe_clothes())
        if look.accessory != "NONE" and rng.random() < 0.9:
            worn.append(ACCESSORIES[look.accessory])
        if worn:
            text += " wearing " + " and ".join(worn)
        if look.expression and not expression_shared and rng.random() < 0.9:
            text += f" {look.expression}"
    if expression_shared and appearances[0].expression:
        text += f" {appearances[0].expression} together"
    elif count > 1 and rng.random() < 0.5:
        text += " together"
    return (f"{text} {context}" if context else text), ends
