"""A way to pretrain: land cover with gentle crops, and no averaged teacher."""

from geokr_core.pretraining.recipes import Method

TOY_METHOD = Method(
    "Land cover with gentle crops, without the averaged teacher.",
    changes={"crop_area_fraction": (0.8, 1.0)},
    required={"consistency": "none", "transfer": "student"},
)
