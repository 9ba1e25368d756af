"""Masked Motion Encoding as a Hugging Face model family.

Importing it registers the Auto classes, the trackers and the video reader; it loads no video library of its own accord.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
)

from ._version import __version__
from .checkpoints import convert_checkpoint
from .configuration_mme import MMEConfig
from .modeling_mme import MMEForPreTraining, MMEForVideoClassification, MMEModel, MMEPreTrainedModel
from .motion import build_tracker, compensate_camera_motion
from .motion_targets_mme import MOTION_TARGETS, REFERENCE_MOTION, histogram_of_gradients
from .padding import pad_clips
from .point_tracking_mme import track_points
from .presets import preset_config
from .trajectories_mme import ClipGeometry, Trajectories, grid_points
from .video import VideoReadError, open_video
from .video_inputs_mme import VIDEO_OPENERS
from .video_processing_mme import MMEVideoProcessor

AutoConfig.register("mme", MMEConfig)
AutoModel.register(MMEConfig, MMEModel)
AutoModelForPreTraining.register(MMEConfig, MMEForPreTraining)
AutoModelForVideoClassification.register(MMEConfig, MMEForVideoClassification)
AutoVideoProcessor.register(MMEConfig, MMEVideoProcessor)
VIDEO_OPENERS["auto"] = open_video

__all__ = [
    "MOTION_TARGETS",
    "REFERENCE_MOTION",
    "ClipGeometry",
    "MMEConfig",
    "MMEForPreTraining",
    "MMEForVideoClassification",
    "MMEModel",
    "MMEPreTrainedModel",
    "MMEVideoProcessor",
    "Trajectories",
    "VideoReadError",
    "__version__",
    "build_tracker",
    "compensate_camera_motion",
    "convert_checkpoint",
    "grid_points",
    "histogram_of_gradients",
    "open_video",
    "pad_clips",
    "preset_config",
    "track_points",
]
