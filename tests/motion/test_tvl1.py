import pytest
import torch

from mme_hf.motion import build_ready_tracker, build_tracker
from mme_hf.motion.tvl1 import TVL1Flow

FRAMES = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("option", ["num_scales", "num_warps", "num_iterations"])
def test_wrong_options_are_named(option):
    with pytest.raises(ValueError, match=rf"tracker 'tvl1': {option} \(0\) must be at least 1"):
        build_tracker("tvl1", **{option: 0})


@pytest.mark.parametrize("modules", ["none", "without TV-L1"])
def test_without_contrib_modules_says_what_to_install(monkeypatch, modules):
    import cv2

    if modules == "none":
        monkeypatch.delattr(cv2, "optflow", raising=False)
    else:
        monkeypatch.setattr(cv2, "optflow", object(), raising=False)
    tracker = build_tracker("tvl1")  # a processor that names it can be loaded without it
    assert not TVL1Flow.is_available()
    with pytest.raises(ValueError, match="pip install opencv-contrib-python-headless"):
        build_ready_tracker("tvl1")  # a run that tracks with it cannot begin
    with pytest.raises(ImportError, match="pip install opencv-contrib-python-headless"):
        tracker(FRAMES, torch.tensor([[8.0, 8.0]]), num_steps=1)


@pytest.mark.skipif(not TVL1Flow.is_available(), reason="needs OpenCV's contrib modules")
def test_is_opencvs_own_answer_with_the_options_given():
    import cv2

    grey = [cv2.cvtColor(frame.permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2GRAY) for frame in FRAMES]
    engine = cv2.optflow.DualTVL1OpticalFlow_create()
    engine.setScalesNumber(2)
    engine.setWarpingsNumber(3)
    engine.setInnerIterations(4)
    expected = torch.from_numpy(engine.calc(*grey, None)).permute(2, 0, 1)
    flow = TVL1Flow(num_scales=2, num_warps=3, num_iterations=4)(FRAMES, [(0, 1)])
    torch.testing.assert_close(flow[0], expected, atol=1e-5, rtol=0)
