"""Which state of a classifier is the best, and when that is asked."""

import pytest
import torch

from mme_hf.training.mixing import UnlabelledVideoError
from mme_hf.training.prediction import VideoPredictions
from mme_hf.training.validation import BestModel, Judge, ValidationResult


def predictions(scores, labels):
    sources = [f"video {place}" for place in range(len(labels))]
    return VideoPredictions(torch.tensor(scores), torch.tensor(labels), sources, len(labels))


def result(top1):
    return ValidationResult(top1, 1.0, 4)


def test_accuracy_counts_the_best_and_the_five_best():
    scores = [[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 4
    # The right class is the best one, the second, the fifth, the sixth: 1 of 4 and 3 of 4.
    assert ValidationResult.of(predictions(scores, [0, 1, 4, 5])) == ValidationResult(0.25, 0.75, 4)
    assert ValidationResult.of(predictions([[0.5, 0.5]], [1])).top1 == 0.0  # of equal scores the first counts
    with pytest.raises(UnlabelledVideoError, match="video 1 has no label"):
        ValidationResult.of(predictions(scores, [0, -1, 4, 5]))


def test_only_a_better_state_takes_the_place_of_the_best():
    best = BestModel()
    for step, top1 in enumerate((0.5, 0.25, 0.5, 0.75, 0.5), start=1):
        best.offer(result(top1), step, lambda step=step: {"w": torch.tensor(float(step))})
    assert (best.step, best.result.top1, best.num_evaluations_since, best.weights["w"]) == (4, 0.75, 1, 4.0)


def test_it_comes_back_from_a_checkpoint_with_its_weights_on_one_process():
    best = BestModel()
    assert not BestModel().state_dict()["weights"]
    best.offer(result(0.5), 3, lambda: {"w": torch.ones(2)})
    main, other = BestModel(), BestModel(keeps_weights=False)
    for restored in (main, other):
        restored.load_state_dict(best.state_dict())
        assert (restored.step, restored.result) == (3, result(0.5))
    assert torch.equal(main.weights["w"], torch.ones(2)) and not other.weights
    main.load_state_dict(BestModel().state_dict())
    assert main.result is None


@pytest.mark.parametrize(
    ("updates_per_epoch", "eval_steps", "expected"),
    [(2, None, [2, 4, 6, 7]), (2.5, None, [3, 5, 7]), (0.5, None, [1, 2, 3, 4, 5, 6, 7]), (2, 3, [3, 6, 7])],
)
def test_it_is_asked_at_the_end_of_each_epoch_and_of_the_run(updates_per_epoch, eval_steps, expected):
    judge = Judge(
        accelerator=None, model=None, batches=(), bad_videos=None, best=BestModel(), weights_of=None,
        epoch_of=lambda step: step / updates_per_epoch, clips_per_forward=1, num_steps=7, eval_steps=eval_steps,
    )  # fmt: skip
    assert [step for step in range(1, 8) if judge.is_due(step)] == expected
    judge.epoch_of = lambda step: None  # a stream
    assert [step for step in range(1, 8) if judge.is_due(step)] == ([3, 6, 7] if eval_steps else [7])
