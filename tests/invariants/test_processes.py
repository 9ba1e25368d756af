"""Two processes, on one machine or two, do what one process with twice the batch does."""

import pytest
import runs
import torch

# With seed 1 the gradient of one weight of the patch embedding is but rounding on some CPUs. AdamW takes a whole step
# along it, which says nothing of processes.
FLAGS = {"max_train_steps": 4, "model_options": runs.SMALL["model_options"].replace("0.2", "0.0"), "seed": 2}


@pytest.fixture(scope="module")
def alone(video_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    runs.finish(runs.start(folder, **FLAGS, train_dir=video_folder, per_device_train_batch_size=4))
    return folder


def assert_same_run(first, second):
    assert runs.logged(first) == pytest.approx(runs.logged(second), rel=1e-5)
    assert runs.logged(first, "train/grad_norm") == pytest.approx(runs.logged(second, "train/grad_norm"), rel=1e-4)
    one, two = runs.weights(first), runs.weights(second)
    assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-5) for name in one)


@pytest.mark.parametrize("targets_on", ["workers", "device"])
def test_two_processes_give_the_losses_of_one_with_twice_the_batch(alone, video_folder, tmp_path, targets_on):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(runs.free_port()))
    flags = {**FLAGS, "train_dir": video_folder, "per_device_train_batch_size": 2}
    flags |= {"targets_on": targets_on, "tracker": "dis"}
    runs.finish(runs.start(tmp_path / "two", launcher=launcher, **flags))
    assert_same_run(tmp_path / "two", alone)


def test_two_machines_give_the_losses_of_one_with_twice_the_batch(alone, video_folder, tmp_path):
    flags = {**FLAGS, "train_dir": video_folder, "per_device_train_batch_size": 2}
    port = str(runs.free_port())
    machines = [
        runs.start(
            tmp_path / "two",
            launcher=(
                *("-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", rank, "--nproc_per_node", "1"),
                *("--master_addr", "127.0.0.1", "--master_port", port),
            ),
            **flags,
        )
        for rank in ("0", "1")
    ]
    for machine in machines:
        runs.finish(machine)
    assert_same_run(tmp_path / "two", alone)
