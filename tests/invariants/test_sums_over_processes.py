"""What two processes add up, gradients of several batches and errors of a model, is that of one with all batches."""

import os
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import multiprocessing, nn

from mme_hf.training import MeanPredictor, explained_share, run_update
from mme_hf.training.processes import gather_on_main, group_of_cpus
from mme_hf.training.sharding import prepare_to_train

NUM_PROCESSES = 2
# Of each clip three inputs, for two updates of four clips; targets are ones.
INPUTS = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
# Five clips of a judgement, with two labels for each of two tokens, the second of which is masked.
LABELS = torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(1))


class Line(nn.Module):
    """Predicts w x; its loss is the mean over clips of (w x - 1) ** 2."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -0.5, 1.0]))

    def forward(self, pixel_values):
        return SimpleNamespace(loss=(pixel_values @ self.w - 1).square().mean())


class Guess(nn.Module):
    """Predicts 0.3 for every label."""

    def forward(self, pixel_values, masked_indices, **_):
        return SimpleNamespace(logits=torch.full((*masked_indices.shape, 2), 0.3))

    def split_targets(self, values):
        return {"position": values}


def clips(values):
    return {"inputs": {"pixel_values": values}, "sources": ["clip"] * len(values), "bad_videos": [], "num_records": 0}


def judged(labels):
    ones = torch.ones(len(labels), 2, 1, dtype=torch.bool)
    indices = torch.ones(len(labels), 1, dtype=torch.int64)
    inputs = {"pixel_values": labels, "labels": labels, "masked_indices": indices, "target_mask": ones}
    return {"inputs": inputs}


def results(updates, judgement, clips_per_batch, rank=0):
    """Return what a process makes of the batches of its updates, and of those of its judgement."""
    accelerator = Accelerator(cpu=True)
    model = Line()
    weights = model.w
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = prepare_to_train(SimpleNamespace(seed=3), accelerator, model, optimizer)
    options = {"inputs_of": lambda batch: batch["inputs"], "clips_per_batch": clips_per_batch, "step": 1}
    reports = [run_update(accelerator, model, optimizer, batches, **options) for batches in updates]
    baseline = MeanPredictor.fit(judgement, {"position": 2}, accelerator)
    share = explained_share(Guess(), judgement, baseline, accelerator)
    return {
        "weights": weights.detach(),
        "losses": [report.loss for report in reports],
        "grad_norms": [report.grad_norm for report in reports],
        "num_clips": [report.num_clips for report in reports],
        "means": baseline.means["position"],
        "share": share["position"],
        "gathered": gather_on_main(range(10 * rank, 12 * rank + 3), group_of_cpus(), num_at_once=2),
        "draw": float(torch.rand(())),
    }


def run_one(rank, folder):
    torch.set_num_threads(1)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": NUM_PROCESSES}
    os.environ.update({name: str(value) for name, value in ranks.items()}, ACCELERATE_USE_CPU="true")
    # Accelerate asks for an address, though the processes have met by the file below.
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=NUM_PROCESSES)
    # Two batches of one clip in each update; of the clips to judge by one process has four and the other one.
    updates = [[clips(own[None]) for own in all_clips[rank::NUM_PROCESSES]] for all_clips in INPUTS]
    judgement = [judged(LABELS[:3]), judged(LABELS[3:4])] if rank == 0 else [judged(LABELS[4:])]
    torch.save(results(updates, judgement, clips_per_batch=1, rank=rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone():
    return results([[clips(all_clips)] for all_clips in INPUTS], [judged(LABELS)], clips_per_batch=4)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(run_one, (folder,), nprocs=NUM_PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(NUM_PROCESSES)]


def test_an_update_over_several_batches_of_two_processes_is_that_of_one_batch(alone, together):
    assert not torch.allclose(alone["weights"], Line().w, atol=0.01)
    for result in together:
        torch.testing.assert_close(result["weights"], alone["weights"])
        assert result["num_clips"] == alone["num_clips"] == [4, 4]
        assert result["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert result["grad_norms"] == pytest.approx(alone["grad_norms"], rel=1e-5)


def test_a_model_is_judged_by_the_clips_of_all_processes(alone, together):
    torch.testing.assert_close(alone["means"], LABELS[:, 1].double().mean(0))
    for result in together:
        torch.testing.assert_close(result["means"], alone["means"], atol=1e-6, rtol=1e-5)
        assert result["share"] == pytest.approx(alone["share"], rel=1e-5)


def test_what_all_processes_have_is_brought_to_the_main_one(alone, together):
    assert alone["gathered"] == [0, 1, 2]
    # The first has three of them and the second five, two of which travel at once.
    assert [result["gathered"] for result in together] == [[0, 1, 2, 10, 11, 12, 13, 14], []]


def test_each_process_draws_its_own(alone, together):
    assert together[0]["draw"] == alone["draw"] != together[1]["draw"]
