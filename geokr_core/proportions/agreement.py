"""What the alignment of many scenes says of the archive: whether the land cover is that of the scenes' ground at all.

A scene by itself may be too uniform to tell. Where most scenes of an archive do not tell, the map is of other ground.
"""

from collections.abc import Sequence
from typing import Final

FEWEST_SCENES: Final = 8
"""With fewer scenes that could be judged the archive is not judged."""

LEAST_ALIGNED_FRACTION: Final = 0.5
"""Share of scenes on which the map must lie; right maps reached 0.83 (the globe) and 0.92 (Delhi), one in the wrong order 0.18."""


def complaint(verdicts: Sequence[str]) -> str | None:
    """What is wrong with image and land cover of an archive as a whole.

    Args:
        verdicts: of `Alignment.verdict`, one a scene.

    Returns:
        One sentence or two; None where most scenes lie on their land cover, or where too few scenes are there to say.
    """
    num_aligned, num_shifted = verdicts.count("aligned"), verdicts.count("shifted")
    if len(verdicts) < FEWEST_SCENES or num_aligned >= LEAST_ALIGNED_FRACTION * len(verdicts):
        return None
    if num_shifted >= LEAST_ALIGNED_FRACTION * len(verdicts):
        return (
            f"{num_shifted} of {len(verdicts)} scenes fit their land cover only when it is moved: look for a common shift in the table "
            "(datum, or pixel corners taken for centres)."
        )
    return (
        f"Only {num_aligned} of {len(verdicts)} scenes lie on their land cover, and {num_shifted} on it when it is moved: image and map seem to show "
        "different ground. Look for rows and columns swapped in file names, latitude for longitude, another CRS, or a map turned "
        "upside down; only ground that is uniform everywhere is no cause for alarm."
    )
