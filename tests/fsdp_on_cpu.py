"""Run a script with FSDP2 as examples/configs/accelerate/fsdp2.yaml has it, but on CPUs.

    torchrun --nproc_per_node 2 tests/fsdp_on_cpu.py examples/pretrain.py ...

On CPUs Accelerate leaves FSDP out and trains whole copies, without a word. Here it is told otherwise, once it has found
out on what it runs.
"""

import os
import runpy
import sys
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

CONFIG = Path(__file__).parents[1] / "examples" / "configs" / "accelerate" / "fsdp2.yaml"


def set_environment() -> None:
    """Set what the configuration says about FSDP, as `accelerate launch` does."""
    arguments = launch_command_parser().parse_args(["--config_file", str(CONFIG), "script.py"])
    environment = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    os.environ.update({name: value for name, value in environment.items() if name.startswith("FSDP_")})


def use_fsdp() -> None:
    """Let Accelerate's state, once it is made, be that of FSDP."""
    original = AcceleratorState.__init__

    def initialise(self, *args, **kwargs):
        is_new = not self.initialized
        original(self, *args, **kwargs)
        if is_new:
            self.fsdp_plugin = FullyShardedDataParallelPlugin()
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = initialise


if __name__ == "__main__":
    set_environment()
    use_fsdp()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
