"""Trackers: raw frames in, trajectories out. One backend per file; importing this loads none of their libraries.

A tracker that follows points through a dense flow needs only an `OpticalFlow` in a file of its own and a line in
`TRACKERS`; any other tracker is a callable with the signature of `Tracker`.
"""

from ..trajectories_mme import TRACK_FILTERS, TRACKERS, build_tracker
from .camera_motion import (
    compensate_camera_motion,
    estimate_camera_motion,
    estimate_camera_of_flow,
    remove_camera_motion,
)
from .dis import DISFlow
from .farneback import FarnebackFlow
from .flow_tracker import FlowTracker, build_ready_tracker, tracker_builder
from .motion_parameters import MotionParameters
from .protocols import OpticalFlow, Tracker
from .raft import RAFTFlow
from .stored import (
    StoredMotion,
    StoredTracker,
    StoredTracksError,
    build_stored_tracker,
    extract_motion,
)
from .torch_flow import TorchFlow
from .tvl1 import TVL1Flow

TRACKERS.update({flow.name: tracker_builder(flow) for flow in (DISFlow, FarnebackFlow, RAFTFlow, TorchFlow, TVL1Flow)})
TRACKERS["stored"] = build_stored_tracker
TRACK_FILTERS["remove_camera_motion"] = remove_camera_motion

__all__ = [
    "TRACKERS",
    "FlowTracker",
    "MotionParameters",
    "OpticalFlow",
    "StoredMotion",
    "StoredTracker",
    "StoredTracksError",
    "Tracker",
    "build_ready_tracker",
    "build_tracker",
    "compensate_camera_motion",
    "estimate_camera_motion",
    "estimate_camera_of_flow",
    "extract_motion",
    "remove_camera_motion",
]
