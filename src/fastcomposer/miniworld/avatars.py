"""People of the mini world: their identity, their appearance in an image, and the rendered avatar.

Identity is what captions never name and a reference alone shows: skin, hair, hair colour, beard, nose and
brows (about 10⁵ combinations). Appearance is what prompts control: clothing, accessory and expression.
"""

from __future__ import annotations

import io
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np
import python_avatars as pa
import resvg_py
from PIL import Image

Box = tuple[float, float, float, float]

CANVAS = (264, 280)
"""Width and height of the SVG in its own units."""
HEAD_BOX: Box = (58.0, 8.0, 206.0, 184.0)
"""Head with hair, x1, y1, x2, y2 in units of the SVG."""

SKINS = {
    "TANNED": "orange-skinned",
    "YELLOW": "yellow-skinned",
    "PALE": "pale",
    "LIGHT": "light-skinned",
    "BROWN": "tanned",
    "DARK_BROWN": "brown-skinned",
    "BLACK": "dark-skinned",
}
HAIR_COLORS = {
    "AUBURN": "auburn",
    "BLACK": "black",
    "BLONDE": "dark blond",
    "BLONDE_GOLDEN": "golden",
    "BROWN": "brown",
    "BROWN_DARK": "dark brown",
    "PASTEL_PINK": "pink",
    "PLATINUM": "platinum",
    "RED": "red",
    "SILVER_GRAY": "gray",
}
HAIR = {
    "man": {
        "NONE": "a bald head",
        "CAESAR": "short {} hair",
        "SHORT_CURLY": "short curly {} hair",
        "SHORT_DREADS_2": "frizzy {} hair",
        "SHORT_ROUND": "round {} hair",
        "SIDES": "{} hair at the sides",
        "SHAGGY": "shaggy {} hair",
        "SHAGGY_MULLET": "a {} mullet",
        "DREADLOCKS": "{} dreadlocks",
        "EINSTEIN_HAIR": "bushy {} hair",
        "ELVIS": "a {} quiff",
        "EVIL_SPIKE": "spiky {} hair",
        "MOHAWK": "a {} mohawk",
        "MOWGLI": "messy {} hair",
        "QUIFF": "swept {} hair",
        "CORNROWS": "{} cornrows",
        "WILD": "wild {} hair",
    },
    "woman": {
        "BIG_HAIR": "big {} hair",
        "BOB": "a {} bob",
        "BUN": "a {} bun",
        "CURLY": "curly {} hair",
        "CURVY": "wavy {} hair",
        "DREADS": "long {} dreads",
        "FRO": "a {} afro",
        "LONG_NOT_TOO_LONG": "layered {} hair",
        "MIA_WALLACE": "{} hair with a fringe",
        "STRAIGHT_1": "long {} hair",
        "STRAIGHT_STRAND": "straight {} hair",
        "BRAIDS": "{} braids",
        "HALF_SHAVED": "half shaved {} hair",
        "LOOSE_HAIR": "loose {} hair",
        "PIXIE": "a {} pixie cut",
    },
}
BEARDS = {
    "NONE": "",
    "BEARD_LIGHT": "a light beard",
    "BEARD_MAGESTIC": "a full beard",
    "BEARD_MEDIUM": "a beard",
    "MOUSTACHE_FANCY": "a fancy moustache",
    "MOUSTACHE_MAGNUM": "a thick moustache",
}
NOSES = ("DEFAULT", "SMALL", "WIDE")
BROWS = ("DEFAULT_NATURAL", "FLAT_NATURAL", "UNIBROW_NATURAL")

CLOTHES = {
    "HOODIE": "hoodie",
    "OVERALL": "overall",
    "SHIRT_CREW_NECK": "shirt",
    "SHIRT_V_NECK": "v-neck",
    "COLLAR_SWEATER": "sweater",
    "BLAZER_SHIRT": "blazer",
    "GRAPHIC_SHIRT": "bat shirt",
}
CLOTHING_COLORS = {
    "BLACK": "black",
    "BLUE_02": "blue",
    "BLUE_03": "navy",
    "GRAY_02": "gray",
    "PASTEL_GREEN": "green",
    "PASTEL_ORANGE": "orange",
    "PASTEL_YELLOW": "yellow",
    "PINK": "pink",
    "RED": "red",
    "WHITE": "white",
}
OUTFITS = {
    "ASTRONAUT_SUIT": "an astronaut suit",
    "BOND_SUIT": "a tuxedo",
    "GLADIATOR": "a gladiator armor",
    "JEDI_ROBE": "a jedi robe",
}
"""Clothes with a colour of their own."""
ACCESSORIES = {
    "NONE": "",
    "PRESCRIPTION_2": "black glasses",
    "PRESCRIPTION_1": "white glasses",
    "ROUND": "round glasses",
    "EYEPATCH": "an eyepatch",
    "SUNGLASSES": "sunglasses",
}
ACCESSORY_ODDS = (0.62, 0.1, 0.1, 0.1, 0.05, 0.03)
EXPRESSIONS = {
    "": ("DEFAULT", "SERIOUS"),
    "smiling": ("DEFAULT", "SMILE"),
    "laughing": ("HAPPY", "BIG_SMILE"),
    "crying": ("CRY", "SAD"),
    "winking": ("WINK", "TWINKLE"),
    "sleeping": ("CLOSED", "SERIOUS"),
    "screaming": ("SQUINT", "SCREAM_OPEN"),
    "surprised": ("SURPRISED", "DISBELIEF"),
    "rolling eyes": ("EYE_ROLL", "CONCERNED"),
    "eating": ("DEFAULT", "EATING"),
    "sticking the tongue out": ("WINK_WACKY", "TONGUE"),
    "gritting teeth": ("SQUINT", "GRIMACE"),
}
"""Phrase of the caption → eyes and mouth."""


@dataclass(frozen=True)
class Identity:
    """A person; every field is a name of ``python_avatars``, except the class word."""

    word: str
    skin: str
    hair: str
    hair_color: str
    beard: str
    nose: str
    brows: str

    @property
    def key(self) -> str:
        """Unique name of the identity, the ``identity`` field of a record's segment."""
        return "-".join(astuple(self)).lower()

    def describe(self) -> str:
        """Skin, hair and beard in words, for the rich captions of the mini CLIP."""
        color = HAIR_COLORS[self.hair_color]
        features = [HAIR[self.word][self.hair].format(color)]
        if self.beard != "NONE":
            features.append(BEARDS[self.beard])
        return f"{SKINS[self.skin]} {self.word} with {' and '.join(features)}"

    @staticmethod
    def sample(rng: np.random.Generator) -> Identity:
        """Draw one; half of the people are men, and half of the men wear a beard."""
        word = ("man", "woman")[rng.integers(2)]
        beards = list(BEARDS)
        bearded = word == "man" and rng.random() < 0.5
        return Identity(
            word=word,
            skin=_pick(rng, tuple(SKINS)),
            hair=_pick(rng, tuple(HAIR[word])),
            hair_color=_pick(rng, tuple(HAIR_COLORS)),
            beard=_pick(rng, tuple(beards[1:])) if bearded else "NONE",
            nose=_pick(rng, NOSES),
            brows=_pick(rng, BROWS),
        )


@dataclass(frozen=True)
class Appearance:
    """What a person wears and expresses in one image."""

    clothes: str = "SHIRT_CREW_NECK"
    clothes_color: str = "GRAY_02"
    accessory: str = "NONE"
    expression: str = ""

    @staticmethod
    def sample(rng: np.random.Generator) -> Appearance:
        """Draw one; sunglasses are rare because they hide who wears them."""
        clothes = tuple(OUTFITS) if rng.random() < 0.15 else tuple(CLOTHES)
        expressions = tuple(EXPRESSIONS)
        return Appearance(
            clothes=_pick(rng, clothes),
            clothes_color=_pick(rng, tuple(CLOTHING_COLORS)),
            accessory=tuple(ACCESSORIES)[rng.choice(len(ACCESSORIES), p=ACCESSORY_ODDS)],
            expression="" if rng.random() < 0.3 else _pick(rng, expressions[1:]),
        )

    def describe_clothes(self) -> str:
        """Clothing in words, with its article."""
        if self.clothes in OUTFITS:
            return OUTFITS[self.clothes]
        color = CLOTHING_COLORS[self.clothes_color]
        article = "an" if color[0] in "aeiou" else "a"
        return f"{article} {color} {CLOTHES[self.clothes]}"


@lru_cache(maxsize=256)
def render_avatar(identity: Identity, appearance: Appearance, width: int) -> np.ndarray:
    """Render a person, (height, width, 4) uint8 RGBA, read-only; alpha is the exact silhouette.

    The height follows from the width and :data:`CANVAS`.
    """
    eyes, mouth = EXPRESSIONS[appearance.expression]
    svg = pa.Avatar(
        style=pa.AvatarStyle.TRANSPARENT,
        top=pa.HairType[identity.hair],
        eyebrows=pa.EyebrowType[identity.brows],
        eyes=pa.EyeType[eyes],
        nose=pa.NoseType[identity.nose],
        mouth=pa.MouthType[mouth],
        facial_hair=pa.FacialHairType[identity.beard],
        skin_color=pa.SkinColor[identity.skin],
        hair_color=pa.HairColor[identity.hair_color],
        facial_hair_color=pa.HairColor[identity.hair_color],
        accessory=pa.AccessoryType[appearance.accessory],
        clothing=pa.ClothingType[appearance.clothes],
        clothing_color=pa.ClothingColor[appearance.clothes_color],
        shirt_graphic=pa.ClothingGraphic.BAT,
    ).render()
    png = resvg_py.svg_to_bytes(svg_string=svg, width=width, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[rng.integers(len(choices))]
