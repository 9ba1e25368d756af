"""Models, processors and tracks go to a Hub and come back: the real client, over HTTP, to a server of the tests."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_xet import XetStore
from huggingface_hub import HfApi

from mme_hf import MMEConfig, MMEForPreTraining, MMEModel, MMEVideoProcessor
from mme_hf.data import StoredTracks
from mme_hf.data.stored_tracks import bad_video_row, shard_path, write_shard
from mme_hf.hub import PushError, create_repository, download_tracks, push_folder
from mme_hf.motion import MotionParameters, build_tracker

SMALL = {
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "decoder_hidden_size": 16,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}
STORED = "[0-9a-f]{64}"  # how a large file is called where it is stored


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MMEForPreTraining(MMEConfig(**SMALL))


@pytest.fixture
def run_folder(model, tmp_path):
    """What a run leaves: what is for others, and what is not."""
    folder = tmp_path / "a run"
    model.save_pretrained(folder)
    MMEVideoProcessor(num_frames=4, frame_stride=3).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- video\n---\n# A model\n")
    (folder / "modeling_mme.py").write_text("# remote code\n")
    (folder / "last").mkdir()
    for name in ("bad_videos.jsonl", "motion_health.json", "last/model.safetensors", "last/modeling_mme.py", "logs"):
        (folder / name).write_text("/home/me/videos")
    return folder


@pytest.fixture
def no_waiting(monkeypatch):
    """Let the client try again at once, not after seconds."""
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda seconds: None))


def push_later(error):
    """Run the command that a message ends with, as one who is logged in."""
    command = shlex.split(str(error).split("push it later with: ")[1])
    assert command[:2] == ["hf", "upload"]
    client = Path(sys.executable).with_name("hf")
    subprocess.run([client, *command[1:]], check=True, capture_output=True, env={**os.environ, "HF_TOKEN": "hf_mine"})


def assert_same_weights(model, other):
    expected, actual = model.state_dict(), other.state_dict()
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(actual[name], values, rtol=0, atol=0)


def test_a_pushed_run_is_loaded_by_its_name_and_holds_nothing_of_this_machine(hub, model, run_folder):
    assert create_repository("mine", token="hf_mine") == "me/mine"
    assert push_folder(run_folder, "me/mine", token="hf_mine") == f"{hub.url}/me/mine"
    pushed = hub.repositories["model", "me/mine"].files()
    own = {"README.md", "config.json", "model.safetensors", "modeling_mme.py", "video_preprocessor_config.json"}
    assert set(pushed) == own | {".gitattributes"}
    assert pushed["model.safetensors"].is_large and hub.asked(f"PUT /{STORED}")
    assert_same_weights(model, MMEForPreTraining.from_pretrained("me/mine"))
    assert MMEVideoProcessor.from_pretrained("me/mine").frame_stride == 3
    assert HfApi().model_info("me/mine").card_data.license == "apache-2.0"


def test_weights_in_several_files_are_pushed_with_their_index(hub, model, tmp_path):
    model.save_pretrained(tmp_path / "run", max_shard_size="200KB")
    push_folder(tmp_path / "run", "me/mine", token="hf_mine")
    assert len([path for path in hub.repositories["model", "me/mine"].files() if path.endswith(".safetensors")]) > 1
    assert_same_weights(model, MMEForPreTraining.from_pretrained("me/mine"))


def test_models_and_processors_push_themselves(hub, model):
    model.push_to_hub("me/mine", token="hf_mine")
    MMEVideoProcessor(frame_stride=3).push_to_hub("me/mine", token="hf_mine")
    assert_same_weights(model.mme, MMEModel.from_pretrained("me/mine"))
    assert MMEVideoProcessor.from_pretrained("me/mine").frame_stride == 3
    assert "mme" in hub.repositories["model", "me/mine"].content("config.json").decode()


def test_every_revision_can_be_loaded(hub, model, run_folder):
    push_folder(run_folder, "me/mine", token="hf_mine")
    api = HfApi(token="hf_mine")
    api.create_tag("me/mine", tag="v1")
    first = api.model_info("me/mine").sha
    later = MMEForPreTraining(MMEConfig(**SMALL))
    later.push_to_hub("me/mine", token="hf_mine")
    MMEForPreTraining(MMEConfig(**SMALL)).push_to_hub("me/mine", token="hf_mine", revision="trial")
    assert_same_weights(later, MMEForPreTraining.from_pretrained("me/mine"))
    for revision in ("v1", first):
        assert_same_weights(model, MMEForPreTraining.from_pretrained("me/mine", revision=revision))
    with pytest.raises(OSError, match="no-such-revision is not a valid git identifier"):
        MMEModel.from_pretrained("me/mine", revision="no-such-revision")


def test_a_private_repository_is_for_its_owner(hub, model, run_folder):
    create_repository("me/secret", token="hf_mine", private=True)
    push_folder(run_folder, "me/secret", token="hf_mine", private=True)
    assert hub.repositories["model", "me/secret"].is_private
    for token in (None, "hf_yours"):  # a stranger is not told that there is one
        with pytest.raises(OSError, match="me/secret is not a local folder and is not a valid model identifier"):
            MMEForPreTraining.from_pretrained("me/secret", token=token)
    assert_same_weights(model, MMEForPreTraining.from_pretrained("me/secret", token="hf_reads"))
    assert MMEVideoProcessor.from_pretrained("me/secret", token="hf_reads").frame_stride == 3


@pytest.mark.parametrize("push", [create_repository, lambda name, **options: push_folder(".", name, **options)])
def test_what_is_to_be_private_is_not_pushed_to_a_public_repository(hub, push):
    create_repository("me/open", token="hf_mine")
    with pytest.raises(PushError, match="hub_private_repo is on, but me/open exists and is public"):
        push("me/open", token="hf_mine", private=True)
    assert not hub.asked("POST .*/commit/")


@pytest.mark.parametrize(
    ("name", "token", "reason"),
    [
        ("me/mine", None, "Invalid username or password"),
        ("me/mine", "hf_wrong", "Invalid credentials in Authorization header"),
        ("you/mine", "hf_mine", r'rights to write under the namespace "you"'),
        # It exists and can be read, so only asking for the right to write tells.
        ("me/old", "hf_reads", r'rights to write under the namespace "me"'),
        ("no/such/name", "hf_mine", "no/such/name"),
    ],
)
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_name_that_cannot_be_pushed_to_is_an_error_before_the_run(hub, name, token, reason, kind):
    create_repository("me/old", token="hf_mine", kind=kind)
    with pytest.raises(PushError, match=rf"hub_{kind}_id \('{name}'\) cannot be pushed to: .*{reason}") as error:
        create_repository(name, token=token, kind=kind)
    assert "\n" not in str(error.value) and "leave push_to_hub out" in str(error.value)
    assert token is None or token not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_an_error_before_the_run(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PushError, match=r"hub_model_id \('me/mine'\) cannot be pushed to: .*refused"):
        create_repository("me/mine", token="hf_secret")


def test_a_connection_that_breaks_off_is_taken_up_again(hub, model, run_folder, no_waiting, monkeypatch):
    hub.fail(f"PUT /{STORED}", "drop", times=2)
    push_folder(run_folder, "me/mine", token="hf_mine")
    assert len(hub.asked(f"PUT /{STORED}")) == 3
    # What came is kept in pieces of 10 MB, more than this model has.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.fail(f"GET /{STORED}", "drop")
    assert_same_weights(model, MMEForPreTraining.from_pretrained("me/mine"))
    half = (run_folder / "model.safetensors").stat().st_size // 2
    whole, rest = hub.asked(f"GET /{STORED}")
    assert rest == f"{whole} bytes={half // 1000 * 1000}-"


@pytest.mark.parametrize(
    ("request_line", "what", "reason"),
    [
        (f"PUT /{STORED}", "drop", r"Error while uploading 'model\.safetensors' to the Hub: "),
        (f"PUT /{STORED}", 403, r"Error while uploading 'model\.safetensors' to the Hub: .*403"),
        ("POST .*/objects/batch", 500, "refused by the test with 500"),
        ("POST .*/commit/", 413, "refused by the test with 413"),
    ],
)
def test_a_push_that_fails_keeps_the_folder_and_says_how_to_push_it_later(
    hub, model, run_folder, no_waiting, request_line, what, reason
):
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    hub.fail(request_line, what, times=100)
    message = rf"^pushing to me/mine failed: .*{reason}.* is still in {run_folder}; "
    with pytest.raises(PushError, match=message) as error:
        push_folder(run_folder, "me/mine", token="hf_mine", private=True)
    assert "\n" not in str(error.value) and "hf_mine" not in str(error.value)
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before
    assert set(hub.repositories["model", "me/mine"].files()) == {".gitattributes"}  # nothing by halves

    hub.faults.clear()
    if what == 413:  # once is enough
        push_later(error.value)
    else:
        push_folder(run_folder, "me/mine", token="hf_mine", private=True)
    pushed = hub.repositories["model", "me/mine"]
    assert set(pushed.files()) - {".gitattributes"} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "modeling_mme.py",
        "video_preprocessor_config.json",
    }
    assert pushed.is_private
    assert_same_weights(model, MMEForPreTraining.from_pretrained("me/mine", token="hf_mine"))


@pytest.fixture
def xet(hub, tmp_path, monkeypatch):
    """The Hub with xet, which the client then prefers to LFS."""
    pytest.importorskip("hf_xet", reason="without it the client sends large files by LFS")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    hub.xet = XetStore(tmp_path / "xet_store")
    return hub


def test_a_client_with_xet_sends_and_fetches_weights_by_it(xet, model, run_folder):
    push_folder(run_folder, "me/mine", token="hf_mine")
    model.push_to_hub("me/another", token="hf_mine")
    for name in ("me/mine", "me/another"):
        assert_same_weights(model, MMEForPreTraining.from_pretrained(name))
    assert xet.asked("xet-write-token") and xet.asked("xet-read-token")
    assert not xet.asked(STORED)


def test_a_push_that_fails_by_xet_keeps_the_folder_and_says_how_to_push_it_later(xet, model, run_folder):
    xet.fail("xet-write-token", 403, times=100)
    with pytest.raises(PushError, match=rf"^pushing to me/mine failed: .*403.* is still in {run_folder}; "):
        push_folder(run_folder, "me/mine", token="hf_mine")
    assert_same_weights(model, MMEForPreTraining.from_pretrained(run_folder))
    xet.faults.clear()
    push_folder(run_folder, "me/mine", token="hf_mine")
    assert_same_weights(model, MMEForPreTraining.from_pretrained("me/mine"))


def test_settings_that_only_this_machine_can_follow_are_not_published(hub, run_folder, tmp_path):
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    path = run_folder / "video_preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "motion_targets": [{"teacher": str(teacher)}]}))
    with pytest.raises(PushError, match=rf"video_preprocessor_config\.json names {teacher}, which is on this machine"):
        push_folder(run_folder, "me/mine", token="hf_mine")
    assert not hub.repositories


def test_a_teacher_in_a_folder_named_from_here_is_not_published(hub, run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_models" / "teacher").mkdir(parents=True)
    path = run_folder / "video_preprocessor_config.json"
    options = json.loads(path.read_text())
    path.write_text(json.dumps({**options, "motion_targets": [{"teacher": "my_models/teacher"}]}))
    with pytest.raises(PushError, match="names my_models/teacher, which is on this machine alone"):
        push_folder(run_folder, "me/mine", token="hf_mine")


def test_a_card_that_the_hub_refuses_fails_before_any_weights_are_sent(hub, run_folder):
    (run_folder / "README.md").write_text("---\ntags: [video\n---\n")
    with pytest.raises(PushError, match=r"pushing to me/mine failed: Invalid metadata in README\.md"):
        push_folder(run_folder, "me/mine", token="hf_mine")
    assert not hub.asked(f"PUT /{STORED}")


def test_a_push_of_what_is_there_already_sends_nothing(hub, run_folder):
    push_folder(run_folder, "me/mine", token="hf_mine")
    commits = len(hub.repositories["model", "me/mine"].trees)
    push_folder(run_folder, "me/mine", token="hf_mine")
    assert len(hub.repositories["model", "me/mine"].trees) == commits
    assert len(hub.asked(f"PUT /{STORED}")) == 1


@pytest.fixture
def tracks_folder(tmp_path):
    """What an extraction leaves: a video that could not be read is the shortest one to store."""
    parameters = MotionParameters.of(build_tracker("dis"))
    row = bad_video_row(b"no video", "/home/me/videos/broken.mp4", parameters, "no video")
    write_shard([row], shard_path(tmp_path / "tracks", 0))
    (tmp_path / "tracks" / "data" / "old").mkdir()
    private = ("extraction.json", "bad_videos.jsonl", "data/.train-00001.parquet.7.tmp", "data/old/train.parquet")
    for name in ("README.md", *private):
        (tmp_path / "tracks" / name).write_text("")
    return tmp_path / "tracks"


def test_a_data_set_of_tracks_is_opened_by_its_name(hub, tracks_folder, monkeypatch):
    url = push_folder(tracks_folder, "me/tracks", token="hf_mine", kind="dataset", private=True)
    assert url == f"{hub.url}/datasets/me/tracks"
    pushed = hub.repositories["dataset", "me/tracks"]
    assert set(pushed.files()) == {".gitattributes", "README.md", "data/train-00000.parquet"}
    with pytest.raises(ValueError, match=r"stored_tracks \('me/tracks'\) is no folder, and none on the Hub: .*401"):
        StoredTracks("me/tracks")
    monkeypatch.setenv("HF_TOKEN", "hf_reads")
    assert len(StoredTracks("me/tracks")) == 1
    fetched = len(hub.asked(f"GET /{STORED}"))
    StoredTracks("me/tracks")
    assert len(hub.asked(f"GET /{STORED}")) == fetched == 1
    with pytest.raises(OSError, match="data set 'me/others' cannot be fetched from the Hub: 404"):
        download_tracks("me/others")


def test_a_data_set_that_cannot_be_pushed_says_how_to_push_it_later(hub, tracks_folder):
    hub.fail("POST .*/commit/", 413)
    with pytest.raises(PushError, match="push it later with: hf upload me/tracks ") as error:
        push_folder(tracks_folder, "me/tracks", token="hf_mine", kind="dataset")
    push_later(error.value)
    assert set(hub.repositories["dataset", "me/tracks"].files()) > {"README.md", "data/train-00000.parquet"}


def test_a_model_that_is_cached_needs_no_hub(hub, model, run_folder, monkeypatch):
    push_folder(run_folder, "me/mine", token="hf_mine")
    MMEForPreTraining.from_pretrained("me/mine")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert_same_weights(model, MMEForPreTraining.from_pretrained("me/mine"))
    assert len(hub.requests) == asked
