"""transformers' pipelines on our folders: which frames they take, from what, and what comes back."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from conftest import write_video
from transformers import ViTConfig, ViTModel, pipeline

from mme_hf import (
    MMEConfig,
    MMEForPreTraining,
    MMEForVideoClassification,
    MMEModel,
    MMEVideoProcessor,
    VideoFeatureExtractionPipeline,
    open_video,
    save_with_remote_code,
)

FEATURES = "video-feature-extraction"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier with a processor of 4 frames at a stride of 5, exported, beside two videos of 40 frames."""
    torch.manual_seed(0)
    config = MMEConfig(
        image_size=32,
        num_frames=4,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_labels=3,
    )
    model = MMEForVideoClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight)
    folder = tmp_path_factory.mktemp("classifier")
    sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    save_with_remote_code(model, MMEVideoProcessor(**sides, num_frames=4, frame_stride=5), folder)
    for seed, name in enumerate(("a.mp4", "b.webm")):
        frames = np.random.default_rng(seed).integers(0, 256, (40, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        codec = "libvpx-vp9" if name.endswith("webm") else "mpeg4"
        write_video(folder / name, frames, codec=codec)
    return folder


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(folder):
    """The address under which the folder is served."""
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pixels_of(folder, name, frames):
    """The model's input, made of these frames of a video."""
    processor = MMEVideoProcessor.from_pretrained(folder)
    with open_video(folder / name) as reader:
        return processor(reader.frames_at(frames), do_sample_frames=False, return_tensors="pt")["pixel_values"]


def logits_of(folder, pixels):
    with torch.no_grad():
        return MMEForVideoClassification.from_pretrained(folder).eval()(pixels).logits[0]


# 4 frames, 5 apart, span 16 of 40 and start at (40 - 16) // 2.
AT_THE_STRIDE = [12, 17, 22, 27]


@pytest.mark.parametrize("name", ["a.mp4", "b.webm"])
def test_classification_takes_the_frames_that_the_checkpoint_was_trained_on(folder, name):
    classify = pipeline("video-classification", model=str(folder), device="cpu")
    answers = classify(str(folder / name))
    shares = logits_of(folder, pixels_of(folder, name, AT_THE_STRIDE)).softmax(-1)
    assert [answer["score"] for answer in answers] == pytest.approx(sorted(shares.tolist(), reverse=True), rel=1e-4)
    # The first 4 frames, which transformers would take of an image processor, give another answer.
    first = logits_of(folder, pixels_of(folder, name, [0, 1, 2, 3])).softmax(-1)
    assert sorted(first.tolist()) != pytest.approx(sorted(shares.tolist()), rel=1e-2)


def test_segments_are_taken_where_the_checkpoint_says_so(folder, tmp_path):
    MMEForVideoClassification.from_pretrained(folder).save_pretrained(tmp_path)
    MMEVideoProcessor.from_pretrained(folder, frame_sampling="segments").save_pretrained(tmp_path)
    classify = pipeline("video-classification", model=str(tmp_path), device="cpu")
    # 40 frames in 4 parts of 10; their middles.
    expected = logits_of(folder, pixels_of(folder, "a.mp4", [5, 15, 25, 35])).softmax(-1)
    scores = [answer["score"] for answer in classify(str(folder / "a.mp4"))]
    assert scores == pytest.approx(sorted(expected.tolist(), reverse=True), rel=1e-4)


@pytest.mark.parametrize("task", ["video-classification", FEATURES])
def test_paths_addresses_bytes_and_lists_give_the_same(folder, server, task):
    run = pipeline(task, model=str(folder), device="cpu")
    one, two = (run(str(folder / name)) for name in ("a.mp4", "b.webm"))
    assert one != two
    assert run((folder / "a.mp4").read_bytes()) == one
    assert run(folder / "a.mp4") == one
    assert run(f"{server}/b.webm") == two
    assert run([str(folder / "a.mp4"), f"{server}/b.webm", (folder / "a.mp4").read_bytes()]) == [one, two, one]
    assert list(run(str(folder / name) for name in ("a.mp4", "b.webm"))) == [one, two]  # a generator


def test_an_address_that_gives_no_video_is_named(folder, server):
    run = pipeline(FEATURES, model=str(folder), device="cpu")
    with pytest.raises(OSError, match=r"the video http://127\.0\.0\.1:\d+/none\.mp4 cannot be fetched: .*404"):
        run(f"{server}/none.mp4")


def test_the_scheme_of_an_address_may_be_written_in_capitals(folder, server):
    processor = MMEVideoProcessor.from_pretrained(folder)
    pixels = processor(f"{server}/a.mp4".replace("http", "HTTP"), return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, processor(folder / "a.mp4", return_tensors="pt")["pixel_values"])


def test_features_are_of_whole_clips(folder):
    extract = pipeline(FEATURES, model=str(folder), device="cpu")
    for run in (partial(extract, str(folder / "a.mp4")), partial(pipeline, FEATURES, model=str(folder), device="cpu")):
        with pytest.raises(ValueError, match="has return_targets, with which most of a clip is hidden"):
            run(processor_kwargs={"return_targets": True})


@pytest.mark.parametrize("model_class", [MMEModel, MMEForPreTraining, MMEForVideoClassification])
def test_features_are_those_of_the_encoder_whatever_the_head(folder, tmp_path, model_class):
    torch.manual_seed(1)
    config = MMEForVideoClassification.from_pretrained(folder).config
    model = model_class(config)
    model.save_pretrained(tmp_path)
    MMEVideoProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    extract = pipeline(FEATURES, model=str(tmp_path), device="cpu")
    assert type(extract) is VideoFeatureExtractionPipeline and type(extract.model) is MMEModel
    encoder = model if model_class is MMEModel else model.mme
    with torch.no_grad():
        tokens = encoder.eval()(pixels_of(folder, "a.mp4", AT_THE_STRIDE)).last_hidden_state[0]
    path = str(folder / "a.mp4")
    torch.testing.assert_close(torch.tensor(extract(path)), tokens.mean(0))
    torch.testing.assert_close(extract(path, return_tensors=True, pool=False), tokens)


def test_features_of_a_layer_of_tokens_and_of_other_frames(folder):
    extract = pipeline(FEATURES, model=str(folder), device="cpu", layer=1, return_tensors=True)
    path, encoder = str(folder / "a.mp4"), extract.model
    with torch.no_grad():
        outputs = encoder(pixels_of(folder, "a.mp4", AT_THE_STRIDE), output_hidden_states=True)
        middle = encoder(pixels_of(folder, "a.mp4", [18, 19, 20, 21])).last_hidden_state
    torch.testing.assert_close(extract(path), outputs.hidden_states[1][0].mean(0))
    torch.testing.assert_close(extract(path, pool=False), outputs.hidden_states[1][0])
    # A call's options win over the pipeline's, and do not stay.
    dense = extract(path, layer=-1, processor_kwargs={"frame_stride": 1})
    torch.testing.assert_close(dense, middle[0].mean(0))
    torch.testing.assert_close(extract(path), outputs.hidden_states[1][0].mean(0))
    with pytest.raises(ValueError, match=r"layer \(7\) must be from -3 to 2"):
        extract(path, layer=7)
    with pytest.raises(TypeError, match="has no option stride"):
        extract(path, processor_kwargs={"stride": 1})


def test_batches_give_what_single_videos_give(folder):
    extract = pipeline(FEATURES, model=str(folder), device="cpu", return_tensors=True)
    paths = [str(folder / name) for name in ("a.mp4", "b.webm", "a.mp4")]
    for batched, path in zip(extract(paths, batch_size=2), paths, strict=True):
        torch.testing.assert_close(batched, extract(path))


def test_features_come_in_the_models_precision_as_lists_or_tensors(folder):
    extract = pipeline(FEATURES, model=str(folder), device="cpu", dtype=torch.bfloat16)
    path = str(folder / "a.mp4")
    assert extract(path, return_tensors=True).dtype == torch.bfloat16
    mean, tokens = extract(path), extract(path, pool=False)
    assert len(mean) == 24 and isinstance(mean[0], float)
    assert (len(tokens), len(tokens[0])) == (2 * 2 * 2, 24)


def test_a_pipeline_of_features_is_saved_with_its_processor(folder, tmp_path):
    extract = pipeline(FEATURES, model=str(folder), device="cpu")
    extract.save_pretrained(tmp_path)
    path = str(folder / "a.mp4")
    assert pipeline(FEATURES, model=str(tmp_path), device="cpu")(path) == pytest.approx(extract(path))


def test_a_model_with_a_head_may_be_given_and_is_used_by_its_encoder(folder):
    classifier = MMEForVideoClassification.from_pretrained(folder)
    options = {"video_processor": MMEVideoProcessor.from_pretrained(folder), "device": "cpu"}
    path = str(folder / "a.mp4")
    expected = pipeline(FEATURES, model=str(folder), device="cpu")(path)
    assert pipeline(FEATURES, model=classifier, **options)(path) == pytest.approx(expected)


def test_features_need_a_model_of_video_and_a_processor(folder):
    with pytest.raises(ValueError, match="needs a video_processor"):
        VideoFeatureExtractionPipeline(model=MMEModel.from_pretrained(folder), device="cpu")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    other = ViTModel(ViTConfig(**sizes))
    with pytest.raises(ValueError, match="ViTModel has none"):
        VideoFeatureExtractionPipeline(model=other, video_processor=MMEVideoProcessor(), device="cpu")
