"""Which of the motions between two frames is that of the background, and the homography that it follows.

Points that move alike do not say whether they are background: a person can fill most of a frame. What decides here is
where they are. Background reaches the left, the right and the upper border; whoever is filmed is in the middle and may
touch the lower border. So support counts more towards the border, and where a second motion has a comparable part of it
none is used. What this cannot see through is an object that itself reaches these three borders.

Homographies are fitted as 8 numbers `[[a, b, c], [d, e, f], [g, h, 0]]` added to the identity, in coordinates with the
frame's centre at 0 and its longer side from -1 to 1: float32 is enough, and a camera at rest is exactly zero.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from ..point_tracking_mme import constant_on

Backend = Literal["torch", "opencv"]
BACKENDS: tuple[str, ...] = ("torch", "opencv")

# A flow's own error is 0.05 to 0.2 px on textured points; farther off than this, a point moves on its own.
INLIER_DISTANCE_PX = 1.0
# Of the weight of all usable points, what must follow the motion. In fast scenes many points agree with nothing.
MIN_BORDER_SHARE = 0.4
# Of the weight that follows this or other motions. Over objects that cover 50 to 60 % of the frame (264 pairs as in
# benchmarks/bench_camera_motion.py) it accepts 105 motions, 2 of them wrong; 0.6 accepts 159, 8 wrong; 0.8 44, 0 wrong.
MIN_SHARE_AGAINST_RIVAL = 0.7
RIVAL_DISTANCE_PX = 2.0
NUM_RIVALS = 3
MIN_USABLE_POINTS = 24
MIN_POINTS_IN_QUADRANT = 3
MIN_QUADRANTS = 3
# Plausible between two frames: areas and depths that change by less than these factors.
MAX_AREA_CHANGE = 4.0
MAX_DEPTH_CHANGE = 2.0

NUM_HYPOTHESES = 128
NUM_REFINED = 4
NUM_REFITS = 3
NUM_FINAL_REFITS = 6


@dataclass(frozen=True)
class Matches:
    """Points before and after, in coordinates of the fit, and how much each counts.

    Attributes:
        start: Points of the first frame, shape (B, P, 2).
        motion: How far they move, shape (B, P, 2).
        usable: Which of them count, bool, shape (B, P).
        border_weight: How much each counts in the choice of the background, 0 where unusable, shape (B, P).
        bases: What the 8 numbers of a fit are multiplied with to give a point's motion times its depth, for x and y,
            shape (2, B, 8, P).
        normal_terms: What each point adds to the 8 x 8 normal equations and their right side, shape (B, P, 72).
        center: Centre of the frame in pixels, (x, y).
        px: Length of one pixel.
        half_size: Half of width and height of the frame.
    """

    start: torch.Tensor
    motion: torch.Tensor
    usable: torch.Tensor
    border_weight: torch.Tensor
    bases: torch.Tensor
    normal_terms: torch.Tensor
    center: torch.Tensor
    px: float
    half_size: tuple[float, float]

    @classmethod
    def of(
        cls, from_xy: torch.Tensor, to_xy: torch.Tensor, usable: torch.Tensor, frame_size: tuple[int, int]
    ) -> "Matches":
        """Return the matches of points in pixels, (B, P, 2), finite also where not usable (B, P)."""
        height, width = frame_size
        center = constant_on(from_xy.device, [(width - 1) / 2, (height - 1) / 2])
        px = 2 / max(height, width)
        start, motion = (from_xy - center) * px, (to_xy - from_xy) * px
        half_size = (width * px / 2, height * px / 2)
        weight = border_weight(from_xy, frame_size) * usable
        bases = torch.stack(_bases(start, start)).transpose(-1, -2).contiguous()
        return cls(start, motion, usable, weight, bases, _normal_terms(start, motion), center, px, half_size)


def border_weight(points_xy: torch.Tensor, frame_size: tuple[int, int]) -> torch.Tensor:
    """Return how much points in pixels, (..., 2), say of the background, 0.05 to 1.05, shape (...)."""
    height, width = frame_size
    center = constant_on(points_xy.device, [(width - 1) / 2, (height - 1) / 2])
    across, below = ((points_xy - center) / constant_on(points_xy.device, [width / 2, height / 2])).unbind(-1)
    # The lower border counts as if it were half as far away: people stand there.
    outward = torch.maximum(across.abs(), torch.where(below > 0, below / 2, -below)).clamp(max=1)
    return 0.05 + outward**4


def _bases(start: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a fit is multiplied with, for x and y, (B, P, 8) each: its last two numbers scale `end`."""
    x, y = start.unbind(-1)
    end_x, end_y = end.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    of_x = torch.stack([x, y, one, zero, zero, zero, -end_x * x, -end_x * y], dim=-1)
    of_y = torch.stack([zero, zero, zero, x, y, one, -end_y * x, -end_y * y], dim=-1)
    return of_x, of_y


def _normal_terms(start: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
    rows = torch.stack(_bases(start, start + motion), dim=-2)  # (B, P, 2, 8): rows @ theta = motion
    known = torch.cat([rows, motion[..., None]], dim=-1)
    # Not a matrix product: torch is slow at many tiny ones.
    return (rows[..., None] * known[..., None, :]).sum(-3).flatten(-2)


def fit_background(matches: Matches, backend: Backend) -> tuple[torch.Tensor, torch.Tensor]:
    """Return homographies (B, 3, 3) in pixels and whether they are found (B,)."""
    hypotheses = _hypotheses_torch(matches) if backend == "torch" else _hypotheses_opencv(matches)
    at_rest = torch.zeros_like(hypotheses[:, :1])
    hypotheses = torch.cat([at_rest, hypotheses], dim=1)
    squared, _ = _squared_distances(hypotheses, matches)
    support = _support(squared, matches)[:, 1:]
    best = 1 + support.topk(min(NUM_REFINED, support.shape[1]), dim=1).indices
    # The first candidate is the camera at rest: fitted as well, because its points may move by a fraction of a pixel.
    theta = torch.cat([at_rest, hypotheses.gather(1, best[..., None].expand(-1, -1, 8))], dim=1)
    for _ in range(NUM_REFITS):
        theta = _refit(theta, matches)
    support = _support(_squared_distances(theta, matches)[0], matches)
    theta = theta.gather(1, support.argmax(1)[:, None, None].expand(-1, 1, 8))
    for _ in range(NUM_FINAL_REFITS):
        theta = _refit(theta, matches)
    theta = theta[:, 0]
    found = _is_trustworthy(theta, squared, matches) & _is_plausible(theta, matches)
    return _to_pixels(theta.where(found[:, None], torch.zeros_like(theta)), matches), found


def _hypotheses_torch(matches: Matches) -> torch.Tensor:
    """Return the similarities through pairs of usable points, (B, K, 8).

    Two points, not four: where the background has 40 % of the points, 16 % of the pairs lie on it and only 3 % of the
    quadruples. Refitting finds the homography from there.
    """
    generator = torch.Generator().manual_seed(0)
    device = matches.start.device
    draws = torch.rand(NUM_HYPOTHESES, 2, generator=generator).to(device, non_blocking=device.type == "cuda")
    usable_first = matches.usable.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)
    chosen = (draws * matches.usable.sum(-1)[:, None, None]).long().flatten(1)
    chosen = usable_first.gather(1, chosen)[..., None].expand(-1, -1, 2)
    (start, other_start), (motion, other_motion) = (
        points.gather(1, chosen).unflatten(1, (-1, 2)).unbind(2) for points in (matches.start, matches.motion)
    )
    x, y = (other_start - start).unbind(-1)
    dx, dy = (other_motion - motion).unbind(-1)
    # The same point twice, or two close ones, would say nothing about scale and rotation: then a translation.
    length = x * x + y * y
    length = length.masked_fill(length < 1e-4, torch.inf)
    scaling, turning = (dx * x + dy * y) / length, (dy * x - dx * y) / length
    offset_x = motion[..., 0] - scaling * start[..., 0] + turning * start[..., 1]
    offset_y = motion[..., 1] - turning * start[..., 0] - scaling * start[..., 1]
    zero = torch.zeros_like(scaling)
    return torch.stack([scaling, -turning, offset_x, turning, scaling, offset_y, zero, zero], dim=-1)


def _hypotheses_opencv(matches: Matches) -> torch.Tensor:
    """Return three RANSAC fits, (B, 3, 8): of all points, of what it leaves, and of the border's."""
    import cv2

    theta = torch.zeros(len(matches.start), 3, 8)
    starts, ends = ((points / matches.px).cpu() for points in (matches.start, matches.start + matches.motion))
    to_unit = torch.tensor([1, 1, matches.px])
    near_border = (matches.border_weight > 0.2).cpu()
    for index, usable in enumerate(matches.usable.cpu()):
        left = usable
        for fit, points in enumerate(("all", "left", "border")):
            among = {"all": usable, "left": left, "border": usable & near_border[index]}[points]
            if among.sum() < MIN_USABLE_POINTS // 2:
                continue
            # OpenCV's RANSAC seeds itself anew in every call.
            source, target = starts[index, among].numpy(), ends[index, among].numpy()
            homography, mask = cv2.findHomography(source, target, cv2.RANSAC, INLIER_DISTANCE_PX)
            if homography is None:
                continue
            change = torch.from_numpy(homography).float() * to_unit / to_unit[:, None] - torch.eye(3)
            theta[index, fit] = change.flatten()[:8]
            if points == "all":
                left = usable.clone()
                left[among] = torch.from_numpy(mask[:, 0] == 0)
    return theta.to(matches.start.device)


def _squared_distances(theta: torch.Tensor, matches: Matches) -> tuple[torch.Tensor, torch.Tensor]:
    """Return squared distances of K fits (B, K, 8) from the points, (B, K, P), and the points' depths."""
    motion_x, motion_y = matches.motion.transpose(1, 2).split(1, dim=1)  # (B, 1, P)
    basis_x, basis_y = matches.bases
    depth = (1 + theta[..., 6:] @ matches.start.transpose(1, 2)).clamp(min=0.1)
    error_x = theta @ basis_x / depth - motion_x
    error_y = theta @ basis_y / depth - motion_y
    return error_x.square() + error_y.square(), depth


def _support(squared: torch.Tensor, matches: Matches) -> torch.Tensor:
    """Return the weighted number of points that K fits explain, (B, K); nearer points count more.

    Args:
        squared: Squared distances of the fits from the points, shape (B, K, P).
        matches: The points.
    """
    nearness = (1 - squared / (INLIER_DISTANCE_PX * matches.px) ** 2).clamp(min=0)
    return (nearness @ matches.border_weight[..., None]).squeeze(-1)


def _refit(theta: torch.Tensor, matches: Matches) -> torch.Tensor:
    """Return K fits (B, K, 8) after one step of least squares with Tukey's weights."""
    squared, depth = _squared_distances(theta, matches)
    weight = (1 - squared / (INLIER_DISTANCE_PX * matches.px) ** 2).clamp(min=0).square() / depth.square()
    sums = ((weight * matches.usable[:, None]) @ matches.normal_terms).unflatten(-1, (8, 9))
    # Enough to keep a fit of too few points finite; 500 points outweigh it by seven orders of magnitude.
    ridge = 1e-6 * torch.eye(8, device=theta.device)
    solution, _ = torch.linalg.solve_ex(sums[..., :8] + ridge, sums[..., 8:])
    return solution.squeeze(-1).nan_to_num(0.0, 0.0, 0.0)


def _is_trustworthy(theta: torch.Tensor, squared_of_rivals: torch.Tensor, matches: Matches) -> torch.Tensor:
    """Return whether enough points follow a fit (B, 8), in several places, and no other motion has comparable support.

    Scattered points that agree with nothing are no reason for doubt; points that agree with each other are: one of
    the two motions is an object's.

    Args:
        theta: The fits.
        squared_of_rivals: Squared distances of K other motions from the points, shape (B, K, P).
        matches: The points.
    """
    limit = (INLIER_DISTANCE_PX * matches.px) ** 2
    rival_limit = (RIVAL_DISTANCE_PX * matches.px) ** 2
    squared = _squared_distances(theta[:, None], matches)[0][:, 0]
    follows, is_far = (squared < limit) & matches.usable, squared > limit
    others = (squared_of_rivals < rival_limit).to(theta.dtype)  # (B, K, P)
    weight = matches.border_weight
    unexplained = weight * is_far
    for _ in range(NUM_RIVALS):
        strongest = (others @ unexplained[..., None]).argmax(1, keepdim=True)  # (B, 1, 1)
        unexplained = unexplained * (1 - others.gather(1, strongest.expand(-1, -1, others.shape[-1]))[:, 0])
    rival = (weight * is_far - unexplained).sum(-1)
    own = (weight * follows).sum(-1)
    right, lower = (matches.start > 0).unbind(-1)
    quadrants = torch.arange(4, device=theta.device)
    in_quadrant = ((right.long() + 2 * lower.long())[..., None] == quadrants) & follows[..., None]
    num_quadrants = (in_quadrant.sum(-2) >= MIN_POINTS_IN_QUADRANT).sum(-1)
    return (
        (matches.usable.sum(-1) >= MIN_USABLE_POINTS)
        & (own >= MIN_BORDER_SHARE * weight.sum(-1))
        & (own >= MIN_SHARE_AGAINST_RIVAL * (own + rival))
        & (num_quadrants >= MIN_QUADRANTS)
    )


def _is_plausible(theta: torch.Tensor, matches: Matches) -> torch.Tensor:
    x, y = matches.half_size
    corners = constant_on(theta.device, [[-x, x, -x, x], [-y, -y, y, y]])
    depth = 1 + theta[:, 6:] @ corners  # (B, 4)
    area = (1 + theta[:, 0]) * (1 + theta[:, 4]) - theta[:, 1] * theta[:, 3]
    keeps_area = (area > 1 / MAX_AREA_CHANGE) & (area < MAX_AREA_CHANGE)
    keeps_depth = ((depth > 1 / MAX_DEPTH_CHANGE) & (depth < MAX_DEPTH_CHANGE)).all(-1)
    return theta.isfinite().all(-1) & keeps_area & keeps_depth


def _to_pixels(theta: torch.Tensor, matches: Matches) -> torch.Tensor:
    """Return fits (B, 8) as homographies in pixels, (B, 3, 3), last entry 1."""
    change = F.pad(theta, (0, 1)).unflatten(1, (3, 3))
    linear, offset, depth = change[:, :2, :2], change[:, :2, 2:] / matches.px, change[:, 2:, :2] * matches.px
    center = matches.center[:, None]
    # Around the frame's centre first, then moved there: C (I + change) C^-1 with C the translation by the centre.
    last = -depth @ center  # (B, 1, 1)
    upper = torch.cat([linear + center * depth, offset - linear @ center + center * last], dim=2)
    homography = torch.eye(3, device=theta.device) + torch.cat([upper, torch.cat([depth, last], dim=2)], dim=1)
    return homography / homography[:, 2:, 2:]
