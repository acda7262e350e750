"""The detector: a backbone below a feature pyramid and torchvision's Faster R-CNN."""

from collections import OrderedDict
from typing import Any, Final

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from geokr_core.evaluation.task_kinds import DetectionConfig
from geokr_core.networks.normalisation import Normalisation
from geokr_core.networks.pyramid import Pyramid
from geokr_core.networks.runtime import Runtime

ANCHOR_CELLS: Final = {"faster_rcnn": 4.0, "retinanet": 2.0}
"""Side of a level's smallest anchor in cells of that level: 16 px on the finest one of either detector. torchvision's 32
misses objects of a dozen pixels."""
ASPECT_RATIOS: Final = (0.5, 1.0, 2.0)
SAMPLES_AN_IMAGE: Final = 128
PROPOSALS: Final = 300
HIDDEN: Final = 256
MIN_SCORE: Final = 0.01
_FINEST_STRIDE: Final = {"faster_rcnn": 4, "retinanet": 8}


class DetectionBackbone(nn.Module):
    """Levels of a backbone brought to one width by a feature pyramid network, in float32 whatever the backbone runs in."""

    def __init__(self, pyramid: Pyramid, width: int, detector: str, runtime: Runtime) -> None:
        """Put a feature pyramid network on the levels that the detector looks at."""
        super().__init__()
        self.pyramid = pyramid
        self._first = next(k for k, s in enumerate(pyramid.strides) if s >= _FINEST_STRIDE[detector])
        self._runtime = runtime
        channels = list(pyramid.channels[self._first :])
        extra = LastLevelMaxPool() if detector == "faster_rcnn" else LastLevelP6P7(width, width)
        self.fpn = FeaturePyramidNetwork(channels, width, extra)
        self.out_channels = width
        strides = list(pyramid.strides[self._first :])
        while len(strides) < len(channels) + (1 if detector == "faster_rcnn" else 2):
            strides.append(strides[-1] * 2)
        self.strides = tuple(strides)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps float32 (B, width, H_k, W_k) of normalised float32 images (B, 3, H, W), finest first."""
        with self._runtime.autocast():
            levels = self.pyramid(images.contiguous(memory_format=torch.channels_last))[self._first :]
        maps: dict[str, Tensor] = self.fpn(OrderedDict((str(k), level.float()) for k, level in enumerate(levels)))
        return maps


def build_detector(
    backbone: DetectionBackbone, task: DetectionConfig, num_classes: int, size_px: int, normalisation: Normalisation
) -> nn.Module:
    """A detector of torchvision on our levels. Its input are images in 0–1, which it normalises and pads, never resizes.

    Args:
        backbone: the levels.
        task: which detector.
        num_classes: number of classes K, without background.
        size_px: longer side of the images.
        normalisation: of the input.
    """
    shared: dict[str, Any] = {
        "min_size": size_px,
        "max_size": size_px,
        "_skip_resize": True,
        "image_mean": normalisation.mean.tolist(),
        "image_std": normalisation.std.tolist(),
    }
    cells = ANCHOR_CELLS[task.detector]
    if task.detector == "retinanet":
        sizes = tuple(tuple(cells * s * 2 ** (k / 3) for k in range(3)) for s in backbone.strides)
        anchors = AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(sizes))
        retina: nn.Module = RetinaNet(
            backbone,
            num_classes + 1,
            anchor_generator=anchors,
            score_thresh=MIN_SCORE,
            detections_per_img=100,
            topk_candidates=PROPOSALS,
            **shared,
        )
        # Drawn for 256 channels (deviation 0.01), the towers would shrink the signal of a narrow pyramid to a thousandth.
        for tower in (retina.head.classification_head.conv, retina.head.regression_head.conv):  # type: ignore[union-attr]
            for module in tower.modules():  # type: ignore[union-attr]
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        return retina
    anchors = AnchorGenerator(tuple((cells * s,) for s in backbone.strides), (ASPECT_RATIOS,) * len(backbone.strides))
    names = [str(k) for k in range(len(backbone.strides) - 1)]
    two_stage: nn.Module = FasterRCNN(
        backbone,
        None,
        rpn_anchor_generator=anchors,
        box_roi_pool=MultiScaleRoIAlign(names, 7, 2),
        box_head=TwoMLPHead(backbone.out_channels * 49, HIDDEN),
        box_predictor=FastRCNNPredictor(HIDDEN, num_classes + 1),
        rpn_batch_size_per_image=SAMPLES_AN_IMAGE,
        box_batch_size_per_image=SAMPLES_AN_IMAGE,
        rpn_pre_nms_top_n_train=2 * PROPOSALS,
        rpn_post_nms_top_n_train=PROPOSALS,
        rpn_pre_nms_top_n_test=2 * PROPOSALS,
        rpn_post_nms_top_n_test=PROPOSALS,
        box_score_thresh=MIN_SCORE,
        **shared,
    )
    return two_stage
