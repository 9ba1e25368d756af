"""Masked Motion Encoding as a Hugging Face model family.

Importing it registers the Auto classes, the pipeline of features, the trackers and the video reader; it loads no video
library of its own accord.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from ._version import __version__
from .checkpoints import convert_checkpoint
from .configuration_mme import MMEConfig
from .modeling_mme import MMEForPreTraining, MMEForVideoClassification, MMEModel, MMEPreTrainedModel
from .motion import build_tracker, compensate_camera_motion
from .motion_targets_mme import MOTION_TARGETS, REFERENCE_MOTION, histogram_of_gradients
from .names_mme import KEYS_NOT_KEPT
from .padding import pad_clips
from .point_tracking_mme import track_points
from .presets import preset_config
from .remote_code import save_with_remote_code
from .trajectories_mme import ClipGeometry, Trajectories, grid_points
from .video import VideoReadError, open_video
from .video_pipeline_mme import TASK, VideoFeatureExtractionPipeline
from .video_processing_mme import MMEVideoProcessor
from .video_reading_mme import VIDEO_OPENERS

AutoConfig.register("mme", MMEConfig)
AutoModel.register(MMEConfig, MMEModel)
AutoModelForPreTraining.register(MMEConfig, MMEForPreTraining)
AutoModelForVideoClassification.register(MMEConfig, MMEForVideoClassification)
AutoVideoProcessor.register(MMEConfig, MMEVideoProcessor)
if TASK not in PIPELINE_REGISTRY.get_supported_tasks():  # transformers may have one some day
    PIPELINE_REGISTRY.register_pipeline(TASK, VideoFeatureExtractionPipeline, pt_model=AutoModel, type="video")
VIDEO_OPENERS["auto"] = open_video
KEYS_NOT_KEPT.update(("auto_map", "custom_pipelines"))

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
    "VideoFeatureExtractionPipeline",
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
    "save_with_remote_code",
    "track_points",
]
