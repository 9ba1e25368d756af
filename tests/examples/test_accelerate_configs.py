"""The configurations of examples/configs/accelerate, as `accelerate launch` takes them."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from mme_hf import MMEForPreTraining, preset_config
from mme_hf.attention_mme import MMELayer

FOLDER = Path(__file__).parents[2] / "examples" / "configs" / "accelerate"
KINDS = {"fsdp2": DistributedType.FSDP, "deepspeed_zero2": DistributedType.DEEPSPEED}


def unknown_keys(path):
    """Return what a file says that `accelerate launch` has no option for: it would be passed over without a word."""
    options = vars(launch_command_parser().parse_args(["script.py"]))
    config = load_config_from_file(str(path))
    return {key for section in (config.fsdp_config, config.deepspeed_config) for key in section} - options.keys()


def set_launch_environment(path, prepare, monkeypatch):
    """Set what `accelerate launch` would set for the processes that it starts."""
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    arguments, defaults, _ = _validate_launch_command(arguments)
    arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    for name, value in prepare(arguments).items():
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(name, value)


def test_each_file_is_tested():
    assert {path.stem for path in FOLDER.iterdir()} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_knows_each_key(name, tmp_path):
    path = FOLDER / f"{name}.yaml"
    assert load_config_from_file(str(path)).distributed_type == KINDS[name]
    assert unknown_keys(path) == set()
    # What is misspelt is found, in a section and beside it.
    contents = yaml.safe_load(path.read_text())
    section = "fsdp_config" if name == "fsdp2" else "deepspeed_config"
    for part, expected in ({section: {**contents[section], "zero_stag": 2}}, None), ({"num_process": 2}, ValueError):
        changed = tmp_path / "changed.yaml"
        changed.write_text(yaml.safe_dump({**contents, **part}))
        if expected is None:
            assert unknown_keys(changed) == {"zero_stag"}
        else:
            with pytest.raises(expected, match="num_process"):
                load_config_from_file(str(changed))


def test_fsdp2_makes_each_block_a_unit(monkeypatch):
    set_launch_environment(FOLDER / "fsdp2.yaml", prepare_multi_gpu_env, monkeypatch)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT" and not plugin.cpu_ram_efficient_loading
    plugin.set_auto_wrap_policy(MMEForPreTraining(preset_config("tiny")))
    assert plugin.auto_wrap_policy.keywords == {"transformer_layer_cls": {MMELayer}}


def test_deepspeed_is_zero_2_with_what_the_trainer_decides_left_open(monkeypatch):
    set_launch_environment(
        FOLDER / "deepspeed_zero2.yaml", lambda arguments: prepare_deepspeed_cmd_env(arguments)[1], monkeypatch
    )
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision("bf16")
    config = plugin.deepspeed_config
    assert config["zero_optimization"]["stage"] == 2 and config["bf16"]["enabled"] is True
    for name in ("gradient_accumulation_steps", "gradient_clipping", "train_micro_batch_size_per_gpu"):
        assert config[name] == "auto"


def test_deepspeed_takes_the_configuration(monkeypatch):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    from deepspeed.runtime.config import DeepSpeedConfig

    set_launch_environment(
        FOLDER / "deepspeed_zero2.yaml", lambda arguments: prepare_deepspeed_cmd_env(arguments)[1], monkeypatch
    )
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision("bf16")
    # As the Trainer fills it in.
    filled = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 2}
    config = {**plugin.deepspeed_config, **filled, "gradient_clipping": 1.0, "steps_per_print": 10}
    made = DeepSpeedConfig(config)
    assert made.zero_optimization_stage == 2 and made.bfloat16_config.enabled
    config["zero_optimization"] = {**config["zero_optimization"], "stag": 2}
    with pytest.raises(ValueError, match="stag"):
        DeepSpeedConfig(config)
