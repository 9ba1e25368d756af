"""Training with parameters spread over processes (FSDP2): what can be trained so, and how a model is whole again."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Flags of fine-tuning that work on the parameters themselves.
_NEEDS_WHOLE_PARAMETERS = ("ema_decay", "lora_rank")


def prepare_to_train(
    args: Any, accelerator: Accelerator, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return model and optimizer as Accelerate prepares them, alone, on copies (DDP) or on shares (FSDP2).

    From then on each process draws its own dropout and stochastic depth: those of other clips.

    Args:
        args: Of the run.
        accelerator: Says which.
        model: To train.
        optimizer: Of the model's parameters.

    Raises:
        ValueError: If Accelerate is configured for something that the training loop, or a flag, cannot do.
    """
    kind = accelerator.distributed_type
    num_started = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if accelerator.num_processes == 1 < num_started:
        raise ValueError(
            f"{num_started} processes were started, and accelerate finds no accelerator for them: each would train "
            "alone, into the same folder. Start one, or set ACCELERATE_USE_CPU=true to train on CPUs, without FSDP."
        )
    if kind == DistributedType.DEEPSPEED:
        raise ValueError(
            "accelerate is configured for DeepSpeed, whose engine takes the optimizer's step by itself, before an "
            "update has been checked. Use examples/configs/accelerate/fsdp2.yaml, or transformers' Trainer."
        )
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError(
            "accelerate is configured for FSDP version 1, whose parameters are not the model's own. Set fsdp_version "
            "to 2, as examples/configs/accelerate/fsdp2.yaml does."
        )
    if kind == DistributedType.FSDP and isinstance(accelerator.state.fsdp_plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError(
            "accelerate is configured to keep parameters on the CPU (fsdp_offload_params), where the model that is put "
            "together again to be judged could not be run. Set it to false."
        )
    wanted = [name for name in _NEEDS_WHOLE_PARAMETERS if getattr(args, name, None)]
    if getattr(args, "optimizer", None) == "muon":
        wanted = ["optimizer", *wanted]
    if kind == DistributedType.FSDP and wanted:
        raise ValueError(
            f"{wanted[0]} ({getattr(args, wanted[0])}) needs whole parameters, which a process does not have where "
            "accelerate is configured for FSDP. Leave one of them out."
        )
    if kind == DistributedType.FSDP and accelerator.state.fsdp_plugin.mixed_precision_policy is not None:
        # Accelerate would also add up gradients, of batches and of processes, in bfloat16.
        plugin = accelerator.state.fsdp_plugin
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)
    prepared = accelerator.prepare(model, optimizer)
    set_seed(args.seed + accelerator.process_index)
    return prepared


def whole_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model with all of its parameters on this process, of which it may do with it what others do not.

    Itself, unless its parameters are spread over processes; then a copy, in the same mode and on the same device, which
    every process has to ask for at the same time. The copy takes up as much memory as the model without its gradients
    and optimizer states would on one device.
    """
    shares = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
    if not shares:
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    # The weights that a model starts with are drawn: a run that asks for a copy must go on like one that does not.
    with torch.random.fork_rng(devices=[]):
        # FSDP2 has made the model's class one of its own, which makes instances of the original one.
        copy = type(model)(model.config)
    copy.load_state_dict(weights)
    return copy.to(shares[0].device).train(model.training)
