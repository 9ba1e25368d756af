import math

import numpy as np
import pytest
import torch

from mme_hf.hog_mme import histogram_around_points, histogram_of_gradients
from mme_hf.trajectories_mme import grid_points


def histogram_by_loop(plane, num_bins, cell):
    """Written from the definition, pixel by pixel in float64."""
    height, width = plane.shape
    padded = np.pad(plane.astype(np.float64), 1, mode="edge")
    result = np.zeros((num_bins, height // cell, width // cell))
    for y in range(height):
        for x in range(width):
            w = padded[y : y + 3, x : x + 3]
            gx = (w[:, 0] - w[:, 2]) @ [1, 2, 1]
            gy = (w[0] - w[2]) @ [1, 2, 1]
            phase = (math.atan2(gy, gx) % math.pi) / math.pi * num_bins
            low = math.floor(phase)
            share = phase - low
            result[low % num_bins, y // cell, x // cell] += math.hypot(gx, gy) * (1 - share)
            result[(low + 1) % num_bins, y // cell, x // cell] += math.hypot(gx, gy) * share
    return result / cell**2


@pytest.mark.parametrize(("num_bins", "cell"), [(9, 8), (6, 4)])
def test_histogram_equals_a_loop_over_pixels(num_bins, cell):
    video = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    result = histogram_of_gradients(video, num_bins, cell)
    assert result.shape == (2, 3 * num_bins, 16 // cell, 24 // cell) and result.dtype == torch.float32
    for frame in range(2):
        for channel in range(3):
            expected = histogram_by_loop(video[frame, channel].numpy(), num_bins, cell)
            ours = result[frame, channel * num_bins : (channel + 1) * num_bins].numpy()
            np.testing.assert_allclose(ours, expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("bin_index", range(9))
def test_a_ramp_along_a_bin_votes_for_that_bin_alone(bin_index):
    angle = bin_index * math.pi / 9
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    ramp = -(math.cos(angle) * x + math.sin(angle) * y)  # Sobel as defined here is left minus right
    histogram = histogram_of_gradients(ramp.view(1, 1, 24, 24))[0, :, 1, 1]  # the inner cell sees no border
    expected = torch.zeros(9)
    expected[bin_index] = 8.0  # Sobel of a unit slope
    torch.testing.assert_close(histogram, expected, atol=2e-4, rtol=0)


def test_opposite_gradients_share_a_bin_and_flat_frames_do_not_vote():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    torch.testing.assert_close(histogram_of_gradients(ramp), histogram_of_gradients(-ramp))
    assert histogram_of_gradients(torch.full((1, 1, 16, 16), 3.0)).eq(0).all()


def test_histogram_works_in_float32_whatever_comes_in():
    video = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = histogram_of_gradients(video.float())
    for dtype in (torch.uint8, torch.float64, torch.bfloat16):
        torch.testing.assert_close(histogram_of_gradients(video.to(dtype)), expected)


def test_no_frames_and_no_points_have_no_histograms():
    assert histogram_of_gradients(torch.zeros(0, 3, 16, 24)).shape == (0, 27, 2, 3)
    assert histogram_around_points(torch.zeros(0, 3, 16, 24), torch.zeros(0, 5, 2)).shape == (0, 5, 27)
    assert histogram_around_points(torch.zeros(2, 3, 16, 24), torch.zeros(2, 0, 2)).shape == (2, 0, 27)


def test_an_array_is_no_video():
    with pytest.raises(TypeError, match="video is a ndarray; give a tensor, such as torch.from_numpy"):
        histogram_of_gradients(np.zeros((1, 3, 16, 16)))


# --- around points


def box(plane, x, y, size):
    """Return the mean over a square centred at (x, y) of pixels of side 1, those in part by their part."""
    total = 0.0
    for row in range(plane.shape[0]):
        for column in range(plane.shape[1]):
            width = min(column + 0.5, x + size / 2) - max(column - 0.5, x - size / 2)
            height = min(row + 0.5, y + size / 2) - max(row - 0.5, y - size / 2)
            total += plane[row, column] * max(width, 0) * max(height, 0)
    return total / size**2


@pytest.mark.parametrize(("num_bins", "size"), [(9, 8), (6, 5), (4, 1)])
def test_windows_are_the_mean_vote_of_the_pixels_they_cover(num_bins, size):
    frame = torch.randn(2, 20, 24, generator=torch.Generator().manual_seed(0))
    points = torch.tensor([[9.5, 9.5], [10.0, 8.0], [7.3, 11.9], [12.75, 6.0]])
    result = histogram_around_points(frame, points, num_bins, size)
    assert result.shape == (4, 2 * num_bins) and result.dtype == torch.float32
    for channel in range(2):
        votes = histogram_by_loop(frame[channel].numpy(), num_bins, 1)  # cells of one pixel: the votes themselves
        for index, (x, y) in enumerate(points.tolist()):
            expected = [box(votes[k], x, y, size) for k in range(num_bins)]
            ours = result[index, channel * num_bins : (channel + 1) * num_bins].numpy()
            np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_windows_at_the_centres_of_cells_are_the_cells():
    video = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8)
    cells = histogram_of_gradients(video)  # (T, values, rows, columns)
    windows = histogram_around_points(video, grid_points(24, 32).expand(2, -1, -1))  # (T, P, values)
    torch.testing.assert_close(windows.transpose(1, 2).unflatten(-1, (3, 4)), cells, atol=1e-3, rtol=1e-5)


def test_windows_reach_over_the_border_into_its_repetition_and_no_further():
    frame = torch.rand(1, 16, 16)
    inside = histogram_around_points(frame, torch.tensor([[0.0, 15.0], [15.0, 0.0]]))
    outside = histogram_around_points(frame, torch.tensor([[-40.0, 99.0], [15.5, -0.5]]))
    assert inside.isfinite().all() and torch.equal(inside, outside)
    wide = torch.nn.functional.pad(frame[None], (8, 8, 8, 8), mode="replicate")[0]
    torch.testing.assert_close(inside, histogram_around_points(wide, torch.tensor([[8.0, 23.0], [23.0, 8.0]])))
