"""One optimizer update."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mme_hf.data import BadVideo
from mme_hf.training import NonFiniteLossError, run_update


class Outputs:
    def __init__(self, loss):
        self.loss = loss
        self.target_losses = {"position": loss / 2, "shape": loss / 4}


class MeanSquare(nn.Module):
    """loss = mean over clips of (w x - 1)^2, so that every gradient can be worked out by hand."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5))

    def forward(self, pixel_values):
        errors = (self.w * pixel_values - 1).square()
        return Outputs(errors.sum() / max(len(pixel_values), 1))


def batch(*values, bad=()):
    return {
        "inputs": {"pixel_values": torch.tensor(values, dtype=torch.float32)},
        "sources": [f"clip {value}" for value in values],
        "bad_videos": [BadVideo(name, "broken") for name in bad],
        "num_records": len(values) + len(bad),
    }


def inputs_of(batch):
    return batch["inputs"]


def update(batches, *, clips_per_batch, max_grad_norm=None):
    accelerator = Accelerator(cpu=True)
    model = MeanSquare()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    report = run_update(
        accelerator,
        model,
        optimizer,
        batches,
        inputs_of=inputs_of,
        clips_per_batch=clips_per_batch,
        step=7,
        max_grad_norm=max_grad_norm,
    )
    return report, model.w.item()


def test_one_batch_of_four_equals_four_batches_of_one():
    whole, w_whole = update([batch(1.0, 2.0, 3.0, 4.0)], clips_per_batch=4)
    parts, w_parts = update([batch(1.0), batch(2.0), batch(3.0), batch(4.0)], clips_per_batch=1)
    assert w_whole == pytest.approx(w_parts, abs=1e-7)
    assert whole.loss == pytest.approx(parts.loss)
    assert whole.target_losses == pytest.approx(parts.target_losses)
    assert whole.grad_norm == pytest.approx(parts.grad_norm)


def test_the_numbers_are_those_worked_out_by_hand():
    # Errors at w = 0.5: (-0.5, 0), loss 0.125. d loss / dw = mean of 2 (w x - 1) x = (2 * -0.5 * 1 + 0) / 2 = -0.5.
    report, w = update([batch(1.0, 2.0)], clips_per_batch=2)
    assert (report.loss, report.grad_norm, report.num_clips) == (pytest.approx(0.125), pytest.approx(0.5), 2)
    assert report.target_losses == {"position": pytest.approx(0.0625), "shape": pytest.approx(0.03125)}
    assert w == pytest.approx(0.55)


def test_the_gradient_norm_is_reported_before_clipping():
    report, w = update([batch(1.0, 2.0)], clips_per_batch=2, max_grad_norm=0.1)
    assert report.grad_norm == pytest.approx(0.5)
    assert w == pytest.approx(0.5 + 0.1 * 0.1, rel=1e-4)


def test_a_lost_clip_gives_no_weight_to_the_others():
    complete, w_complete = update([batch(1.0, 2.0)], clips_per_batch=2)
    # The second clip's gradient is 0 at w = 0.5, so losing it must change nothing.
    lost, w_lost = update([batch(1.0, bad=["b"])], clips_per_batch=2)
    assert w_lost == pytest.approx(w_complete)
    assert (lost.num_clips, lost.num_records, [bad.source for bad in lost.bad_videos]) == (1, 2, ["b"])
    assert lost.loss == pytest.approx(0.25)  # the mean over the clips that there are


def test_a_batch_without_any_clip_changes_nothing():
    report, w = update([batch(bad=["a", "b"])], clips_per_batch=2)
    assert w == 0.5
    assert (report.num_clips, report.loss, report.grad_norm) == (0, 0.0, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_videos(value):
    accelerator = Accelerator(cpu=True)
    model = MeanSquare()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batches = [batch(1.0), batch(value)]
    with pytest.raises(NonFiniteLossError, match=f"step 7: .*not finite.* Videos of the batch: clip {value}\\. Look"):
        run_update(accelerator, model, optimizer, batches, inputs_of=inputs_of, clips_per_batch=1, step=7)
    assert model.w.item() == 0.5


def test_a_gradient_that_is_not_finite_stops_it_too():
    accelerator = Accelerator(cpu=True)
    model = MeanSquare()
    model.w.register_hook(lambda gradient: gradient * math.inf)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(NonFiniteLossError, match="gradient norm inf.*clip 1.0"):
        run_update(accelerator, model, optimizer, [batch(1.0)], inputs_of=inputs_of, clips_per_batch=1, step=1)
