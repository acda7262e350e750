"""How strongly chips are varied. Free of torch: recipes name it, and the parameter file reads recipes.

Not here: the variation itself (``networks.augmentation``).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Strength:
    """How strongly chips are varied.

    Attributes:
        flip_fraction: probability of a flip, for each axis by itself.
        transpose_fraction: probability that rows and columns are swapped. With both flips at 0.5, 0.5 makes all
            eight orientations of the square equally likely; 0.25 is a quarter turn in every second of the
            rotations that are drawn for every second chip.
        brightness: factor drawn from 1 ± this.
        contrast: factor drawn from 1 ± this, about the chip's mean.
        saturation: factor drawn from 1 ± this, about the grey value; red, green and blue only.
        hue_turns: rotation about the grey axis drawn from ± this, in turns; red, green and blue only.
        gain: factor of each band by itself, drawn from 1 ± this.
        grey_fraction: share of chips that lose their colour; red, green and blue only.
        crop_area_fraction: least and largest share of a chip that a crop shows; (1, 1): no crops.
    """

    flip_fraction: float = 0.5
    transpose_fraction: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue_turns: float = 0.0
    gain: float = 0.0
    grey_fraction: float = 0.0
    crop_area_fraction: tuple[float, float] = (1.0, 1.0)

    @property
    def crops(self) -> bool:
        """Whether a chip is ever shown in part."""
        return self.crop_area_fraction[0] < 1.0
