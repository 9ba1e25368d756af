"""transformers' own linter of models finds nothing in the core files but what is named here."""

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from mme_hf import MMEVideoProcessor

SOURCE = Path(__file__).parents[1] / "src" / "mme_hf"
# Rules that do not fit a package of its own, and why.
OFF = {
    "TRF016": "sees only preprocess(); the flags are read where frames are loaded, cut and normalised. Tested below",
    "TRF028": "a licence header on every file; the package has its LICENSE file",
    "TRF029": "sizes beside the configuration; blocks of encoder and decoder are one class, with two widths",
    "TRF057": "@auto_docstring; outside of transformers it writes placeholders into docstrings",
}
# It tells by the name what a file is, and reads no others: parts of the model and of the processor are given one.
MODEL_PARTS = ("attention", "layers", "outputs", "tokens", "videomae_weights")
PROCESSOR_PARTS = ("frame_sampling", "raw_clips", "video_inputs", "video_options")


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """Rule -> messages, of all files that the linter has rules for."""
    pytest.importorskip("mlinter", reason="transformers-mlinter is not installed")
    folder = tmp_path_factory.mktemp("linted")
    for name in ("modeling_mme", "configuration_mme", "video_processing_mme"):
        shutil.copy(SOURCE / f"{name}.py", folder)
    for kind, parts in (("modeling", MODEL_PARTS), ("video_processing", PROCESSOR_PARTS)):
        for part in parts:
            shutil.copy(SOURCE / f"{part}_mme.py", folder / f"{kind}_{part}.py")
    report = folder / "report.json"
    command = [
        sys.executable,
        "-m",
        "mlinter",
        "--no-cache",
        "--no-progress",
        "--output-json",
        str(report),
        str(folder),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert report.exists(), result.stderr
    messages = defaultdict(list)
    for finding in json.loads(report.read_text())["findings"]:
        messages[finding["rule"]].append(f"{Path(finding['path']).name}:{finding['line']}: {finding['message']}")
    return messages


def test_nothing_is_found(findings):
    assert [message for rule, messages in findings.items() if rule not in OFF for message in messages] == []


def test_no_rule_is_off_without_need(findings):
    assert set(OFF) <= set(findings)


def test_every_file_was_linted(findings):
    linted = {message.split(":")[0] for message in findings["TRF028"]}
    assert len(linted) == 3 + len(MODEL_PARTS) + len(PROCESSOR_PARTS)


@pytest.mark.parametrize("flag", ["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"])
def test_flags_that_the_linter_does_not_find_have_an_effect(flag):
    sizes = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    processor = MMEVideoProcessor(num_frames=2, frame_stride=1, image_mean=0.4, image_std=0.2, **sizes)
    grey = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 1), dtype=np.uint8)
    with_it, without = (
        processor(grey, return_tensors="np", **{flag: value})["pixel_values"] for value in (True, False)
    )
    assert with_it.shape == (1, 2, 3, 32, 32)
    assert with_it.shape != without.shape or not np.allclose(with_it, without)
