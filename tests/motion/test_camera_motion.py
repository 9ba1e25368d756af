"""The camera's motion is found and taken out exactly, an object keeps its own, and a person is not taken for a camera.

Scenes are two views of a picture, the second through a homography that we choose, so that both are known.
"""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import moving_texture

from mme_hf import Trajectories, build_tracker, compensate_camera_motion, open_video
from mme_hf.data import load_sample_records
from mme_hf.motion import camera_motion, estimate_camera_motion, estimate_camera_of_flow, remove_camera_motion
from mme_hf.motion.appearance import is_textured
from mme_hf.trajectories_mme import grid_points

CLIPS = Path(__file__).parents[2].parent / "shared" / "clips"
HEIGHT, WIDTH = 120, 160
BACKENDS = ("torch", "opencv")
OWN = (5.0, -3.0)


def homography(pan=(0.0, 0.0), zoom=1.0, roll=0.0, tilt=(0.0, 0.0)):
    """Return a homography about the frame's centre: pan in px, roll in degrees, tilt in 1 / px."""
    centre = np.eye(3)
    centre[:2, 2] = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    turn = np.deg2rad(roll)
    about = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    about[:2, :2] *= zoom
    about[:2, 2], about[2, :2] = pan, tilt
    return centre @ about @ np.linalg.inv(centre)


CAMERAS = {
    "pan": homography(pan=(4.3, -2.6)),
    "zoom": homography(zoom=1.03),
    "shake": homography(pan=(-3.2, 1.7), zoom=0.99, roll=1.5, tilt=(1e-4, -5e-5)),
}


def moved(matrix, points):
    mapped = points @ matrix[:, :2].T + matrix[:, 2]
    return mapped[..., :2] / mapped[..., 2:]


def pixels():
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    return np.stack([x, y], axis=-1)


def camera_flow(matrix):
    """Return H(p) - p of every pixel in float64, (H, W, 2)."""
    return moved(matrix, pixels()) - pixels()


def rectangle(cover, lower=False):
    """Return an upright rectangle that covers a share of the frame, in its middle or with its feet below it, (H, W)."""
    height = 0.9 * HEIGHT
    width = cover * WIDTH / 0.9
    x, y = np.moveaxis(pixels() - [WIDTH / 2, HEIGHT - height / 2 if lower else HEIGHT / 2], -1, 0)
    return (abs(x) < width / 2) & (abs(y) < height / 2)


def flow_of(matrix, is_object=None, own=OWN):
    """Return a flow (1, 2, H, W): the camera's, and on an object the camera's and its own."""
    flow = camera_flow(matrix)
    if is_object is not None:
        flow[is_object] += own
    return torch.from_numpy(flow).float().movedim(-1, 0)[None]


def noisy(flow, sigma=0.1, seed=0):
    return flow + sigma * torch.randn(flow.shape, generator=torch.Generator().manual_seed(seed))


def random_flow(num_pairs=1, seed=0):
    """Return motion that no camera makes: every pixel goes its own way."""
    return 8 * torch.randn(num_pairs, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def sample_pictures():
    return [
        frame
        for record in load_sample_records().dataset
        if "distorted" not in record["video"]["path"]
        for frame in first_pictures(record["video"]["path"])
    ]


def first_pictures(path):
    """Return a frame of a video, large enough for a camera to move over, uint8 (H, W, 3)."""
    with open_video(path) as reader:
        picture = reader.frames_at([reader.num_frames // 3])[0].permute(1, 2, 0).numpy()
    scale = max((HEIGHT + 60) / picture.shape[0], (WIDTH + 60) / picture.shape[1])
    return [cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)]


def seen(picture, places):
    corner = [(picture.shape[1] - WIDTH) // 2, (picture.shape[0] - HEIGHT) // 2]
    places = (places + corner).astype(np.float32)
    return cv2.remap(picture, places[..., 0], places[..., 1], cv2.INTER_CUBIC)


def two_views(picture, matrix, is_object=None, object_picture=None, step=(4, 3)):
    """Return frames (2, 3, H, W) of a picture seen by a moving camera, and an object that moves by `step` px."""
    views = [seen(picture, pixels()), seen(picture, moved(np.linalg.inv(matrix), pixels()))]
    if is_object is not None:
        piece = seen(object_picture, pixels())
        views[0] = np.where(is_object[..., None], piece, views[0])
        shifted, piece = (np.roll(array, step, axis=(1, 0)) for array in (is_object, piece))
        views[1] = np.where(shifted[..., None], piece, views[1])
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous()


def eroded(mask, margin_px):
    return cv2.erode(mask.astype(np.uint8), np.ones((2 * margin_px + 1,) * 2), borderValue=0).astype(bool)


def residuals(picture, object_picture, name, backend="torch"):
    """Return what is left of textured background, and by how much the object's own motion is missed, in px."""
    matrix, step = CAMERAS[name], (4, 3)
    y, x = np.moveaxis(pixels()[..., ::-1] - [HEIGHT / 2, WIDTH / 2], -1, 0)
    is_object = (x / 28) ** 2 + (y / 24) ** 2 < 1
    frames = two_views(picture, matrix, is_object, object_picture, step)
    flow = build_tracker("dis").flow(frames, [(0, 1)])
    left = compensate_camera_motion(flow, frames, backend=backend)[0].permute(1, 2, 0).numpy()
    textured = np.kron(is_textured(frames[0]).numpy(), np.ones((4, 4), bool))[:HEIGHT, :WIDTH]
    arrives = moved(matrix, pixels())
    stays = ((arrives > 4) & (arrives < np.array([WIDTH, HEIGHT]) - 5)).all(-1)
    background = eroded(~is_object, 13) & stays & textured
    own = step - camera_flow(matrix)
    missed = np.linalg.norm(left - own, axis=-1)[eroded(is_object, 6) & textured]
    return np.linalg.norm(left, axis=-1)[background], missed


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CAMERAS)
def test_the_cameras_displacement_is_removed_exactly_and_an_object_keeps_its_own(name, backend):
    is_object = rectangle(0.2)
    left = compensate_camera_motion(flow_of(CAMERAS[name], is_object), backend=backend)[0].movedim(0, -1).numpy()
    assert abs(left[~is_object]).max() < 2e-3
    assert abs(left[is_object] - OWN).max() < 2e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_homography_is_given_in_pixels(backend):
    points = grid_points(HEIGHT, WIDTH)
    ends = torch.from_numpy(moved(CAMERAS["shake"], points.double().numpy())).float()
    found_homography, found = estimate_camera_motion(points, ends, frame_size=(HEIGHT, WIDTH), backend=backend)
    corners = np.array([[0.0, 0.0], [WIDTH - 1, 0.0], [0.0, HEIGHT - 1], [WIDTH - 1, HEIGHT - 1]])
    assert found.shape == () and found and found_homography[2, 2] == 1
    expected = moved(CAMERAS["shake"], corners)
    assert abs(moved(found_homography.double().numpy(), corners) - expected).max() < 0.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_and_stray_points_move_the_camera_by_little(backend):
    flow = noisy(flow_of(CAMERAS["shake"]), 0.2)
    stray = torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) < 0.3
    flow = torch.where(stray, random_flow(), flow)
    camera = (flow - compensate_camera_motion(flow, backend=backend))[0].movedim(0, -1).numpy()
    assert np.linalg.norm(camera - camera_flow(CAMERAS["shake"]), axis=-1).max() < 0.1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CAMERAS)
def test_real_scenes_are_left_at_rest(name, backend):
    pictures = sample_pictures()
    for index, picture in enumerate(pictures):
        background, missed = residuals(picture, pictures[index - 1], name, backend)
        assert background.mean() < 0.3 and len(background) > 1000
        assert missed.mean() < 0.5 and len(missed) > 500


@pytest.mark.skipif(not CLIPS.is_dir(), reason="../shared/clips is not on this machine")
def test_more_real_scenes_are_left_at_rest():
    pictures = [picture for path in sorted(CLIPS.iterdir()) for picture in first_pictures(str(path))]
    assert len(pictures) >= 5
    for index, picture in enumerate(pictures):
        background, missed = residuals(picture, pictures[index - 1], "shake")
        assert background.mean() < 0.3 and missed.mean() < 0.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("cover", [0.3, 0.5, 0.7, 0.8])
def test_a_person_who_fills_the_frame_is_not_taken_for_the_background(cover, lower, backend):
    is_object = rectangle(cover, lower)
    flow = noisy(flow_of(homography(pan=(2.0, 1.0)), is_object, own=(6.0, 0.0)))
    camera = (flow - compensate_camera_motion(flow, backend=backend))[0].movedim(0, -1)
    # Removed is the camera's (2, 1) or nothing; the person's is (8, 1).
    is_right = (camera - torch.tensor([2.0, 1.0])).norm(dim=-1).mean() < 0.2
    assert is_right or not camera.any()
    assert is_right or cover > 0.3
    if cover > 0.5:
        starts, ends = pixels().reshape(-1, 2)[::37], (pixels() + flow[0].movedim(0, -1).numpy()).reshape(-1, 2)[::37]
        plain, _ = cv2.findHomography(starts, ends, cv2.RANSAC, 1.0)
        assert abs(moved(plain, starts) - starts - [8.0, 1.0]).mean() < 0.2  # what RANSAC alone makes of it


def test_a_camera_at_rest_stays_at_rest_under_a_person():
    is_object = rectangle(0.6)
    flow = noisy(flow_of(np.eye(3), is_object), 0.02)
    assert (flow - compensate_camera_motion(flow)).abs().max() < 0.1


def test_where_no_camera_motion_is_found_flow_is_unchanged_and_counted(caplog):
    flow = torch.cat([flow_of(CAMERAS["pan"]), random_flow(), flow_of(CAMERAS["zoom"])])
    with caplog.at_level(logging.WARNING):
        left = compensate_camera_motion(flow)
    assert [record.getMessage() for record in caplog.records] == [
        "No camera motion found in 1 of 3 pairs of frames; their flow is unchanged."
    ]
    assert torch.equal(left[1], flow[1])
    assert left[[0, 2]].abs().max() < 2e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_24_points_are_needed(backend):
    points = grid_points(HEIGHT, WIDTH)
    ends = points + torch.tensor([2.0, 1.0])
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
    for num_usable, expected in ((24, True), (23, False)):
        usable = torch.zeros(len(points), dtype=torch.bool)
        usable[order[:num_usable]] = True
        found_homography, found = estimate_camera_motion(
            points, ends, usable, frame_size=(HEIGHT, WIDTH), backend=backend
        )
        assert bool(found) is expected
        shift = torch.tensor([2.0, 1.0]) if expected else torch.zeros(2)
        assert torch.allclose(found_homography[:2, 2], shift, atol=0.01)


def test_a_pair_of_frames_is_judged_by_itself_wherever_its_points_lie():
    points = grid_points(HEIGHT, WIDTH)
    ends = points + torch.tensor([2.0, 1.0])
    some = points[:, 0] < WIDTH // 2  # points of one half of the frame alone
    both = torch.stack([points[some], points[some] + torch.tensor([WIDTH / 2, 0.0])])
    found = estimate_camera_motion(both, both + (ends - points)[0], frame_size=(HEIGHT, WIDTH))[1]
    alone = [estimate_camera_motion(one, one + (ends - points)[0], frame_size=(HEIGHT, WIDTH))[1] for one in both]
    assert found.tolist() == [bool(one) for one in alone]


# All points agree: the frame shrinks to a third of its width and height between two frames, or grows to 2.2 times,
# or what is 80 px right of its centre becomes 1 + 80 * 0.009 = 1.7 times as deep, and what is left of it 0.28 times.
@pytest.mark.parametrize("camera", [{"zoom": 0.3}, {"zoom": 2.2}, {"tilt": (0.009, 0.0)}], ids=["out", "in", "tilt"])
def test_implausible_cameras_are_refused(camera):
    flow = flow_of(homography(**camera))
    assert torch.equal(compensate_camera_motion(flow), flow)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("share", "expected"), [(0.3, False), (0.5, True)])
def test_a_camera_is_what_two_fifths_of_the_points_follow_even_where_the_others_agree_in_nothing(
    share, expected, backend
):
    generator = torch.Generator().manual_seed(0)
    points = grid_points(HEIGHT, WIDTH)
    anywhere = torch.rand(len(points), 2, generator=generator) * torch.tensor([WIDTH - 1.0, HEIGHT - 1.0])
    follows = torch.rand(len(points), 1, generator=generator) < share
    ends = torch.where(follows, points + torch.tensor([2.0, 1.0]), anywhere)
    assert bool(estimate_camera_motion(points, ends, frame_size=(HEIGHT, WIDTH), backend=backend)[1]) is expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_lower_border_says_less_of_the_camera_than_the_upper_one(backend):
    # Half of the frame moves on its own: below, where people stand, it is taken for an object; above it leaves doubt.
    x, y = np.moveaxis(pixels(), -1, 0)
    is_object = (abs(x - WIDTH / 2) < 0.44 * WIDTH) & (y > HEIGHT / 2)
    for below, expected in ((True, (2.0, 1.0)), (False, (0.0, 0.0))):
        flow = flow_of(homography(pan=(2.0, 1.0)), is_object if below else is_object[::-1], own=(6.0, 0.0))
        camera = (flow - compensate_camera_motion(flow, backend=backend))[0].movedim(0, -1)
        assert (camera - torch.tensor(expected)).abs().max() < 0.01


def test_pairs_of_a_batch_are_as_if_alone():
    flows = [noisy(flow_of(matrix, rectangle(0.2)), seed=index) for index, matrix in enumerate(CAMERAS.values())]
    flow = torch.cat([*flows, random_flow()]).view(2, 2, 2, HEIGHT, WIDTH)
    for backend in BACKENDS:
        together = compensate_camera_motion(flow, backend=backend)
        for first in range(2):
            for second in range(2):
                alone = compensate_camera_motion(flow[first, second][None], backend=backend)[0]
                assert torch.allclose(together[first, second], alone, atol=1e-3)


def test_both_backends_find_the_same():
    flow = torch.cat([noisy(flow_of(matrix, rectangle(0.3))) for matrix in CAMERAS.values()] + [random_flow()])
    by_torch, by_opencv = (compensate_camera_motion(flow, backend=backend) for backend in BACKENDS)
    assert (by_torch - by_opencv).abs().max() < 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_an_accelerator_finds_the_same():
    flow = torch.cat([noisy(flow_of(matrix, rectangle(0.3))) for matrix in CAMERAS.values()])
    assert (compensate_camera_motion(flow.cuda()).cpu() - compensate_camera_motion(flow)).abs().max() < 0.01


def test_black_bars_are_no_background_at_rest():
    # A quarter of the height at the top and at the bottom is black, where flow finds no motion.
    frames = torch.from_numpy(moving_texture(2, HEIGHT, WIDTH, velocity=(3.0, 0.0))).permute(0, 3, 1, 2).clone()
    flow = flow_of(homography(pan=(3.0, 0.0)))
    for rows in (slice(0, HEIGHT // 4), slice(3 * HEIGHT // 4, None)):
        frames[:, :, rows], flow[:, :, rows] = 0, 0
    middle = (..., slice(HEIGHT // 4, 3 * HEIGHT // 4), slice(None))
    assert compensate_camera_motion(flow, frames)[middle].abs().max() < 0.01
    assert compensate_camera_motion(flow)[middle].abs().max() > 2.9


def test_texture_is_structure_in_both_directions():
    frame = torch.zeros(3, 32, 96, dtype=torch.uint8)
    frame[:, :, :32:4] = 200  # stripes: motion along them cannot be seen
    frame[:, ::4, 64::4] = 200
    textured = is_textured(frame)
    assert textured.shape == (8, 24)
    # Column c of the result is pixel 4 c; columns next to where one pattern ends see both.
    assert not textured[:, :7].any() and not textured[:, 9:15].any() and textured[:, 17:].all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_background_that_a_flow_drags_along_is_put_back_and_what_frames_cannot_tell_is_left(backend):
    # A camera pans by 3 px over a texture with a plain patch. The flow gives two squares a motion of their own: one on
    # the texture, where it is wrong, and one on the patch, where nobody can tell.
    frames = torch.from_numpy(moving_texture(2, HEIGHT, WIDTH, velocity=(3.0, 0.0))).permute(0, 3, 1, 2).clone()
    plain, textured = (..., slice(40, 80), slice(100, 145)), (..., slice(48, 72), slice(32, 56))
    frames[plain] = 90
    flow = flow_of(homography(pan=(3.0, 0.0)))
    inner = (..., slice(48, 72), slice(110, 120))
    for square in (textured, inner):
        flow[square] += torch.tensor(OWN)[:, None, None]
    own = compensate_camera_motion(flow, frames, backend=backend)[0]
    assert own[textured].abs().max() == 0
    assert (own[inner] - torch.tensor(OWN)[:, None, None]).abs().max() < 0.01
    assert (compensate_camera_motion(flow, backend=backend)[0][textured].norm(dim=0) > 5).all()

    points = grid_points(HEIGHT, WIDTH)
    x, y = points.long().T
    ends = points + flow[0][:, y, x].T
    points_xy = torch.stack([points, ends])[None]
    tracks = Trajectories(points_xy, torch.ones(points_xy.shape[:-1], dtype=torch.bool), (HEIGHT, WIDTH))
    moves = remove_camera_motion(tracks, frames, (0,), backend=backend).displacements[0, 0].norm(dim=-1) > 1
    on_plain = (y >= 48) & (y < 72) & (x >= 110) & (x < 120)
    assert torch.equal(moves, on_plain)


def test_a_scene_that_grows_brighter_is_not_dragged_along():
    # Seen right, an object of its own motion is as much brighter as all else; elsewhere it may look more alike.
    pan, own = (2.0, 0.5), torch.tensor([-4.0, 0.5])
    noise = np.random.default_rng(0).normal(128, 300, (2, HEIGHT + 40, WIDTH + 40))
    background, thing = (cv2.GaussianBlur(texture, None, 8.0) for texture in noise)
    is_thing = np.zeros((HEIGHT, WIDTH), bool)
    is_thing[30:94, 50:114] = True
    views = []
    for step, brighter in enumerate((0, 5)):
        back, front = (
            cv2.warpAffine(
                texture, np.float64([[1, 0, x - 20], [0, 1, y - 20]]), (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC
            )
            for texture, (x, y) in ((background, np.multiply(step, pan)), (thing, (-2.0 * step, 1.0 * step)))
        )
        views.append(np.where(np.roll(is_thing, (step, -2 * step), (0, 1)), front, back) + brighter)
    frames = torch.from_numpy(np.stack(views).clip(0, 255).astype(np.uint8))[:, None].expand(-1, 3, -1, -1)
    flow = flow_of(homography(pan=pan), is_thing, own.tolist())
    compensated = compensate_camera_motion(flow, frames)[0]
    inner = (..., slice(36, 88), slice(56, 108))
    assert (compensated[inner] - own[:, None, None]).abs().max() < 0.05


def panned(places, seed=0):
    """Return frames (T, 3, H, W) of a texture that lies at `places`, and a flow that drags a square of it, (T - 1)."""
    views = [moving_texture(2, HEIGHT, WIDTH, velocity=place, seed=seed)[1] for place in places]
    frames = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous()
    flow = torch.cat([flow_of(homography(pan=np.subtract(*pair))) for pair in zip(places[1:], places, strict=False)])
    flow[..., 40:72, 60:92] += torch.tensor(OWN)[:, None, None]
    return frames, flow


# A pan that changes from pair to pair, and one over another texture.
PLACES = [((0.0, 0.0), (3.0, 0.0), (1.0, 2.0)), ((0.0, 0.0), (-2.0, -3.0), (2.0, -1.0))]


def test_with_frames_pairs_of_a_batch_are_compared_with_their_own_frames():
    scenes = [panned(places, seed) for seed, places in enumerate(PLACES)]
    frames, flow = (torch.stack(parts) for parts in zip(*scenes, strict=True))
    together = compensate_camera_motion(flow, frames)
    for clip in range(2):
        for pair in range(2):
            alone = compensate_camera_motion(flow[clip, pair][None], frames[clip, pair : pair + 2])[0]
            torch.testing.assert_close(together[clip, pair], alone, atol=1e-4, rtol=0)
            for found in (together[clip, pair], alone):
                assert (found[..., 40:72, 60:92] == 0).all()  # put back to the camera's motion


def tracks_of(flow, num_steps=1):
    """Return tracks of one step of the grid from each pair of frames, or of several steps from the first."""
    points = grid_points(HEIGHT, WIDTH)
    x, y = points.long().T
    steps = flow[..., y, x].movedim(-2, -1).unflatten(-3, (-1, num_steps))  # (..., S, L, P, 2)
    positions = torch.cat([points.expand_as(steps[..., :1, :, :]), points + steps.cumsum(-3)], dim=-3)
    return Trajectories(positions, torch.ones(positions.shape[:-1], dtype=torch.bool), (HEIGHT, WIDTH))


@pytest.mark.parametrize("backend", ["torch", "opencv"])
def test_a_camera_that_the_frames_do_not_show_is_refused(backend):
    # As where an object hides so much of the background that a flow follows it everywhere.
    frames, _ = panned(((0.0, 0.0), (3.0, 0.0)))
    flow = flow_of(homography(pan=(-4.0, 5.0)))
    assert estimate_camera_of_flow(flow, backend=backend)[1].all()
    cameras, found = estimate_camera_of_flow(flow, frames, backend=backend)
    assert not found.any() and torch.equal(cameras, torch.eye(3)[None])
    assert not remove_camera_motion(tracks_of(flow), frames, (0,), backend=backend).camera_motion_found.any()


def test_noise_does_not_hide_what_frames_show():
    frames, _ = panned(((0.0, 0.0), (3.0, 0.0)))
    noise = 20 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    noisy = (frames + noise).round().clamp(0, 255).to(torch.uint8)
    assert estimate_camera_of_flow(flow_of(homography(pan=(3.0, 0.0))), noisy)[1].all()
    assert not estimate_camera_of_flow(flow_of(homography(pan=(-4.0, 5.0))), noisy)[1].any()


@pytest.mark.parametrize("is_found", [True, False])
def test_what_frames_show_counts_at_the_border(is_found):
    # The flow is that of a pan; frames show it but in the middle two fifths, or in the middle four fifths alone.
    frames, _ = panned(((0.0, 0.0), (3.0, 0.0)))
    other, _ = panned(((0.0, 0.0), (-4.0, 5.0)), seed=1)
    share = 0.4 if is_found else 0.8
    rows, columns = (slice(round(n * (1 - share**0.5) / 2), round(n * (1 + share**0.5) / 2)) for n in (HEIGHT, WIDTH))
    middle = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    middle[rows, columns] = True
    mixed = torch.where(middle == is_found, other, frames)
    assert estimate_camera_of_flow(flow_of(homography(pan=(3.0, 0.0))), mixed)[1].tolist() == [is_found]


@pytest.mark.parametrize("pan", [(-3, -3), (3, 3), (2, -4)])
def test_what_a_pan_brings_to_the_border_is_not_held_against_it(pan, monkeypatch):
    # Nothing but the camera moves, so all that can be compared is shown; beyond the border nothing can.
    monkeypatch.setattr(camera_motion, "MIN_SHOWN_SHARE", 0.97)
    noise = torch.rand(3, 134, 134, generator=torch.Generator().manual_seed(0))
    image = (255 * torch.nn.functional.avg_pool2d(noise, 3, 1)).to(torch.uint8)
    frames = torch.stack([image[:, 10 - y : 122 - y, 10 - x : 122 - x] for x, y in ((0, 0), pan)])
    flow = torch.tensor(pan, dtype=torch.float32)[:, None, None].expand(1, 2, 112, 112)
    assert estimate_camera_of_flow(flow, frames)[1].all()


def test_every_start_of_every_clip_is_asked_of_its_own_frame():
    frames, flow = panned(PLACES[0])
    frames, tracks = torch.stack([frames, frames]), tracks_of(torch.stack([flow, flow]))
    frames[0] = 90  # plain: nothing to match
    frames[1, 0] = 90
    assert remove_camera_motion(tracks, frames, (0, 1)).camera_motion_found.tolist() == [
        [[False], [False]],
        [[False], [True]],
    ]


def test_an_empty_batch_has_no_camera_motion_to_remove():
    frames, flow = panned(PLACES[0])
    tracks = tracks_of(flow.expand(2, *flow.shape))
    none = Trajectories(tracks.points_xy[:0], tracks.is_visible[:0], tracks.frame_size)
    left = remove_camera_motion(none, frames.expand(0, *frames.shape), (0, 1))
    assert left.points_xy.shape == none.points_xy.shape and left.camera_motion_found.shape == (0, 2, 1)


def test_with_frames_starts_of_a_batch_are_compared_with_their_own_frames():
    scenes = [panned(places, seed) for seed, places in enumerate(PLACES)]
    frames, flow = (torch.stack(parts) for parts in zip(*scenes, strict=True))
    frames[:, 0, :, :, 110:] = 90  # plain in the first frame alone: there nothing is known of its points
    together = remove_camera_motion(tracks_of(flow), frames, (0, 1))
    assert together.camera_motion_found.all()
    for clip in range(2):
        for start in range(2):
            own_frames = frames[clip, start : start + 2]
            alone = remove_camera_motion(tracks_of(flow[clip, start][None]), own_frames, (0,))
            torch.testing.assert_close(together.points_xy[clip, start], alone.points_xy[0], atol=1e-3, rtol=0)


def test_with_frames_too_what_has_no_camera_stays_as_it_is():
    # Nothing moves from the second frame on, which would explain every point better than a motion at random.
    frames, _ = panned(((0.0, 0.0), (3.0, 0.0), (3.0, 0.0)), seed=0)
    flow = torch.cat([flow_of(homography(pan=(3.0, 0.0))), random_flow()])
    assert torch.equal(compensate_camera_motion(flow, frames)[1], flow[1])
    tracks = tracks_of(flow, num_steps=2)
    left = remove_camera_motion(tracks, frames, (0,))
    assert left.camera_motion_found.tolist() == [[True, False]]
    assert torch.allclose(left.points_xy, tracks.points_xy, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_object_that_leaves_the_frame_keeps_its_own_motion(side):
    # What the flow says of it lies outside, where frames show nothing that could be compared.
    pan, direction = (3.0, 0.0), {"left": -1, "right": 1}[side]
    flow = flow_of(homography(pan=pan))
    strip = (..., slice(20, 100), slice(0, 24) if side == "left" else slice(WIDTH - 24, WIDTH))
    motion = torch.tensor([12.0 * direction, 0.0])
    frames = torch.from_numpy(moving_texture(2, HEIGHT, WIDTH, velocity=pan))
    other = torch.from_numpy(moving_texture(2, HEIGHT, WIDTH, velocity=tuple(motion.tolist()), seed=1))
    frames, other = frames.permute(0, 3, 1, 2).clone(), other.permute(0, 3, 1, 2)
    frames[0][strip] = other[0][strip]
    rest = (..., slice(20, 100), slice(0, 12) if side == "left" else slice(WIDTH - 12, WIDTH))
    frames[1][rest] = other[1][rest]
    flow[strip] = motion[:, None, None]
    own = compensate_camera_motion(flow, frames)[0]
    # Nearer to the rest of its border, what is compared is half background.
    inner = (..., slice(28, 92), slice(0, 16) if side == "left" else slice(WIDTH - 16, WIDTH))
    assert (own[inner] - (motion - torch.tensor(pan))[:, None, None]).abs().max() < 0.01


def known_tracks(matrix, num_steps=3):
    """Return tracks from two starts that a camera and an object make, and the object's points."""
    points = grid_points(HEIGHT, WIDTH).double().numpy()
    x, y = points.astype(int).T
    is_object = rectangle(0.2)[y, x]
    positions = [points]
    for _ in range(num_steps):
        positions.append(moved(matrix, positions[-1]) + np.where(is_object[:, None], OWN, 0.0))
    points_xy = torch.from_numpy(np.stack(positions)).float().expand(2, -1, -1, -1).clone()
    return Trajectories(points_xy, torch.ones(points_xy.shape[:-1], dtype=torch.bool), (HEIGHT, WIDTH)), is_object


@pytest.mark.parametrize("name", CAMERAS)
def test_tracks_keep_only_what_moves_against_the_background(name):
    tracks, is_object = known_tracks(CAMERAS[name])
    own = remove_camera_motion(tracks)
    assert own.camera_motion_found.shape == (2, 3) and own.camera_motion_found.all()
    expected = np.where(is_object[:, None], OWN, 0.0)
    assert np.abs(own.displacements.numpy() - expected).max() < 0.01
    assert torch.equal(own.points_xy[:, 0], tracks.points_xy[:, 0])
    assert torch.equal(own.is_visible, tracks.is_visible)


def test_a_start_with_a_step_without_a_camera_stays_as_it_is():
    tracks, _ = known_tracks(CAMERAS["pan"])
    strays = 8 * torch.randn(tracks.points_xy[0, 0].shape, generator=torch.Generator().manual_seed(0))
    tracks.points_xy[1, 2:] += strays  # a cut between the second and the third frame
    own = remove_camera_motion(tracks)
    assert own.camera_motion_found.tolist() == [[True, True, True], [True, False, True]]
    assert torch.allclose(own.displacements[1], tracks.displacements[1], atol=1e-4)  # the pan before the cut as well
    assert own.displacements[0].abs().amax() < tracks.displacements[0].abs().amax()


@pytest.mark.parametrize("lost_from", [0, 1])
def test_points_out_of_sight_do_not_say_where_the_camera_goes(lost_from):
    tracks, is_object = known_tracks(CAMERAS["pan"])
    lost = torch.rand(tracks.points_xy.shape[-2], generator=torch.Generator().manual_seed(0)) < 0.5
    tracks.points_xy[:, 1:, lost] = tracks.points_xy[:, :1, lost]  # they seem to stand still
    is_hidden = (torch.arange(4) >= lost_from)[:, None] & lost
    own = remove_camera_motion(tracks.hide(is_hidden.expand(2, -1, -1)))
    assert own.camera_motion_found.all()
    seen_background = ~torch.from_numpy(is_object) & ~lost
    assert own.displacements[..., seen_background, :].abs().max() < 0.01


def test_every_method_of_tracks_keeps_whether_a_camera_was_found():
    own = remove_camera_motion(known_tracks(CAMERAS["pan"])[0])
    hidden = torch.zeros_like(own.is_visible)
    for changed in (own.crop(8, 8, 64, 64), own.resize(240, 320), own.flip(), own.hide(hidden)):
        assert torch.equal(changed.camera_motion_found, own.camera_motion_found)
    with pytest.raises(ValueError, match=r"camera_motion_found has shape \(2,\) .* must be bool of shape \(2, 3\)"):
        Trajectories(own.points_xy, own.is_visible, own.frame_size, torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize("shape", [(2, 2, 400, 8), (0, 2, 64, 64), (3, 0, 2, 64, 64)])
def test_flow_without_a_point_to_match_comes_back_unchanged(shape):
    flow = torch.ones(shape)
    frames = torch.zeros(*shape[:-4], shape[-4] + 1, 3, *shape[-2:], dtype=torch.uint8)
    assert torch.equal(compensate_camera_motion(flow, frames), flow)
    assert torch.equal(compensate_camera_motion(flow), flow)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compensate_camera_motion(torch.zeros(2, 8, 8)), r"flow has shape \(2, 8, 8\)"),
        (
            lambda: compensate_camera_motion(torch.zeros(3, 2, 8, 8), torch.zeros(3, 3, 8, 8)),
            r"frames have shape \(3, 3, 8, 8\) .* must be \(4, 3, 8, 8\) and torch.uint8",
        ),
        # Grey levels in [0, 1] have no texture: no camera would ever be found.
        (
            lambda: compensate_camera_motion(torch.zeros(1, 2, 8, 8), torch.zeros(2, 3, 8, 8)),
            "dtype torch.float32; for",
        ),
        (lambda: compensate_camera_motion(np.zeros((1, 2, 8, 8))), "flow is a ndarray; it must be a tensor"),
        (lambda: compensate_camera_motion(torch.zeros(1, 2, 8, 8), backend="sift"), r"backend \('sift'\) is unknown"),
        (lambda: estimate_camera_motion(torch.zeros(9, 2), torch.zeros(8, 2), frame_size=(8, 8)), "must both be"),
        (lambda: estimate_camera_motion(*[torch.zeros(9, 2)] * 2, torch.ones(9), frame_size=(8, 8)), "it must be bool"),
        (
            lambda: remove_camera_motion(known_tracks(np.eye(3))[0], torch.zeros(9, 3, HEIGHT, WIDTH)),
            r"start_frames \(None\) must name the 2 frames",
        ),
        (
            lambda: remove_camera_motion(known_tracks(np.eye(3))[0], torch.zeros(5, 3, HEIGHT, WIDTH), (0, 2)),
            "a track from frame 2",
        ),
        (
            lambda: remove_camera_motion(known_tracks(np.eye(3))[0], torch.zeros(9, 3, 8, 8), (0, 4)),
            r"the tracks are of \(120, 160\)",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
