import pickle

import pytest
import torch
from teachers import KINDS, TINY, save_teacher
from transformers import AutoModel, BertConfig, BertModel, VideoMAEConfig, VideoMAEForPreTraining, ViTImageProcessor

from mme_hf.appearance_targets_mme import FeaturesTarget, PixelsTarget
from mme_hf.motion_clip_mme import MotionClip
from mme_hf.video_processing_mme import MMEVideoProcessor


def clip_of(size=(32, 48), tubelet_size=2, input_frames=(0, 2, 4, 6)):
    raw = torch.randint(0, 256, (8, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = torch.zeros(len(input_frames), 3, *size)  # not read: the raw frames are exact
    return MotionClip(pixels, 16, tubelet_size, raw, input_frames)


# --- pixels


@pytest.mark.parametrize("normalization", ["patch", "none"])
def test_pixels_are_the_labels_of_videomae(normalization):
    """transformers makes its labels inside its loss: a head that always gives ours must have none."""
    config = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config |= {f"decoder_{name}": value for name, value in config.items()}
    theirs = VideoMAEForPreTraining(
        VideoMAEConfig(image_size=32, num_frames=4, norm_pix_loss=normalization == "patch", **config)
    )
    processor = MMEVideoProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        num_frames=4,
        motion_targets={"pixels": {"normalization": normalization}},
    )
    raw = torch.randint(0, 256, (processor.raw_window(), 3, 40, 56), dtype=torch.uint8)
    batch = processor(raw, return_targets=True, return_tensors="pt")
    labels = batch["labels"]
    head = theirs.decoder.head
    torch.nn.init.zeros_(head.weight)
    for token in range(8):
        mask = torch.arange(8)[None] == token
        for bias in (torch.zeros(1536), labels[0, token]):
            head.bias.data.copy_(bias)
            loss = theirs(batch["pixel_values"], bool_masked_pos=mask).loss.item()
            assert loss == pytest.approx((labels[0, token] - bias).square().mean().item(), rel=1e-4, abs=1e-9)


def test_pixels_by_hand():
    clip = clip_of()
    values, counts = PixelsTarget(normalization="none")(clip, None)
    assert values.shape == (12, 1536) and counts.all()
    for token, (tubelet, row, column) in [(0, (0, 0, 0)), (5, (0, 1, 2)), (10, (1, 1, 1))]:
        for frame, y, x, channel in [(0, 0, 0, 0), (1, 3, 7, 2), (1, 15, 15, 1)]:
            index = ((frame * 16 + y) * 16 + x) * 3 + channel
            pixel = clip.raw_frames[clip.input_frames[2 * tubelet + frame], channel, 16 * row + y, 16 * column + x]
            assert values[token, index].item() == pytest.approx(pixel.item() / 255)


def test_a_flat_patch_gives_zeros_and_not_noise():
    clip = clip_of()
    clip.raw_frames = torch.full_like(clip.raw_frames, 200)
    assert PixelsTarget()(clip, None)[0].abs().max() < 0.1


# --- features


def by_hand(folder, frame, columns):
    """Return features of a frame (3, H, W) for a token grid of 2 x `columns`, through transformers' own pipeline."""
    images = ViTImageProcessor.from_pretrained(folder)(frame, return_tensors="pt", resample=2)["pixel_values"]
    tokens = AutoModel.from_pretrained(folder).eval()(images).last_hidden_state[:, 1:]  # no class token
    maps = tokens.transpose(1, 2).unflatten(-1, (4, 4))
    maps = torch.nn.functional.interpolate(maps, (2, columns), mode="bilinear", antialias=True)
    features = maps.flatten(2).transpose(1, 2)[0]
    return (features - features.mean(-1, keepdim=True)) / (features.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()


@torch.no_grad()
def test_features_are_those_of_the_teacher_for_the_second_frame_of_each_tubelet(tmp_path):
    folder = save_teacher(tmp_path)
    clip = clip_of(size=(32, 32))  # the teacher's own size: no resizing in between
    values, counts = FeaturesTarget(teacher=folder)(clip, None)
    assert values.shape == (8, 16) and counts.all()
    for tubelet, frame in enumerate((2, 6)):
        expected = by_hand(folder, clip.raw_frames[frame], columns=2)
        torch.testing.assert_close(values[4 * tubelet : 4 * tubelet + 4], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image_size_px", [None, 64])
def test_any_vision_model_teaches(kind, image_size_px, tmp_path):
    target = FeaturesTarget(teacher=save_teacher(tmp_path, kind), image_size_px=image_size_px)
    values, _ = target(clip_of(), None)
    assert values.shape == (12, 16) and target.size(None) == 16
    assert values.isfinite().all() and not values.requires_grad
    torch.testing.assert_close(values.mean(-1), torch.zeros(12), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.var(-1, correction=0), torch.ones(12), atol=1e-2, rtol=0)


def test_features_stay_at_their_place(tmp_path):
    """A teacher whose patches cannot see each other: a change in one corner must not reach the other tokens."""
    folder = save_teacher(tmp_path)
    model = AutoModel.from_pretrained(folder)
    output = model.layers[0].attention.o_proj
    torch.nn.init.zeros_(output.weight)
    torch.nn.init.zeros_(output.bias)
    model.save_pretrained(folder)
    clip = clip_of(size=(32, 32), tubelet_size=1)
    target = FeaturesTarget(teacher=folder, image_size_px=64)
    before = target(clip, None)[0].view(4, 2, 2, 16)
    clip.raw_frames[:, :, :4, 28:] = 0  # far from the middle, which both resizes blur
    changed = (target(clip, None)[0].view(4, 2, 2, 16) - before).abs().amax((0, 3)) > 1e-4
    assert changed.tolist() == [[False, True], [False, False]]


def test_a_target_holds_the_name_of_its_teacher_and_each_process_loads_it_once(tmp_path, monkeypatch):
    folder = save_teacher(tmp_path)
    loads, load = [], AutoModel.from_pretrained

    def counted(*args, **kwargs):
        loads.append(args)
        return load(*args, **kwargs)

    monkeypatch.setattr(AutoModel, "from_pretrained", counted)
    target = FeaturesTarget(teacher=folder)
    target.size(None)
    assert not loads
    first = target(clip_of(), None)[0]
    again = pickle.loads(pickle.dumps(target))(clip_of(), None)[0]
    assert len(loads) == 1 and torch.equal(first, again)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": ""}, r"features: teacher \(''\) must be the folder or Hub name"),
        ({"teacher": "somewhere", "image_size_px": 0}, r"features: image_size_px \(0\) must be a whole number"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FeaturesTarget(**options)


def test_a_teacher_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"teacher .*nobody'\) is no folder, and cannot be opened from the Hub"):
        FeaturesTarget(teacher=str(tmp_path / "nobody")).size(None)


def test_teachers_that_cannot_teach_are_named(tmp_path):
    folder = save_teacher(tmp_path / "vit")
    with pytest.raises(ValueError, match=r"image_size_px \(7\) must be at least 8, a patch of the teacher"):
        FeaturesTarget(teacher=folder, image_size_px=7)(clip_of(), None)
    damaged = save_teacher(tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="features: teacher .*damaged.* cannot be loaded"):
        FeaturesTarget(teacher=damaged)(clip_of(), None)
    BertModel(BertConfig(**TINY, vocab_size=8)).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="features: teacher .*text.* is a BertModel, which takes no images"):
        FeaturesTarget(teacher=str(tmp_path / "text"), image_size_px=32)(clip_of(), None)
