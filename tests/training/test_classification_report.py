import torch

from mme_hf.training.classification_report import MAX_CLASS_ROWS, class_table, classification_report, figures_table
from mme_hf.training.prediction import VideoPredictions


def predictions(labels, guesses, num_classes):
    scores = torch.nn.functional.one_hot(torch.tensor(guesses), num_classes).float()
    sources = [f"{number}.mp4" for number in range(len(labels))]
    return VideoPredictions(scores, torch.tensor(labels), sources, num_views=len(labels))


def test_a_report_counts_classes_and_their_mistakes():
    report = classification_report(predictions([0, 0, 0, 1], [0, 2, 2, 1], 4), ("a", "b", "c", "d"))
    assert report["top1"] == 0.5 and report["most_frequent_class"] == 0.75
    a, b, c, d = report["per_class"]
    assert a == {"label": "a", "num_videos": 3, "accuracy": 1 / 3, "num_guessed": 1, "mistaken_for": ["c", 2]}
    assert b["mistaken_for"] is None and b["accuracy"] == 1
    assert c == {"label": "c", "num_videos": 0, "accuracy": None, "num_guessed": 2, "mistaken_for": None}
    lines = class_table(report)
    # Classes without videos say nothing.
    assert [line.split()[0] for line in lines] == ["class", "a", "b"] and lines[1].endswith("c (2)")
    assert len({line.index("right") + 5 for line in lines[:1]} | {line.index(" %") + 2 for line in lines[1:]}) == 1
    # Wilson's interval of 2 of 4.
    assert "15.0 % to 85.0 %" in figures_table(report)[0]


def test_of_many_classes_the_worst_are_shown():
    num_classes = MAX_CLASS_ROWS + 5
    labels = list(range(num_classes))
    names = [f"class {number}" for number in labels]
    report = classification_report(predictions(labels, [*labels[:-1], 0], num_classes), names)
    lines = class_table(report)
    assert len(lines) == 2 + MAX_CLASS_ROWS and lines[0].strip().startswith(f"the {MAX_CLASS_ROWS} of {num_classes}")
    assert lines[2].split()[:2] == ["class", str(num_classes - 1)] and lines[2].endswith("class 0 (1)")
