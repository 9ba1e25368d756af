"""Miniature trees, laid out as the published sets are, with the faults that real copies have."""

import json
import os

import pytest
from conftest import moving_texture, write_video
from datasets import config

from mme_hf import MMEVideoProcessor
from mme_hf.data import ClipSampling, build_clip_loader, load_dataset_records
from mme_hf.data.prepare import main, prepare_set

K400_HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "video.avi", moving_texture(12, 32, 32))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def tree(tmp_path, video):
    """Return a function that lays out a tree below a folder: text files by their content, videos by their path."""

    def lay_out(texts, videos):
        for name, text in texts.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
        for name in videos:
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(video, path)
        return tmp_path / "root"

    return lay_out


def ucf(train, test, *, fold=1, class_ind="1 ApplyEyeMakeup\n2 Archery\n"):
    folder = "ucfTrainTestlist/"
    names = (f"trainlist{fold:02}.txt", f"testlist{fold:02}.txt")
    return {folder + "classInd.txt": class_ind, folder + names[0]: train, folder + names[1]: test}


def ucf_video(class_name, group, clip=1):
    return f"{class_name}/v_{class_name}_g{group:02}_c{clip:02}.avi"


EYES = [ucf_video("ApplyEyeMakeup", group) for group in range(1, 5)]
ARROWS = [ucf_video("Archery", group) for group in range(1, 5)]


def opened(folder, part):
    """Return (path below `root`, name of the class) of each record of a part, as the examples open it."""
    records = load_dataset_records(str(folder), split=part)
    rows = []
    for row in records.dataset:
        assert row["video"]["bytes"] is None  # a path: nothing was copied
        name = None if row["label"] is None else records.label_names[row["label"]]
        rows.append((row["video"]["path"].rsplit("/root/", 1)[1], name))
    return rows


def listed(folder):
    """Return {(split, source): kind} of the report."""
    lines = folder.with_name(f"{folder.name}.left_out.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines]
    assert all(item["cause"] for item in items)
    return {(item["split"], item["source"]): item["kind"] for item in items}


def test_ucf101_has_the_order_of_class_ind_and_three_folds(tree, tmp_path):
    # "B" has number 1: alphabetical order would be another.
    texts = ucf("B/b1.avi 1\r\nA/a1.avi 2\r\n", "A/a2.avi\r\n", class_ind="1 B\r\n2 A\r\n")
    texts |= ucf("A/a2.avi 2\n", "B/b1.avi\n", fold=2, class_ind="1 B\r\n2 A\r\n")
    root = tree(texts, ["UCF-101/B/b1.avi", "UCF-101/A/a1.avi", "UCF-101/A/a2.avi"])
    done = prepare_set("ucf101", root, tmp_path / "first")
    assert done.class_names == load_dataset_records(str(tmp_path / "first")).label_names == ("B", "A")
    assert opened(tmp_path / "first", "train") == [("UCF-101/B/b1.avi", "B"), ("UCF-101/A/a1.avi", "A")]
    assert opened(tmp_path / "first", "test") == [("UCF-101/A/a2.avi", "A")]
    assert str(done) == (
        f"ucf101-fold1: train 2, test 1 videos of 2 classes in {tmp_path / 'first'}; nothing left out; "
        "the full set has 101 classes"
    )
    assert not done.report.exists()
    prepare_set("ucf101", root, tmp_path / "second", fold=2)
    assert opened(tmp_path / "second", "train") == [("UCF-101/A/a2.avi", "A")]
    with pytest.raises(ValueError, match=r"no annotation file of fold 3 names a video\. Expected: UCF-101/<Class>"):
        prepare_set("ucf101", root, tmp_path / "third", fold=3)


def test_clips_of_one_source_are_a_group(tree, tmp_path):
    names = ("v_A_g01_c01", "v_A_g01_c02", "v_A_g12_c01")
    texts = ucf("".join(f"A/{name}.avi 1\n" for name in names), "A/other.avi\n", class_ind="1 A\n")
    root = tree(texts, [f"UCF-101/A/{name}.avi" for name in (*names, "other")])
    prepare_set("ucf101", root, tmp_path / "set")
    train, test = (
        load_dataset_records(str(tmp_path / "set"), split=part).dataset["group"] for part in ("train", "test")
    )
    assert list(train) == ["v_A_g01", "v_A_g01", "v_A_g12"]
    assert list(test) == ["other"]  # a name that does not tell is a group of its own


def test_every_fault_is_counted_and_listed(tree, tmp_path):
    lines = [
        f"{EYES[0]} 1",
        "garbage",  # line 2
        f"{EYES[1]} 2",  # line 3: number of another class
        f"{EYES[2]} 1",  # line 4: not on disk
        "Dancing/v_Dancing_g01_c01.avi 3",  # line 5: no such class
        f"{EYES[0]} 1",  # line 6: line 1 again
        f"{ARROWS[0]} 2",  # line 7: in test too
        f"{ARROWS[1]} 2",
        f"{ARROWS[3]} 2",  # line 9: empty on disk
    ]
    texts = ucf("\n".join(lines), f"{ARROWS[0]}\n{EYES[3]}\n", class_ind="1 ApplyEyeMakeup\n2 Archery\n")
    on_disk = [f"UCF-101/{name}" for name in (EYES[0], EYES[1], EYES[3], ARROWS[0], ARROWS[1], ARROWS[2])]
    root = tree({**texts, f"UCF-101/{ARROWS[3]}": ""}, on_disk)
    out = tmp_path / "out"
    done = prepare_set("ucf101", root, out, max_bad_fraction=0.8)
    assert opened(out, "train") == [(on_disk[0], "ApplyEyeMakeup"), (on_disk[4], "Archery")]
    assert opened(out, "test") == [(on_disk[3], "Archery"), (on_disk[2], "ApplyEyeMakeup")]
    assert listed(out) == {
        ("train", "trainlist01.txt line 2"): "broken line",
        ("train", "trainlist01.txt line 3"): "broken line",
        ("train", "trainlist01.txt line 4"): "missing file",
        ("train", "trainlist01.txt line 5"): "unknown label",
        ("train", "trainlist01.txt line 6"): "repeated line",
        ("train", "trainlist01.txt line 7"): "overlap",
        ("train", "trainlist01.txt line 9"): "empty file",
        (None, str(root / on_disk[1])): "video in no annotation",
        (None, str(root / on_disk[5])): "video in no annotation",
    }
    assert (
        "left out: 2 broken lines, 1 empty file, 1 missing file, 1 overlap, 1 repeated line, 1 unknown label, 2 of"
        in (str(done))
    )
    # 7 of 9 lines are left out: 0.78.
    with pytest.raises(ValueError, match=r"7 of 9 lines of train are left out .*more than max_bad_fraction \(77%\)"):
        prepare_set("ucf101", root, tmp_path / "strict", max_bad_fraction=0.77)
    assert not (tmp_path / "strict").exists() and len(listed(tmp_path / "strict")) == 9
    # Only the part that is asked for is judged and reported; the other still decides what overlaps.
    assert prepare_set("ucf101", root, tmp_path / "test", splits=["test"]).num_videos == {"test": 2}
    assert set(listed(tmp_path / "test").values()) == {"video in no annotation"}


def test_a_video_of_two_classes_is_left_out_of_both(tree, tmp_path):
    root = tree(ucf("A/x.avi 1\nB/x.avi 2\nB/y.avi 2\n", "", class_ind="1 A\n2 B\n"), ["all/x.avi", "all/y.avi"])
    prepare_set("ucf101", root, tmp_path / "out", max_bad_fraction=0.7)
    assert opened(tmp_path / "out", "train") == [("all/y.avi", "B")]
    assert set(listed(tmp_path / "out").values()) == {"repeated line"}


def test_hmdb51_takes_1_for_train_2_for_test_and_0_for_none(tree, tmp_path):
    folder = "testTrainMulti_7030_splits/"
    texts = {
        folder + "walk_test_split1.txt": "a_walk_#1.avi 1 \nb_walk.avi 2 \nc_walk.avi 0 \nd_walk.avi 3 \n",
        folder + "brush_hair_test_split1.txt": "a_brush_hair.avi 1 \n",
        folder + "brush_hair_test_split2.txt": "a_brush_hair.avi 2 \n",
    }
    videos = [f"walk/{name}_walk.avi" for name in "bc"] + ["walk/a_walk_#1.avi", "brush_hair/a_brush_hair.avi"]
    root = tree(texts, videos)
    done = prepare_set("hmdb51", root, tmp_path / "out", max_bad_fraction=0.5)
    assert done.class_names == ("brush_hair", "walk")
    assert opened(tmp_path / "out", "train") == [
        ("brush_hair/a_brush_hair.avi", "brush_hair"),
        ("walk/a_walk_#1.avi", "walk"),
    ]
    assert opened(tmp_path / "out", "test") == [("walk/b_walk.avi", "walk")]
    assert listed(tmp_path / "out") == {(None, "walk_test_split1.txt line 4"): "broken line"}
    with pytest.raises(ValueError, match=r"there is no walk_test_split2.txt, though there is one of another fold"):
        prepare_set("hmdb51", root, tmp_path / "out", fold=2)


SSV2_LABELS = {"Putting something on something": "1", "Dropping something": "0"}


def ssv2(**parts):
    files = {f"labels/{part}.json": json.dumps(items) for part, items in parts.items()}
    return {"labels/labels.json": json.dumps(SSV2_LABELS), **files}


def ssv2_item(number, template):
    return {"id": str(number), "label": "putting a cup on it", "template": template, "placeholders": ["a cup"]}


def test_ssv2_looks_the_template_up_in_labels(tree, tmp_path):
    put, drop = "Putting [something] on [something]", "Dropping [something]"
    train = [ssv2_item(1, put), ssv2_item(2, drop), ssv2_item(3, "Eating [something]"), {"template": put}, 7]
    train += [{"id": "4"}]
    texts = ssv2(train=train, validation=[ssv2_item(5, put)], test=[{"id": "6"}, {"id": "7"}])
    folder = "20bn-something-something-v2/"
    root = tree(texts, [f"{folder}{number}.webm" for number in range(1, 8)])
    done = prepare_set("ssv2", root, tmp_path / "out", max_bad_fraction=0.7)
    assert done.class_names == ("Dropping something", "Putting something on something")
    assert opened(tmp_path / "out", "train") == [
        (f"{folder}1.webm", "Putting something on something"),
        (f"{folder}2.webm", "Dropping something"),
    ]
    assert opened(tmp_path / "out", "validation") == [(f"{folder}5.webm", "Putting something on something")]
    assert opened(tmp_path / "out", "test") == [(f"{folder}6.webm", None), (f"{folder}7.webm", None)]
    assert str(done).endswith("the full set has 174 classes; test has no labels")
    assert listed(tmp_path / "out") == {
        ("train", "train.json entry 3"): "unknown label",
        ("train", "train.json entry 4"): "broken line",
        ("train", "train.json entry 5"): "broken line",
        ("train", "train.json entry 6"): "missing label",
    }


def test_ssv2_test_answers_and_the_older_names_of_the_files(tree, tmp_path):
    texts = ssv2(train=[ssv2_item(1, "Dropping [something]")], test=[{"id": "6"}, {"id": "7"}])
    texts = {name.replace("labels/", "something-something-v2-"): text for name, text in texts.items()}
    root = tree({**texts, "test-answers.csv": "6;Dropping something\nbroken\n"}, ["1.webm", "6.mp4", "7.webm"])
    prepare_set("ssv2", root, tmp_path / "out", max_bad_fraction=0.7)
    assert opened(tmp_path / "out", "test") == [("6.mp4", "Dropping something")]
    assert listed(tmp_path / "out") == {
        ("test", "test-answers.csv line 2"): "broken line",
        ("test", "something-something-v2-test.json entry 2"): "missing label",
    }


def test_kinetics_is_found_flat_in_class_folders_and_with_underscores(tree, tmp_path):
    texts = {
        "k400/annotations/train.csv": K400_HEADER + 'zumba,AAA,5,15,train,0\n"air drumming",B_-,60,70,train,0\n'
        "abseiling,CCC,1,11,train,0\nzumba,DDD,x,15,train,0\nzumba,AAA,5\nzumba,EEE,0,10,test,0\n"
        "zumba,EEE,0,10,train,0\n",
        "k400/annotations/val.csv": K400_HEADER + "zumba,FFF,3,13,val,0\nair drumin,GGG,1,11,val,0\n",
        "k400/annotations/test.csv": "youtube_id,time_start,time_end,split\nHHH,2,12,test\n",
    }
    videos = [
        "train/AAA_000005_000015.mp4",
        "train/air_drumming/B_-_000060_000070.mp4",
        "train/CCC_000001_000011.mp4",
        "replacement/replacement_for_corrupted_k400/CCC_000001_000011.mp4",
        "train/air drumming/EEE_000000_000010.mp4",
        "val/zumba/FFF.mkv",
        "val/GGG_000001_000011.mp4",
        "test/HHH_000002_000012.mp4",
    ]
    root = tree(texts, [f"k400/{name}" for name in videos])
    (root / "k400" / videos[2]).unlink()
    (root / "k400" / videos[2]).write_bytes(b"corrupted")
    done = prepare_set("kinetics", root, tmp_path / "out", max_bad_fraction=0.7)
    assert done.name == "kinetics400" and done.class_names == ("abseiling", "air drumming", "zumba")
    assert opened(tmp_path / "out", "train") == [
        (f"k400/{videos[0]}", "zumba"),
        (f"k400/{videos[1]}", "air drumming"),
        (f"k400/{videos[3]}", "abseiling"),
    ]
    assert opened(tmp_path / "out", "validation") == [(f"k400/{videos[5]}", "zumba")]
    assert opened(tmp_path / "out", "test") == [(f"k400/{videos[7]}", None)]
    assert listed(tmp_path / "out") == {
        ("train", "train.csv line 5"): "broken line",
        ("train", "train.csv line 6"): "broken line",
        ("train", "train.csv line 7"): "broken line",
        ("train", "train.csv line 8"): "missing file",  # what there is lies in another class' folder
        ("validation", "val.csv line 3"): "unknown label",
    }


def test_copies_of_a_tree_are_told_apart_by_videos_dir(tree, tmp_path):
    texts = ucf(f"{EYES[0]} 1\n", f"{ARROWS[0]}\n")
    root = tree(texts, [f"{folder}/{name}" for folder in ("UCF-101", "small") for name in (EYES[0], ARROWS[0])])
    with pytest.raises(
        ValueError, match=r"1 of 1 lines of train .* \(1 ambiguous file\).*name one folder with --videos"
    ):
        prepare_set("ucf101", root, tmp_path / "out")
    lists = root / "ucfTrainTestlist"
    prepare_set("ucf101", tmp_path, tmp_path / "out", videos_dir=root / "small", annotations_dir=lists)
    assert opened(tmp_path / "out", "train") == [(f"small/{EYES[0]}", "ApplyEyeMakeup")]
    # A link to a folder of the same files is no second copy.
    (root / "small").rename(tmp_path / "aside")
    (root / "link").symlink_to(root / "UCF-101")
    assert prepare_set("ucf101", root, tmp_path / "out").num_videos == {"train": 1, "test": 1}


def test_a_clip_is_read_from_what_was_prepared(tree, tmp_path, monkeypatch):
    root = tree(ucf(f"{EYES[0]} 1\n{ARROWS[0]} 2\n", ""), [f"UCF-101/{name}" for name in (EYES[0], ARROWS[0])])
    monkeypatch.chdir(root)
    # Of a relative root, and read from another folder.
    prepare_set("ucf101", ".", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    records = load_dataset_records(str(tmp_path / "out"))
    processor = MMEVideoProcessor(num_frames=4, frame_stride=1, crop_size=16, size={"shortest_edge": 16}, patch_size=8)
    loader = build_clip_loader(
        records, processor, batch_size=2, return_targets=False, sampling=ClipSampling(is_random=False), num_epochs=1
    )
    (batch,) = loader
    assert batch["bad_videos"] == [] and batch["inputs"]["pixel_values"].shape == (2, 4, 3, 16, 16)
    # Again into the same folder: what was there is replaced, and the other part is gone.
    (root / "ucfTrainTestlist" / "testlist01.txt").write_text(f"{ARROWS[0]}\n")
    prepare_set("ucf101", root, tmp_path / "out", splits=["test"])
    assert [path.name for path in (tmp_path / "out" / "data").iterdir()] == ["test-00000-of-00001.parquet"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ucf1", "--root", "root"], r"set ('ucf1') must be one of hmdb51, kinetics, kinetics400, ssv2, ucf101."),
        (["ucf101"], "the following arguments are required: --root"),
        (["ucf101", "--root", "none"], "root ('none') is not a folder. Expected in it: UCF-101/<Class>/<video>.avi"),
        (["ucf101", "--root", "root", "--fold", "4"], "fold (4) must lie between 1 and 3."),
        (["ssv2", "--root", "root", "--fold", "1"], "fold (1) is given, and ssv2 has no folds. Leave it out."),
        (["ucf101", "--root", "root", "--max_bad_fraction", "5"], "max_bad_fraction (5.0) must lie in [0, 1]"),
        (["ucf101", "--root", "root", "--split", "val"], "argument --split: invalid choice: 'val'"),
        (["ucf101", "--root", "root", "--split", "validation"], "split ('validation') has no annotations in root"),
        (["ucf101", "--root", "root", "--output", "root"], "/root') holds more than a data set that this command made"),
        (
            ["ucf101", "--root", "root", "--output", "other"],
            "/other') holds more than a data set that this command made",
        ),
        (["ssv2", "--root", "root"], "root ('root') is no ssv2: there is no labels.json. Expected: 20bn-something"),
        (["hmdb51", "--root", "root"], "there is no <class>_test_split1.txt. Expected: <class>/<video>.avi"),
        (["kinetics400", "--root", "root"], "there is no CSV file with the columns youtube_id, time_start, time_end"),
        (["ucf101", "--root", "root/UCF-101"], "UCF-101: ApplyEyeMakeup/ (1 .avi)."),
        (["ucf101", "--root", "root/ucfTrainTestlist"], "ucf101: there is no video. Expected: UCF-101"),
    ],
)
def test_a_mistake_ends_with_one_line(argv, message, tree, tmp_path, monkeypatch, capsys):
    tree(ucf(f"{EYES[0]} 1\n", ""), [f"UCF-101/{EYES[0]}"])
    (tmp_path / "other" / "data").mkdir(parents=True)
    (tmp_path / "other" / "data" / "mine.parquet").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert message in stopped.value.code and "\n" not in stopped.value.code
    assert stopped.value.code.startswith("mme_hf.data.prepare: error: ") and capsys.readouterr().err == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "root"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classInd.txt", "1 A\nB\n", r"classInd.txt line 2 \('B'\) is not the number, once, and the name of a class"),
        ("classInd.txt", "1 A\n3 B\n", "classInd.txt does not number its 2 classes from 1, each once"),
        ("labels.json", '{"A": "0", "B": "0"}', "labels.json does not give its 2 classes the numbers from 0"),
        ("labels.json", "{", "labels.json is no JSON"),
        ("labels.json", "[1]", "labels.json holds no classes and their numbers"),
    ],
)
def test_classes_whose_numbers_are_in_doubt_are_refused(name, text, message, tree, tmp_path):
    root = tree({name: text}, ["1.avi"])
    with pytest.raises(ValueError, match=message):
        prepare_set("ucf101" if name.endswith(".txt") else "ssv2", root, tmp_path / "out")


def test_the_command_prints_one_line(tree, tmp_path, monkeypatch, capsys):
    root = tree(ucf(f"{EYES[0]} 1\n", f"{ARROWS[0]}\n"), [f"UCF-101/{name}" for name in (EYES[0], ARROWS[0])])
    monkeypatch.chdir(tmp_path)
    main(["ucf101", "--root", str(root), "--split", "train", "test", "--fold", "1"])
    said = capsys.readouterr()
    folder = tmp_path / "outputs" / "ucf101-fold1"
    assert said.out.startswith(f"ucf101-fold1: train 1, test 1 videos of 2 classes in {folder}; nothing left out; ")
    assert said.out.count("\n") == 1 and said.err == ""
    assert opened(folder, "test") == [(f"UCF-101/{ARROWS[0]}", "Archery")]
