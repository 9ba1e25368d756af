import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import write_video

from mme_hf import MMEForVideoClassification, MMEVideoProcessor, preset_config
from mme_hf.data import load_folder_records
from mme_hf.data.labelled_clips import NO_LABEL, ViewSampling, build_labelled_loader
from mme_hf.training.prediction import predict_videos, scores_of


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    options = {"image_size": 32, "num_frames": 4, "num_hidden_layers": 1, "num_labels": 3}
    model = MMEForVideoClassification(preset_config("tiny", **options))
    torch.nn.init.normal_(model.classifier.weight)  # it starts so small that all scores are alike
    return model.train()


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    noise = np.random.default_rng(0).integers(0, 255, (3, 8, 32, 48, 3), dtype=np.uint8)
    for name, frames in zip(("fall/a.mp4", "fall/b.mp4", "jump/c.mp4"), noise, strict=True):
        (root / name).parent.mkdir(exist_ok=True)
        write_video(root / name, frames)
    (root / "jump" / "d.mp4").write_bytes(b"no video")
    return load_folder_records(root)


def loader(records, sampling, **options):
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = MMEVideoProcessor(num_frames=4, frame_stride=1, **size)
    options = {"videos_per_batch": 2, "shuffle": False, "num_epochs": 1, **options}
    return build_labelled_loader(records, processor, sampling=sampling, **options)


@pytest.mark.parametrize("clips_per_forward", [1, 4, 100])
def test_scores_of_a_video_are_the_mean_over_its_views(model, records, clips_per_forward):
    sampling = ViewSampling(num_segments=2, num_crops=2)
    predictions = predict_videos(
        Accelerator(cpu=True), model, loader(records, sampling), clips_per_forward=clips_per_forward
    )
    expected = []
    model.eval()
    with torch.no_grad():
        for batch in loader(records, sampling):
            expected += [logits.softmax(-1).mean(0) for logits in model(batch["pixel_values"]).logits.split(4)]
    model.train()
    torch.testing.assert_close(predictions.scores, torch.stack(expected))
    assert predictions.labels.tolist() == [0, 0, 1] and predictions.is_labelled
    assert [source.rsplit("/", 1)[-1] for source in predictions.sources] == ["a.mp4", "b.mp4", "c.mp4"]
    assert predictions.num_views == 12
    assert predictions.scores.std(0).min() > 0  # videos differ, or the mean would prove nothing


def test_a_model_in_training_is_left_in_training(model, records):
    predict_videos(Accelerator(cpu=True), model, loader(records, ViewSampling()), clips_per_forward=8)
    assert model.training


def test_a_batch_of_bad_videos_alone_is_passed_over(model, records):
    one_by_one = loader(records, ViewSampling(), videos_per_batch=1)
    predictions = predict_videos(Accelerator(cpu=True), model, one_by_one, clips_per_forward=8)
    assert len(predictions.scores) == 3
    with pytest.raises(ValueError, match="no video could be read"):
        predict_videos(Accelerator(cpu=True), model, [], clips_per_forward=8)


def test_videos_without_classes_are_told_apart(model, tmp_path):
    write_video(tmp_path / "a.mp4", np.zeros((4, 32, 32, 3), np.uint8))
    videos = loader(load_folder_records(tmp_path), ViewSampling())
    predictions = predict_videos(Accelerator(cpu=True), model, videos, clips_per_forward=8)
    assert predictions.labels.tolist() == [NO_LABEL] and not predictions.is_labelled


def test_scores_go_by_the_kind_of_problem():
    logits = torch.tensor([[0.0, np.log(3.0)]], dtype=torch.bfloat16)
    # exp: 1 and 3. softmax 1/4, 3/4; sigmoid 1/2, 3/4.
    torch.testing.assert_close(scores_of(logits, None), torch.tensor([[0.25, 0.75]]), atol=2e-3, rtol=0)
    multi = scores_of(logits, "multi_label_classification")
    torch.testing.assert_close(multi, torch.tensor([[0.5, 0.75]]), atol=2e-3, rtol=0)
    assert torch.equal(scores_of(logits, "regression"), logits.float())
