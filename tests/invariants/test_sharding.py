"""A model whose blocks are sharded over two processes (FSDP2) takes the step of a whole one, and is saved whole."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import multiprocessing

from mme_hf import MMEConfig, MMEForPreTraining, MMEForVideoClassification
from mme_hf.attention_mme import MMELayer
from mme_hf.training.sharding import prepare_to_train, whole_model

SMALL = {"image_size": 32, "num_frames": 4, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 48, "decoder_hidden_size": 24, "decoder_num_attention_heads": 2, "num_labels": 3}
FLOW = {"size": 3, "activation": "linear", "weight": 2, "visible_weight": 0.5}
SMALL |= {"decoder_intermediate_size": 48, "motion_targets": {"flow": FLOW}}
# name -> (class, configuration, whether activations are computed twice, clips of each of the two processes)
CASES = {
    "pre-training": (MMEForPreTraining, {}, False, (2, 2)),
    "pre-training, activations computed twice": (MMEForPreTraining, {}, True, (2, 2)),
    "pre-training, one process without clips": (MMEForPreTraining, {}, False, (4, 0)),
    "classification": (MMEForVideoClassification, {}, False, (2, 2)),
    "classification, activations computed twice": (MMEForVideoClassification, {}, True, (2, 2)),
    "classification, one process without clips": (MMEForVideoClassification, {}, False, (4, 0)),
    "attentive classification": (MMEForVideoClassification, {"use_attentive_pooling": True}, False, (2, 2)),
}
# Newer versions of transformers shard while they load.
HAS_DISTRIBUTED_LOADING = hasattr(MMEForPreTraining, "fsdp_plan")
NUM_CLIPS, LEARNING_RATE = 4, 0.1


def model_of(case):
    model_class, changes, is_checkpointed, _ = CASES[case]
    torch.manual_seed(0)
    model = model_class(MMEConfig(**SMALL, **changes)).train()
    if is_checkpointed:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        assert all(layer.gradient_checkpointing for layer in model.mme.layers)
    return model


def batch_of(case):
    generator = torch.Generator().manual_seed(1)
    batch = {"pixel_values": torch.randn(NUM_CLIPS, 4, 3, 32, 32, generator=generator)}
    if CASES[case][0] is MMEForVideoClassification:
        return {**batch, "labels": torch.tensor([0, 2, 1, 2])}
    is_masked = torch.tensor([1, 0, 0, 1, 0, 1, 1, 0], dtype=torch.bool).expand(NUM_CLIPS, -1)
    counts = torch.rand(NUM_CLIPS, 8, 1, generator=generator) > 0.3
    labels = torch.randn(NUM_CLIPS, 8, 3, generator=generator)
    return {**batch, "bool_masked_pos": is_masked, "labels": labels, "target_mask": counts}


def take_a_step(model, batch, share=1.0):
    """Return loss and gradients of a batch, the loss weighted by `share`, and take an SGD step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    loss = model(**batch).loss * share
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients = {name: getattr(grad, "full_tensor", grad.clone)() for name, grad in gradients.items()}
    optimizer.step()
    return loss.detach(), gradients


def run_sharded(rank, case, folder):
    """Take the step with this process' clips; the first process saves what came of it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", (2,))
    model = model_of(case)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, MMELayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    held = sum(parameter.to_local().numel() for parameter in model.parameters()) / num_parameters
    sizes = CASES[case][3]
    first = sum(sizes[:rank])
    own = {name: tensor[first : first + sizes[rank]] for name, tensor in batch_of(case).items()}
    # Gradients are averaged over processes, so each has the weight of its clips.
    loss, gradients = take_a_step(model, own, share=len(own["labels"]) * 2 / NUM_CLIPS)
    dist.all_reduce(loss)
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    check_whole(whole_model(model.eval()), model)
    if rank == 0:
        model.save_pretrained(folder / case, state_dict=weights)
        torch.save({"loss": loss / 2, "gradients": gradients, "held": held}, folder / case / "step.pt")


def check_whole(copy, model):
    """Check that a copy is of the model's own class and needs no other process, and that making it draws nothing."""
    generator_state = torch.get_rng_state()
    assert type(copy) in (MMEForPreTraining, MMEForVideoClassification) and not copy.training
    for (name, whole), share in zip(copy.named_parameters(), model.parameters(), strict=True):
        assert type(whole) is torch.nn.Parameter and torch.equal(whole, share.full_tensor()), name
    for (name, own), buffer in zip(copy.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(own, buffer), name
    whole_model(model)
    assert torch.equal(torch.get_rng_state(), generator_state)


def load_sharded(rank, folder):
    """Let transformers shard a saved model while it loads, and note its units."""
    from torch.distributed.fsdp import FSDPModule
    from transformers.distributed import DistributedConfig

    for case in ("pre-training", "classification"):
        model = CASES[case][0].from_pretrained(folder / case, distributed_config=DistributedConfig(fsdp_size=2))
        units = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
        loss = model(**batch_of(case)).loss.detach()
        if rank == 0:
            torch.save({"units": units, "loss": loss}, folder / case / "loaded.pt")


def run_all(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for case in CASES:
        run_sharded(rank, case, folder)
    dist.barrier()  # the first process saves what both load
    if HAS_DISTRIBUTED_LOADING:
        load_sharded(rank, folder)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    multiprocessing.spawn(run_all, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_sharded_step_is_that_of_the_whole_model(sharded, case):
    result = torch.load(sharded / case / "step.pt")
    model = model_of(case)
    loss, gradients = take_a_step(model, batch_of(case))
    # Each process holds half, but for parameters of an odd length.
    assert 0.4 < result["held"] < 0.6
    torch.testing.assert_close(result["loss"], loss)
    assert result["gradients"].keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.any(), name
        torch.testing.assert_close(result["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    loaded, report = CASES[case][0].from_pretrained(sharded / case, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.skipif(not HAS_DISTRIBUTED_LOADING, reason="this version of transformers does not shard while it loads")
@pytest.mark.parametrize("case", ["pre-training", "classification"])
def test_a_model_that_transformers_shards_while_it_loads_has_the_same_units_and_loss(sharded, case):
    result = torch.load(sharded / case / "loaded.pt")
    blocks = [name for name, module in model_of(case).named_modules() if isinstance(module, MMELayer)]
    assert result["units"] == ["", *blocks]
    model = CASES[case][0].from_pretrained(sharded / case)
    torch.testing.assert_close(result["loss"], model(**batch_of(case)).loss.detach())


def test_a_model_that_is_not_sharded_is_whole():
    model = model_of("pre-training")
    assert whole_model(model) is model


@pytest.mark.parametrize(
    ("kind", "is_fsdp2", "flags", "message"),
    [
        (DistributedType.DEEPSPEED, False, {}, "configured for DeepSpeed.*fsdp2.yaml"),
        (DistributedType.FSDP, False, {}, "FSDP version 1.*Set fsdp_version to 2"),
        (DistributedType.FSDP, True, {"ema_decay": 0.9}, r"ema_decay \(0.9\) needs whole parameters"),
        (DistributedType.FSDP, True, {"ema_decay": None, "lora_rank": 4}, r"lora_rank \(4\) needs whole parameters"),
        (DistributedType.FSDP, True, {"optimizer": "muon"}, r"optimizer \(muon\) needs whole parameters"),
        (DistributedType.FSDP, True, {"offload": True}, "fsdp_offload_params.*Set it to false"),
        (DistributedType.FSDP, True, {"ema_decay": None, "lora_rank": None, "optimizer": "adamw"}, None),
        (DistributedType.MULTI_GPU, False, {"ema_decay": 0.9}, None),
    ],
)
def test_what_cannot_be_trained_is_refused(kind, is_fsdp2, flags, message):
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_offload="offload" in flags)
    state = SimpleNamespace(fsdp_plugin=plugin)
    accelerator = SimpleNamespace(
        distributed_type=kind, is_fsdp2=is_fsdp2, num_processes=2, process_index=1, state=state
    )
    accelerator.prepare = lambda *parts: parts
    if message is None:
        prepared = prepare_to_train(SimpleNamespace(seed=0, **flags), accelerator, "model", "optimizer")
        assert prepared == ("model", "optimizer")
    else:
        with pytest.raises(ValueError, match=message):
            prepare_to_train(SimpleNamespace(**flags), accelerator, "model", "optimizer")


def test_gradients_of_shares_are_added_up_in_float32():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    state = SimpleNamespace(fsdp_plugin=plugin)
    options = {"distributed_type": DistributedType.FSDP, "is_fsdp2": True, "num_processes": 2, "process_index": 0}
    accelerator = SimpleNamespace(**options, state=state, prepare=lambda *parts: parts)
    prepare_to_train(SimpleNamespace(seed=0), accelerator, "model", "optimizer")
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)


def test_processes_that_accelerate_does_not_join_are_refused(monkeypatch):
    # As torchrun sets it, and Accelerate without an accelerator finds itself.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    accelerator = SimpleNamespace(distributed_type=DistributedType.NO, num_processes=1)
    with pytest.raises(ValueError, match="2 processes were started, .* each would train alone"):
        prepare_to_train(None, accelerator, "model", "optimizer")
