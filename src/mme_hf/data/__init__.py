"""From a folder, a manifest or an HF data set of videos to batches a model can take.

Records (one undecoded video each) are put in order by the main process, decoded and turned into samples by DataLoader
workers, and collated into batches. The pieces, in that order: `records`, `ordering`, `clips`, `loading`.
"""

from .bad_videos import BadVideo, BadVideoLog, TooManyBadVideosError
from .clips import ClipCollator, ClipDataset, ClipSampling
from .loading import build_clip_loader
from .manifests import load_manifest_records
from .ordering import ClipBatchSampler, RecordCursor, RecordRequest
from .records import (
    VideoRecords,
    load_dataset_records,
    load_folder_records,
    load_sample_records,
)
from .stored_tracks import MissingTracksError, StoredTracks

__all__ = [
    "BadVideo",
    "BadVideoLog",
    "ClipBatchSampler",
    "ClipCollator",
    "ClipDataset",
    "ClipSampling",
    "MissingTracksError",
    "RecordCursor",
    "RecordRequest",
    "StoredTracks",
    "TooManyBadVideosError",
    "VideoRecords",
    "build_clip_loader",
    "load_dataset_records",
    "load_folder_records",
    "load_manifest_records",
    "load_sample_records",
]
