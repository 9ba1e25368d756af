"""Trackers: raw frames in, trajectories out. One backend per file; importing this loads none of their libraries.

A tracker that follows points through a dense flow needs only an `OpticalFlow` in a file of its own and a line in
`TRACKERS`; any other tracker is a callable with the signature of `Tracker`.
"""

from ..trajectories_mme import TRACKERS, build_tracker
from .dis import build_dis_tracker
from .flow_tracker import FlowTracker
from .protocols import OpticalFlow, Tracker

TRACKERS["dis"] = build_dis_tracker

__all__ = ["TRACKERS", "FlowTracker", "OpticalFlow", "Tracker", "build_tracker"]
