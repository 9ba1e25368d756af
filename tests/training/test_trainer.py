"""transformers' Trainer with our data sets and collators."""

import logging

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from mme_hf import MMEConfig, MMEForPreTraining, MMEForVideoClassification, MMEVideoProcessor
from mme_hf.data import (
    BadVideo,
    ClipCollator,
    ClipDataset,
    ClipSampling,
    RecordCursor,
    RecordRequest,
    TooManyBadVideosError,
    load_folder_records,
)
from mme_hf.data.clips import ClipResult
from mme_hf.data.labelled_clips import Augmentation, LabelledClipDataset, LabelledCollator, ViewSampling
from mme_hf.data.ordering import record_seed
from mme_hf.training.trainer_callbacks import ClipEpochCallback

HEADS = ("pre-training", "classification")


@pytest.fixture(scope="module")
def processor():
    return MMEVideoProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, num_frames=4, frame_stride=2
    )


def small_model(head, processor):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    sizes |= {"decoder_hidden_size": 24, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 48}
    config = MMEConfig(
        image_size=32, num_frames=4, num_labels=2, motion_targets=processor.motion_target_config(), **sizes
    )
    return (MMEForPreTraining if head == HEADS[0] else MMEForVideoClassification)(config)


def dataset_and_collator(head, records, processor, *, is_random=True, **row_options):
    if head == HEADS[0]:
        dataset = ClipDataset(records, processor, ClipSampling(is_random=is_random), **row_options)
        return dataset, ClipCollator(processor).model_inputs
    sampling = ViewSampling(augmentation=Augmentation() if is_random else None)
    dataset = LabelledClipDataset(records, processor, sampling, **row_options)
    return dataset, LabelledCollator(processor).model_inputs


def arguments(output_dir, **changes):
    options = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    options |= {"report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    return TrainingArguments(output_dir=str(output_dir), remove_unused_columns=False, **{**options, **changes})


def weights_of(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


# --- rows ---


@pytest.mark.parametrize("head", HEADS)
def test_a_row_is_a_function_of_seed_epoch_and_row(video_folder, processor, head):
    dataset, collator = dataset_and_collator(head, load_folder_records(video_folder), processor, seed=3)
    assert len(dataset) == 6
    dataset.set_epoch(2)
    row = collator([dataset[4]])
    same = collator([dataset[RecordRequest(4, 2, 4, record_seed(3, 2, 4), RecordCursor(2, 5, 17))]])
    assert row.keys() == same.keys() and all(torch.equal(row[name], same[name]) for name in row)
    dataset.set_epoch(1)
    assert not torch.equal(row["pixel_values"], collator([dataset[4]])["pixel_values"])
    with pytest.raises(IndexError, match=r"row 6 is outside \[0, 6\)"):
        dataset[6]


def test_workers_that_live_on_learn_of_the_next_epoch(video_folder, processor):
    dataset, collator = dataset_and_collator(HEADS[1], load_folder_records(video_folder), processor)
    options = {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "fork", "batch_size": 6}
    loader = DataLoader(dataset, collate_fn=collator, **options)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        (batch,) = loader
        assert torch.equal(batch["pixel_values"], collator([dataset[row] for row in range(6)])["pixel_values"])


def test_the_callback_tells_the_epoch_of_new_and_of_resumed_runs(video_folder, processor, tmp_path):
    dataset, _ = dataset_and_collator(HEADS[0], load_folder_records(video_folder), processor)
    for progress, epoch in ((0, 0), (0.9999999999, 1), (2.5, 2)):
        state = TrainerState(epoch=progress)
        ClipEpochCallback().on_epoch_begin(
            arguments(tmp_path), state, TrainerControl(), train_dataloader=DataLoader(dataset)
        )
        assert dataset.row_reading.epoch == epoch


def test_a_stream_has_no_rows(video_folder, processor):
    dataset, _ = dataset_and_collator(HEADS[0], load_folder_records(video_folder).streamed(), processor)
    with pytest.raises(TypeError, match="is a stream: its length is not known"):
        len(dataset)
    with pytest.raises(TypeError, match="is a stream"):
        dataset[0]


# --- bad videos, missing labels, raw clips ---


@pytest.fixture
def folder_with_a_bad_video(video_folder, tmp_path):
    for index, video in enumerate(sorted(video_folder.rglob("*.mp4"))[:3]):
        folder = tmp_path / "videos" / video.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / video.name).write_bytes(b"no video" if index == 1 else video.read_bytes())
    return tmp_path / "videos"


def test_bad_rows_are_left_out_named_once_and_limited(folder_with_a_bad_video, processor, caplog):
    records = load_folder_records(folder_with_a_bad_video)
    dataset, collator = dataset_and_collator(HEADS[1], records, processor, max_bad_fraction=0.4)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert len(collator([dataset[row] for row in range(3)])["labels"]) == 2
    assert caplog.text.count("skipped a bad video") == 1
    dataset, _ = dataset_and_collator(HEADS[1], records, processor, max_bad_fraction=0.3)
    with pytest.raises(TooManyBadVideosError, match=r"1 of 3 videos are bad, more than max_bad_fraction \(30%\)"):
        list(dataset)


def test_workers_count_bad_rows_together(video_folder, tmp_path, processor):
    good = next(video_folder.rglob("*.mp4")).read_bytes()
    for row, content in enumerate((good, b"no video", good, b"no video")):
        (tmp_path / f"{row}.mp4").write_bytes(content)
    dataset, _ = dataset_and_collator(HEADS[1], load_folder_records(tmp_path), processor, max_bad_fraction=0.5)
    # Each worker meets one of the two.
    list(DataLoader(dataset, collate_fn=len, num_workers=2, multiprocessing_context="fork", batch_size=2))
    dataset.row_reading.max_bad_fraction = 0.4
    with pytest.raises(TooManyBadVideosError, match="2 of 4 videos are bad"):
        dataset[1]


@pytest.mark.parametrize("head", HEADS)
def test_an_update_of_no_clips_changes_nothing(video_folder, processor, head):
    _, collator = dataset_and_collator(head, load_folder_records(video_folder), processor)
    inputs = collator([ClipResult("clip.mp4", (), BadVideo("clip.mp4", "broken"), RecordCursor())])
    model = small_model(head, processor)
    # The Trainer counts the labels of all batches of the update.
    loss = model(**inputs, num_items_in_batch=torch.tensor(inputs["labels"].numel())).loss
    loss.backward()
    assert loss == 0 and not any(parameter.grad.any() for parameter in model.parameters())


def test_what_the_trainer_cannot_take_is_refused(tmp_path, video_folder, processor):
    with pytest.raises(ValueError, match="targets_on .* sends raw clips"):
        ClipCollator(processor, targets_on="device").model_inputs([])
    (tmp_path / "clip.mp4").write_bytes(next(video_folder.rglob("*.mp4")).read_bytes())
    dataset, collator = dataset_and_collator(HEADS[1], load_folder_records(tmp_path), processor)
    with pytest.raises(ValueError, match="clip.mp4 has no label"):
        collator([dataset[0]])


# --- training ---


@pytest.mark.parametrize("head", HEADS)
def test_training_lowers_the_loss_and_evaluation_reports_it(video_folder, processor, tmp_path, head):
    records = load_folder_records(video_folder)
    train, collator = dataset_and_collator(head, records, processor)
    held_out, _ = dataset_and_collator(head, records, processor, is_random=False)
    model = small_model(head, processor)
    trainer = Trainer(
        model,
        arguments(tmp_path, max_steps=4, per_device_train_batch_size=3, per_device_eval_batch_size=3),
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=collator,
        callbacks=[ClipEpochCallback()],
    )

    def loss():
        model.eval()
        with torch.no_grad():
            halves = [model(**collator([held_out[row] for row in rows])).loss.item() for rows in ((0, 1, 2), (3, 4, 5))]
        return sum(halves) / 2

    before = loss()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(before, rel=1e-5)
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < before and after == pytest.approx(loss(), rel=1e-5)
    # 2 updates an epoch.
    assert train.row_reading.epoch == 1


@pytest.mark.parametrize("head", HEADS)
def test_accumulated_batches_take_the_step_of_one_large_batch(video_folder, processor, tmp_path, head):
    records = load_folder_records(video_folder).limited(4)
    weights = []
    # 3 does not divide 4: the batches of this update are not equal in size.
    for batch_size, accumulation in ((4, 1), (1, 4), (3, 2)):
        dataset, collator = dataset_and_collator(head, records, processor)
        options = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        model = small_model(head, processor)
        trainer = Trainer(
            model, arguments(tmp_path, max_steps=1, **options), train_dataset=dataset, data_collator=collator
        )
        trainer.train()
        weights.append(weights_of(model))
    start = weights_of(small_model(head, processor))
    assert max((new - old).abs().max() for new, old in zip(weights[0], start, strict=True)) > 1e-3
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights[2], weights[0], rtol=1e-4, atol=1e-6)
