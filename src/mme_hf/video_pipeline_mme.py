"""`pipeline("video-feature-extraction")`: features of videos, which transformers has no pipeline for."""

from pathlib import Path
from typing import Any

import torch
from transformers import Pipeline, PreTrainedModel

TASK = "video-feature-extraction"


class VideoFeatureExtractionPipeline(Pipeline):
    """Features of videos, by the encoder of any MME model and the processor saved beside it.

    A video is a path, http(s) address, bytes, an array or tensor of frames (num_frames, num_channels, height, width),
    or a torchcodec decoder; a list, generator or data set of these gives a result for each. Which frames of it are
    taken (number, stride, sampling) the processor says.

    Args, of `pipeline(...)` or of a call:
        pool: Whether to average the tokens of a clip; True by default.
        layer: Which block's output, as `MMEModel.get_video_features` counts them; -1 by default, the last one's.
        return_tensors: Whether to return tensors on the CPU; nested lists by default, as transformers' pipelines do.
        processor_kwargs: Options of the processor to use in place of its own, such as `{"frame_stride": 2}`.

    Returns:
        For each video numbers of shape (hidden_size,), or (num_tokens, hidden_size) without `pool`.

    Example:
        >>> extract = pipeline("video-feature-extraction", model="my_run")
        >>> features = extract("video.mp4", return_tensors=True)
    """

    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_processor = False
    _load_video_processor = True

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any):
        super().__init__(model.base_model, *args, **kwargs)  # of a model with a head its encoder
        if self.video_processor is None:
            raise ValueError(f"{TASK} needs a video_processor. Save one beside the model, or pass video_processor=...")
        if not hasattr(self.model, "get_video_features"):
            raise ValueError(
                f"{TASK} needs a model with get_video_features, such as MMEModel; {type(self.model).__name__} has none."
            )
        # transformers joins videos to batches (batch_size=...) only in a pipeline that has one of these.
        self.feature_extractor = self.video_processor

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save model and processor; arguments are those of the model's `save_pretrained`."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.video_processor.save_pretrained(save_directory)

    def _sanitize_parameters(
        self,
        pool: bool | None = None,
        layer: int | None = None,
        return_tensors: bool | None = None,
        processor_kwargs: dict[str, Any] | None = None,
    ) -> tuple[dict, dict, dict]:
        if (processor_kwargs or {}).get("return_targets"):
            raise ValueError(
                "processor_kwargs has return_targets, with which most of a clip is hidden: features would be of the "
                "rest. Leave it out; MMEModel and MMEForPreTraining take masks."
            )

        def given(**options: Any) -> dict[str, Any]:
            # What is not given must be left out: it would take the place of what the pipeline was made with.
            return {name: value for name, value in options.items() if value is not None}

        return (
            given(processor_kwargs=processor_kwargs),
            given(pool=pool, layer=layer),
            given(return_tensors=return_tensors),
        )

    def preprocess(self, video: Any, processor_kwargs: dict[str, Any] | None = None) -> Any:
        """Return `pixel_values` of one video, in the model's floating point type."""
        return self.video_processor(video, **(processor_kwargs or {}), return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs: Any, pool: bool = True, layer: int = -1) -> dict[str, torch.Tensor]:
        outputs = self.model.get_video_features(**model_inputs, layer=layer)
        # No more than is asked for: it travels to the CPU, and tokens are many.
        return {"features": outputs.pooler_output if pool else outputs.last_hidden_state}

    def postprocess(self, model_outputs: dict[str, torch.Tensor], return_tensors: bool = False) -> Any:
        """Return the features of one video."""
        features = model_outputs["features"][0]
        return features if return_tensors else features.tolist()
