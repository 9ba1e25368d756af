import torch

from mme_hf.motion.at_rest import track_at_rest


def test_points_stay_where_they_are_and_are_seen_inside_the_frame():
    frames = torch.zeros(2, 5, 3, 4, 6, dtype=torch.uint8)
    points = torch.tensor([[5.0, 3.0], [5.5, 3.0]])  # the last pixel's centre, and beyond it
    tracks = track_at_rest(frames, points, start_frames=(0, 1, 2), num_steps=2)
    assert tracks.points_xy.shape == (2, 3, 3, 2, 2) and tracks.frame_size == (4, 6)
    assert (tracks.points_xy == points).all() and tracks.displacements.abs().max() == 0
    assert tracks.is_visible[..., 0].all() and not tracks.is_visible[..., 1].any()
