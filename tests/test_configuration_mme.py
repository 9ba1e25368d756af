import json

import pytest
from huggingface_hub.errors import StrictDataclassError

from mme_hf.configuration_mme import MMEConfig

TARGET = {"size": 4, "activation": "linear", "weight": 1.0}


def test_defaults_are_the_published_base_model():
    config = MMEConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.decoder_hidden_size, config.decoder_num_hidden_layers) == (192, 1)
    assert config.token_grid == (8, 14, 14)
    assert config.num_tokens == 1568
    assert {name: target["weight"] for name, target in config.motion_targets.items()} == {
        "shape": 3.0,
        "position": 1.0,
    }


def test_frames_need_not_be_square():
    config = MMEConfig(image_size=(128, 192))
    assert config.frame_size == (128, 192)
    assert config.token_grid == (8, 8, 12)


def test_order_of_targets_survives_saving(tmp_path):
    # JSON is written with sorted keys, so names in reverse alphabetical order would come back turned round.
    targets = {"zoom": TARGET, "flow": {**TARGET, "activation": "tanh"}, "area": {**TARGET, "size": 2}}
    MMEConfig(motion_targets=targets).save_pretrained(tmp_path)
    loaded = MMEConfig.from_pretrained(tmp_path)
    assert list(loaded.motion_targets.items()) == list(targets.items())


def test_saved_configuration_comes_back_equal(tmp_path):
    config = MMEConfig(image_size=(64, 96), drop_path_rate=0.1, num_labels=5)
    config.save_pretrained(tmp_path)
    loaded = MMEConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert json.loads((tmp_path / "config.json").read_text())["image_size"] == [64, 96]


def test_default_targets_are_not_shared():
    MMEConfig().motion_targets["shape"]["weight"] = 0.0
    assert MMEConfig().motion_targets["shape"]["weight"] == 3.0


def test_a_misspelt_field_is_refused_and_a_foreign_one_kept():
    with pytest.raises(ValueError, match="MMEConfig has no option hiden_size. Did you mean hidden_size"):
        MMEConfig(hiden_size=384)
    assert MMEConfig(of_another_version=1).of_another_version == 1


def test_a_field_of_a_later_version_is_kept_and_pointed_out_and_one_that_the_caller_misspells_refused(tmp_path, caplog):
    MMEConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**saved, "hidden_sizes": [8], "num_frame": 4, "foo": 1}))
    config = MMEConfig.from_pretrained(tmp_path)
    assert (config.hidden_sizes, config.num_frame, config.foo, config.num_frames) == ([8], 4, 1, 16)
    messages = [record.getMessage() for record in caplog.records if "has no option" in record.getMessage()]
    assert [message.split(".")[0] for message in messages] == [
        "MMEConfig has no option hidden_sizes",
        "MMEConfig has no option num_frame",
    ]
    assert "_is_saved" not in config.to_dict()
    with pytest.raises(ValueError, match="MMEConfig has no option drop_path_rat. Did you mean drop_path_rate"):
        MMEConfig.from_pretrained(tmp_path, drop_path_rat=0.1)


def test_targets_may_be_a_list_at_any_time(tmp_path):
    config = MMEConfig()
    config.motion_targets = [{"name": "b", **TARGET}, {"name": "a", **TARGET}]
    config.save_pretrained(tmp_path)
    assert list(MMEConfig.from_pretrained(tmp_path).motion_targets) == ["b", "a"]
    config.motion_targets = [TARGET]
    with pytest.raises(StrictDataclassError, match="needs a name of its own"):
        config.save_pretrained(tmp_path)


def test_the_other_name_of_the_epsilon_is_the_same_field(tmp_path):
    config = MMEConfig(layer_norm_epsilon=1e-3)
    assert config.layer_norm_eps == 1e-3
    config.layer_norm_epsilon = 1e-2
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "layer_norm_epsilon" not in saved and saved["layer_norm_eps"] == 1e-2
    assert MMEConfig.from_pretrained(tmp_path).layer_norm_epsilon == 1e-2


def test_what_is_given_in_place_of_saved_fields_is_read_and_checked_like_them(tmp_path):
    MMEConfig().save_pretrained(tmp_path)
    targets = [{"name": "b", **TARGET}, {"name": "a", **TARGET}]
    config = MMEConfig.from_pretrained(tmp_path, motion_targets=targets, image_size=(64, 32), id2label={0: "run"})
    assert list(config.motion_targets) == ["b", "a"] and config.image_size == [64, 32] and config.num_labels == 1
    for wrong in ({"drop_path_rate": 1.0}, {"num_frames": 15}, {"layer_norm_epsilon": 0.0}):
        with pytest.raises(StrictDataclassError, match="must be|does not divide"):
            MMEConfig.from_pretrained(tmp_path, **wrong)
    _, unused = MMEConfig.from_pretrained(tmp_path, num_frames=8, own="word", return_unused_kwargs=True)
    assert unused == {"own": "word"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden_size": 100}, r"hidden_size \(100\) does not divide by num_attention_heads \(12\).*multiple of 12"),
        ({"decoder_hidden_size": 100}, r"decoder_hidden_size \(100\) does not divide by decoder_num_attention_heads"),
        ({"hidden_size": 33, "num_attention_heads": 3}, r"hidden_size \(33\) is odd.*even hidden_size"),
        ({"decoder_hidden_size": 9, "decoder_num_attention_heads": 3}, r"decoder_hidden_size \(9\) is odd"),
        ({"image_size": 100}, r"image_size \(100\) does not divide by patch_size \(16\).*multiples of 16"),
        ({"image_size": [224, 100]}, r"image_size \(\[224, 100\]\) does not divide by patch_size \(16\)"),
        ({"image_size": 0}, r"image_size \(0\) does not divide.*positive"),
        ({"image_size": [224, 224, 3]}, r"image_size \(\[224, 224, 3\]\) must be one number or \[height, width\]"),
        ({"image_size": True}, r"image_size"),
        ({"num_frames": 15}, r"num_frames \(15\) does not divide by tubelet_size \(2\).*multiple of 2"),
        ({"tubelet_size": 3}, r"num_frames \(16\) does not divide by tubelet_size \(3\)"),
        ({"patch_size": 0}, r"patch_size \(0\) must be at least 1"),
        ({"num_hidden_layers": -1}, r"num_hidden_layers \(-1\) must be at least 1"),
        ({"decoder_num_hidden_layers": 0}, r"decoder_num_hidden_layers \(0\) must be at least 1"),
        ({"num_attention_heads": 0}, r"num_attention_heads \(0\) must be at least 1"),
        ({"tubelet_size": 0}, r"tubelet_size \(0\) must be at least 1"),
        ({"num_channels": True}, r"num_channels.*True"),
        ({"hidden_size": None}, r"hidden_size.*None"),
        ({"hidden_size": 768.0}, r"hidden_size.*768.0"),
        ({"qkv_bias": 1}, r"qkv_bias.*1"),
        ({"hidden_act": "gelo"}, r"hidden_act \('gelo'\) is unknown. Known names: .*gelu"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate \(1.0\) must be in \[0, 1\)"),
        ({"hidden_dropout_prob": -0.1}, r"hidden_dropout_prob \(-0.1\) must be in \[0, 1\)"),
        ({"attention_probs_dropout_prob": float("nan")}, r"attention_probs_dropout_prob \(nan\) must be in"),
        ({"layer_norm_eps": 0.0}, r"layer_norm_eps \(0.0\) must be a finite number above 0"),
        ({"initializer_range": -1}, r"initializer_range \(-1\) must be a finite number above 0"),
        ({"motion_targets": {}}, r"motion_targets \(\{\}\) is empty. Name at least one target"),
        ({"motion_targets": {"a.b": TARGET}}, r"motion_targets\['a.b'\]: the name must be a Python identifier"),
        (
            {"motion_targets": {"a": {"size": 4}}},
            r"motion_targets\['a'\] has the keys \['size'\]; it needs activation, size and weight",
        ),
        ({"motion_targets": {"a": {**TARGET, "waight": 1}}}, r"has the keys .*'waight'.*and may have visible_weight"),
        ({"motion_targets": {"a": {**TARGET, "size": 0}}}, r"motion_targets\['a'\]\['size'\] \(0\) must be"),
        ({"motion_targets": {"a": {**TARGET, "size": True}}}, r"motion_targets\['a'\]\['size'\] \(True\) must be"),
        ({"motion_targets": {"a": {**TARGET, "activation": "relu"}}}, r"\['activation'\] \('relu'\) must be one of"),
        ({"motion_targets": {"a": {**TARGET, "weight": -1}}}, r"\['weight'\] \(-1\) must be a finite number"),
        ({"motion_targets": {"a": {**TARGET, "visible_weight": -1}}}, r"\['visible_weight'\] \(-1\) must be a finite"),
        (
            {"motion_targets": {"a": {**TARGET, "visible_weight": 1.0}, "visible_a": TARGET}},
            "whose loss is called 'visible_a', and a target of that name. Call it something else",
        ),
        ({"motion_targets": [TARGET]}, r"motion_targets entry .* needs a name of its own"),
    ],
)
def test_wrong_configuration_names_field_value_and_remedy(wrong, message):
    # Type errors and range errors of fields are transformers' own classes; list entries are read before these exist.
    with pytest.raises((StrictDataclassError, ValueError), match=f"(?s){message}"):
        MMEConfig(**wrong)
