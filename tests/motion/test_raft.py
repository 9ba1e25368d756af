"""torchvision's RAFT as a tracker, with random weights: what is fed to the network and what becomes of its answer."""

import socket
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import optical_flow

from mme_hf.motion import build_ready_tracker, build_tracker
from mme_hf.motion.raft import DOWNLOAD_TIMEOUT_SECONDS, RAFTFlow, _model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """From a size to a file of seeded random weights."""
    folder = tmp_path_factory.mktemp("raft")
    for size in ("small", "large"):
        torch.manual_seed(0)
        torch.save(getattr(optical_flow, f"raft_{size}")(weights=None).state_dict(), folder / f"{size}.pt")
    return lambda size: str(folder / f"{size}.pt")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """Give torchvision a cache of its own, and no network; return the folder of its weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    _model.cache_clear()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    yield folder
    _model.cache_clear()


def random_frames(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def torchvision_flow(weights, size, first, second, num_updates):
    """The answer of torchvision's own recipe: its transforms, its model, the last of its updates."""
    model = getattr(optical_flow, f"raft_{size}")(weights=None).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    transforms = getattr(optical_flow, f"Raft_{size.capitalize()}_Weights").DEFAULT.transforms()
    with torch.no_grad():
        return model(*transforms(first, second), num_flow_updates=num_updates)[-1]


@pytest.mark.parametrize("size", ["small", "large"])
def test_is_torchvisions_own_answer(weights, size):
    frames = random_frames(3, 3, 128, 136)
    flow = RAFTFlow(size=size, weights=weights(size), num_updates=2)(frames, [(0, 1), (2, 0)])
    expected = torchvision_flow(weights(size), size, frames[[0, 2]], frames[[1, 0]], 2)
    assert flow.shape == (2, 2, 128, 136) and expected.abs().max() > 0.01
    torch.testing.assert_close(flow, expected, atol=1e-4, rtol=1e-4)


def test_frames_that_do_not_divide_by_8_are_padded_and_the_padding_is_cut_off(weights):
    frames = random_frames(2, 3, 130, 141)
    flow = RAFTFlow(weights=weights("small"), num_updates=1)(frames, [(0, 1)])
    padded = torch.cat([frames, frames[:, :, -1:].expand(-1, -1, 6, -1)], dim=2)  # 136 rows
    padded = torch.cat([padded, padded[..., -1:].expand(-1, -1, -1, 3)], dim=3)  # 144 columns
    expected = torchvision_flow(weights("small"), "small", padded[:1], padded[1:], 1)[..., :130, :141]
    torch.testing.assert_close(flow, expected, atol=1e-4, rtol=1e-4)


def test_small_frames_are_enlarged_and_their_flow_is_in_their_own_pixels(weights):
    large = random_frames(2, 3, 8, 10).repeat_interleave(16, -1).repeat_interleave(16, -2)  # 128 x 160
    small = F.avg_pool2d(large.float(), 2).to(torch.uint8)  # 64 x 80
    flow = RAFTFlow(weights=weights("small"), num_updates=1)(small, [(0, 1)])
    enlarged = F.interpolate(small.float(), (128, 160), mode="bilinear", align_corners=False)
    expected = torchvision_flow(weights("small"), "small", enlarged[:1] / 255, enlarged[1:] / 255, 1)
    assert flow.shape == (1, 2, 64, 80)
    torch.testing.assert_close(flow, F.avg_pool2d(expected, 2) / 2, atol=1e-4, rtol=1e-4)


def test_autocast_changes_no_number(weights):
    frames = random_frames(2, 3, 128, 128)
    flow = RAFTFlow(weights=weights("small"), num_updates=1)
    expected = flow(frames, [(0, 1)])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flow(frames, [(0, 1)]), expected)


def test_weights_come_from_torchvisions_cache(weights, empty_cache):
    url = optical_flow.Raft_Small_Weights.DEFAULT.url
    (empty_cache / url.rsplit("/", 1)[1]).write_bytes(Path(weights("small")).read_bytes())
    frames = random_frames(2, 3, 128, 128)
    flow, expected = (RAFTFlow(weights=path, num_updates=1)(frames, [(0, 1)]) for path in (None, weights("small")))
    assert torch.equal(flow, expected)


def test_weights_that_cannot_be_had_are_a_clear_error_soon(empty_cache, monkeypatch):
    timeouts = []

    def no_network(*args, **kwargs):
        timeouts.append(socket.getdefaulttimeout())
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", no_network)
    before = socket.getdefaulttimeout()
    with pytest.raises(RuntimeError, match=r"could not be had .*no route to host.*Download https://\S+\.pth .*weights"):
        build_tracker("raft")(random_frames(2, 3, 128, 128), torch.zeros(1, 2), num_steps=1)
    with pytest.raises(ValueError, match="could not be had"):
        build_ready_tracker("raft")
    assert timeouts == [DOWNLOAD_TIMEOUT_SECONDS] * 2 and socket.getdefaulttimeout() == before


def test_files_that_are_no_weights_are_named(weights, tmp_path):
    text, listed = tmp_path / "text.pt", tmp_path / "list.pt"
    text.write_text("these are no weights")
    torch.save([1, 2], listed)
    cases = {
        str(tmp_path / "none.pt"): r"none.pt'\) is no file",
        str(text): r"text.pt'\) cannot be read: it must be a state dict that torch.save wrote",
        str(listed): r"list.pt'\) do not fit torchvision's raft_small",
        weights("large"): r"large.pt'\) do not fit torchvision's raft_small. .* the other size",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            build_tracker("raft", weights=path).flow(random_frames(2, 3, 128, 128), [(0, 1)])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": "medium"}, r"size \('medium'\) must be"), ({"num_updates": 0}, r"num_updates \(0\) must be at least 1")],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_tracker("raft", **options)
