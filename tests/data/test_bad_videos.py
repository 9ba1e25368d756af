"""The report of unreadable videos."""

import json
from dataclasses import replace

import pytest

from mme_hf.data import BadVideo, BadVideoLog, TooManyBadVideosError, load_folder_records


def bad(name):
    return BadVideo(name, "it is broken.")


def test_each_bad_video_is_listed_once_with_its_cause(tmp_path):
    log = BadVideoLog(tmp_path / "bad.jsonl", num_records=100)
    log.record([bad("a"), bad("b")], num_seen=10)
    log.record([bad("a")], num_seen=110)
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert lines == [{"source": "a", "cause": "it is broken."}, {"source": "b", "cause": "it is broken."}]
    assert log.num_bad == 2


def test_a_share_above_the_limit_stops_the_run_and_says_what_to_do(tmp_path):
    log = BadVideoLog(tmp_path / "bad.jsonl", num_records=20, max_bad_fraction=0.05)
    log.record([bad("a")], num_seen=1)  # 1 of 20 is exactly 5 %
    with pytest.raises(
        TooManyBadVideosError, match=r"2 of 20 videos are bad.*\(5%\).*b: it is broken\. All .*bad\.jsonl"
    ):
        log.record([bad("b")], num_seen=2)


def test_a_run_of_nothing_but_bad_videos_stops_at_any_limit(tmp_path):
    log = BadVideoLog(tmp_path / "bad.jsonl", num_records=2, max_bad_fraction=1.0)
    log.record([bad("a")], num_seen=1)
    with pytest.raises(TooManyBadVideosError, match="All of 2 videos are bad: there is nothing to train on"):
        log.record([bad("b")], num_seen=2)


@pytest.mark.parametrize("max_bad_fraction", [0.05, 1.0])
def test_a_run_that_stops_names_one_bad_video_and_does_not_call_it_the_last(tmp_path, max_bad_fraction):
    log = BadVideoLog(tmp_path / "bad.jsonl", num_records=2, max_bad_fraction=max_bad_fraction)
    with pytest.raises(TooManyBadVideosError, match=r"One of them is a: it is broken\. All"):
        log.record([bad("a"), bad("b")], num_seen=2)


def test_a_stream_is_judged_by_what_was_seen(tmp_path):
    log = BadVideoLog(tmp_path / "bad.jsonl", num_records=None, max_bad_fraction=0.01)
    log.record([bad("a")], num_seen=1)  # as if 100 had been seen
    log.record([bad("b")], num_seen=200)
    with pytest.raises(TooManyBadVideosError, match="3 of 200 videos"):
        log.record([bad("c")], num_seen=200)


def test_the_first_one_stops_a_run_that_asked_for_it(tmp_path, caplog):
    log = BadVideoLog(tmp_path / "bad.jsonl", num_records=1000, on_bad_video="error")
    with pytest.raises(TooManyBadVideosError, match="a: it is broken"):
        log.record([bad("a")], num_seen=1)
    assert "it is broken" in (tmp_path / "bad.jsonl").read_text()
    assert "a bad video: a: it is broken" in caplog.text and "skipped" not in caplog.text


def test_a_resumed_run_goes_on_with_the_list_and_cuts_a_half_written_line(tmp_path):
    path = tmp_path / "bad.jsonl"
    BadVideoLog(path, num_records=100).record([bad("a")], num_seen=1)
    path.write_text(path.read_text() + '{"source": "b", "ca')
    log = BadVideoLog(path, num_records=100, is_continued=True)
    log.record([bad("a"), bad("c")], num_seen=2)
    assert [json.loads(line)["source"] for line in path.read_text().splitlines()] == ["a", "c"]
    assert log.num_bad == 2


def test_a_resumed_run_is_held_to_the_limit_by_what_it_meets(tmp_path):
    path = tmp_path / "bad.jsonl"
    BadVideoLog(path, num_records=100).record([bad("a"), bad("b")], num_seen=2)
    log = BadVideoLog(path, num_records=100, max_bad_fraction=0.01, is_continued=True)
    log.record([bad("a")], num_seen=1)  # b may have been mended
    with pytest.raises(TooManyBadVideosError):
        log.record([bad("b")], num_seen=2)


def test_a_new_run_begins_a_new_list(tmp_path):
    path = tmp_path / "bad.jsonl"
    BadVideoLog(path, num_records=100).record([bad("a")], num_seen=1)
    assert BadVideoLog(path, num_records=100).num_bad == 0
    assert not path.exists()


def test_wrong_limits_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"max_bad_fraction \(1.5\) must lie in"):
        BadVideoLog(tmp_path / "x", num_records=1, max_bad_fraction=1.5)
    with pytest.raises(ValueError, match=r"on_bad_video \('ignore'\) must be"):
        BadVideoLog(tmp_path / "x", num_records=1, on_bad_video="ignore")


def test_processes_that_do_not_meet_list_their_shares_and_the_first_one_what_is_missing(tmp_path, video_folder):
    records = replace(load_folder_records(video_folder), missing_files=(("lost.mp4", "no such file"),))
    logs = [
        BadVideoLog.for_share(
            records, tmp_path, process_index=index, own_places=[range(first, first + 3)], max_bad_fraction=0.5
        )
        for index, first in enumerate((3, 0))
    ]
    assert [log.num_bad for log in logs] == [1, 0] and [log.num_records for log in logs] == [4, 3]
    logs[1].record([BadVideo("b.mp4", "broken")], num_seen=3)
    listed = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert listed.keys() == {"bad_videos.jsonl", "bad_videos_1.jsonl"}
    assert "lost.mp4" in listed["bad_videos.jsonl"] and "b.mp4" in listed["bad_videos_1.jsonl"]


def test_missing_files_weigh_nowhere_more_than_among_all_videos(tmp_path, video_folder):
    missing = tuple((f"{number}.mp4", "no such file") for number in range(4))
    records = replace(load_folder_records(video_folder), num_records=12, missing_files=missing)
    # Shards of 3 videos get one each; a process without any has nothing to judge.
    shares = [[range(3), range(6, 9)], [range(3, 6), range(9, 11)], [range(11, 12)], []]
    logs = [
        BadVideoLog.for_share(records, tmp_path, process_index=index, own_places=places, max_bad_fraction=0.5)
        for index, places in enumerate(shares)
    ]
    assert [(log.num_bad, log.num_records) for log in logs] == [(2, 8), (1, 6), (1, 2), (0, 0)]


@pytest.mark.parametrize("source", ["line\u2028end.mp4", "no text \udce9.mp4"], ids=["line end", "no text"])
def test_a_list_goes_on_whatever_names_are_in_it(tmp_path, source):
    for _ in range(2):
        log = BadVideoLog(tmp_path / "bad.jsonl", num_records=100, is_continued=True)
        log.record([BadVideo(source, "broken")], num_seen=1)
    (line,) = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert json.loads(line)["source"] == source
