import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from mme_hf import MMEConfig
from mme_hf.training import probes
from mme_hf.training.labelled_features import LabelledFeatures, draw_shots, folds_by_class
from mme_hf.training.probes import (
    PROBES,
    AttentiveHead,
    HeadProtocol,
    ProbeProtocol,
    ProbeResult,
    Standardisation,
    best_of,
    knn_chances,
    run_probe,
    summary_of,
    train_heads,
)

CONFIG = MMEConfig(hidden_size=8, num_attention_heads=2, intermediate_size=16, id2label={0: "jump", 1: "run"})
HEADS = HeadProtocol((1e-3, 1e-2), (1e-2,), num_epochs=1, min_updates=60, batch_size=32)
SHORT = ProbeProtocol(num_folds=2, linear=HEADS, attentive=HEADS, num_neighbours=(1, 5))


def features(num_videos: int, *, seed: int, tokens: tuple[int, ...] = (), distance: float = 4.0) -> LabelledFeatures:
    """Return noise of deviation 1 whose classes lie `distance` apart in every feature."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_videos) % 2
    values = torch.randn(num_videos, 2, *tokens, 8, generator=generator)
    # Up and down: of a token that is higher in every feature LayerNorm leaves nothing.
    values[..., ::2] += distance * labels.reshape(-1, *[1] * (values.ndim - 1))
    values[..., 1::2] -= distance * labels.reshape(-1, *[1] * (values.ndim - 1))
    return LabelledFeatures(values, labels)


def tokens_of(name: str) -> tuple[int, ...]:
    return (3,) if name == "attentive" else ()


@pytest.mark.parametrize("name", PROBES)
def test_classes_that_lie_apart_are_told_apart(name):
    train, test = (features(40, seed=seed, tokens=tokens_of(name)) for seed in (0, 1))
    result = run_probe(name, train, test, CONFIG, seed=0, protocol=SHORT)
    assert (result.test_top1, result.test_mean_class_accuracy, result.num_train_videos) == (1.0, 1.0, 40)
    assert result.test_is_right == (True,) * len(result.test_is_right) and result.test_is_right


@pytest.mark.parametrize("name", PROBES)
def test_labels_that_say_nothing_give_chance(name):
    train, test = (features(n, seed=seed, tokens=tokens_of(name), distance=0.0) for n, seed in ((40, 0), (200, 1)))
    result = run_probe(name, train, test, CONFIG, seed=0, protocol=SHORT)
    # 200 coins come up heads 100 times, with a deviation of 7: four of these are 0.14.
    assert abs(result.test_top1 - 0.5) < 0.15


def test_an_attentive_probe_reads_what_the_mean_of_tokens_hides():
    # Two tokens that are each other's negative, told apart by their first feature, so that their mean is always 0.
    labels = torch.arange(40) % 2
    token = torch.zeros(40, 1, 8)
    token[..., 0] = 1.0
    token[..., 1] = 2.0 * labels[:, None] - 1
    tokens = torch.stack([token, -token], dim=2)
    data = LabelledFeatures(tokens, labels)
    assert run_probe("attentive", data, data, CONFIG, seed=0, protocol=SHORT).test_top1 == 1.0
    mean = LabelledFeatures(tokens.mean(2), labels)
    assert run_probe("linear", mean, mean, CONFIG, seed=0, protocol=SHORT).test_top1 == 0.5


@pytest.mark.parametrize("name", PROBES)
def test_test_videos_decide_nothing(name):
    train = features(40, seed=0, tokens=tokens_of(name), distance=1.0)
    protocol = replace(SHORT, attentive=replace(HEADS, min_updates=15))
    first, second = (features(12, seed=seed, tokens=tokens_of(name)) for seed in (1, 2))
    results = [run_probe(name, train, test, CONFIG, seed=3, protocol=protocol) for test in (first, second, first)]
    assert results[0].chosen == results[1].chosen and results[0].validation_top1 == results[1].validation_top1
    assert results[0] == results[2]  # a seed says all


def test_test_videos_are_judged_by_all_training_clips_their_own_clips_together_and_the_training_scale():
    # Classes overlap, and the test features lie 10 off: by fewer clips or another scale many would be judged otherwise.
    train, test = (features(n, seed=seed, distance=0.5) for n, seed in ((40, 0), (200, 1)))
    test = LabelledFeatures(3 * test.values + 10, test.labels)
    result = run_probe("knn", train, test, CONFIG, seed=0, protocol=replace(SHORT, num_neighbours=(3,)))
    mean, deviation = train.values.mean((0, 1)), train.values.std((0, 1), unbiased=False)
    bank, queries = ((data.values.flatten(0, 1) - mean) / deviation for data in (train, test))
    options = {"num_classes": 2, "num_neighbours": [3], "temperature": SHORT.temperature}
    (shares,) = knn_chances(bank, train.labels.repeat_interleave(2), queries, **options)
    of_video = (shares[0::2] + shares[1::2]) / 2
    assert result.test_is_right == tuple((of_video.argmax(1) == test.labels).tolist())


@pytest.mark.parametrize("shots", [None, 4])
@pytest.mark.parametrize("name", ["linear", "attentive"])
def test_heads_are_fitted_to_other_groups_than_they_are_chosen_by_and_then_to_all_videos(name, shots, monkeypatch):
    # Every feature of a video is its number; groups of two are of one class, the first four of class 1.
    numbers = torch.arange(20.0).reshape(20, *[1] * (2 + len(tokens_of(name)))).expand(20, 2, *tokens_of(name), 8)
    groups = torch.arange(20) // 2
    train = LabelledFeatures(numbers, (groups < 4).long(), groups)
    seen = []

    def noting(heads, train, *others):
        seen.append(train.values.flatten(1)[:, 0].int().tolist())
        return train_heads(heads, train, *others)

    monkeypatch.setattr(probes, "train_heads", noting)
    protocol = replace(SHORT, **{name: replace(HEADS, min_updates=1)})
    for seed in range(4):
        seen.clear()
        result = run_probe(name, train, train, CONFIG, seed=seed, shots=shots, protocol=protocol)
        *parts, all_videos = map(set, seen)
        assert len(parts) > 1 and len(all_videos) == result.num_train_videos == (20 if shots is None else 8)
        left_out = [all_videos - fitted for fitted in parts]
        assert set.union(*left_out) == all_videos and sum(map(len, left_out)) == len(all_videos)
        for fitted, judged in zip(parts, left_out, strict=True):
            assert fitted < all_videos and not {number // 2 for number in fitted} & {number // 2 for number in judged}


def test_neighbours_are_counted_by_videos_that_do_not_choose():
    # Labels say nothing, so only a video that is its own neighbour is always right.
    train = features(40, seed=0, distance=0.0)
    result = run_probe("knn", train, train, CONFIG, seed=0, protocol=replace(SHORT, num_neighbours=(1,)))
    assert result.test_top1 == 1.0 and result.validation_top1 < 1.0


def test_videos_that_are_the_same_are_judged_the_same():
    # With the dropout of training, and tokens at the training mean that say nothing, each would be a draw of its own.
    config = MMEConfig(**{**CONFIG.to_dict(), "hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5})
    train = features(40, seed=0, tokens=(3,), distance=1.0)
    mean = train.values.mean((0, 1, 2))
    test = LabelledFeatures(mean.expand(64, 1, 3, 8), torch.zeros(64, dtype=torch.int64))
    protocol = replace(SHORT, attentive=replace(HEADS, min_updates=15))
    assert len(set(run_probe("attentive", train, test, config, seed=0, protocol=protocol).test_is_right)) == 1


def test_few_shots_are_of_each_class_alike_and_a_seed_s():
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1])
    draws = [draw_shots(labels, 2, torch.Generator().manual_seed(seed), {}).tolist() for seed in range(8)]
    assert all(labels[draw].bincount().tolist() == [2, 2] and draw == sorted(set(draw)) for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 1
    result = run_probe("knn", features(40, seed=0), features(8, seed=1), CONFIG, seed=0, shots=3, protocol=SHORT)
    assert result.num_train_videos == 6
    with pytest.raises(ValueError, match=r"shots \(21\) is more than the 20 training videos of 'jump'"):
        run_probe("knn", features(40, seed=0), features(8, seed=1), CONFIG, seed=0, shots=21, protocol=SHORT)


def test_folds_have_a_like_share_of_each_class():
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 2 + [3])
    folds = folds_by_class(labels, None, 5, torch.Generator().manual_seed(0))
    shares = [folds[labels == label].bincount(minlength=5).tolist() for label in range(4)]
    assert shares[:2] == [[2] * 5, [1] * 5] and sorted(shares[2]) == [0, 0, 0, 1, 1]
    other = folds_by_class(labels, None, 5, torch.Generator().manual_seed(1))
    assert other.tolist() != folds.tolist()
    with pytest.raises(ValueError, match="no class has two training videos"):
        folds_by_class(torch.tensor([0, 1]), None, 5, torch.Generator())


def test_groups_are_left_out_whole_and_those_that_share_classes_by_turns():
    # As scenes of ARID: two hold nearly all of classes 0 and 1, and one of these most of both.
    groups = torch.tensor([0] * 7 + [1] * 12 + [2] * 3 + [3] * 3)
    labels = torch.tensor([0] * 7 + [0] * 4 + [1] * 8 + [1, 2, 2] + [2] * 3)
    for seed in range(8):
        folds = folds_by_class(labels, groups, 3, torch.Generator().manual_seed(seed))
        own = [folds[groups == group].unique().tolist() for group in range(4)]
        assert all(len(numbers) == 1 for numbers in own)
        assert own[0] != own[1] != own[2] != own[3]  # the pairs that share a class
    # A group that holds all of a class, for each class: single videos it is.
    folds = folds_by_class(labels, labels, 5, torch.Generator().manual_seed(0))
    assert all(len(folds[labels == label].unique()) == 5 for label in range(3))


@pytest.mark.parametrize(("wanted", "judged"), [(200, 20), (9, 12), (1, 4)])
def test_folds_are_left_out_until_enough_videos_were_judged(wanted, judged):
    train = features(20, seed=0)
    protocol = replace(SHORT, num_folds=5, min_validation_videos=wanted)
    result = run_probe("knn", train, train, CONFIG, seed=0, protocol=protocol)
    assert sum(is_right is not None for is_right in result.validation_is_right) == judged
    assert len(result.validation_is_right) == 20 and result.validation_top1 == 1.0  # classes lie apart


def test_folds_are_left_out_in_an_order_of_the_seed():
    # Of groups of falling size there are always the same folds.
    groups = torch.tensor([0] * 6 + [1] * 5 + [2] * 4 + [3] * 3 + [4] * 2)
    train = replace(features(20, seed=0), groups=groups)
    protocol = replace(SHORT, num_folds=5, min_validation_videos=1)
    results = [run_probe("knn", train, train, CONFIG, seed=seed, protocol=protocol) for seed in range(8)]
    assert len({result.validation_is_right for result in results}) > 2


def test_large_groups_are_placed_first():
    # Placed last, the group of 6 would lie on one of those of 2, and a fold would stay empty.
    labels, groups = torch.zeros(12, dtype=torch.int64), torch.tensor([0, 0, 1, 1, 2, 2, *[3] * 6])
    for seed in range(8):
        folds = folds_by_class(labels, groups, 2, torch.Generator().manual_seed(seed))
        assert folds.bincount().tolist() == [6, 6]


def test_single_videos_are_left_out_where_most_classes_are_one_group():
    # One video of class 0 in the group of class 1 makes no choice for the other classes.
    labels = torch.arange(80) // 20
    groups = labels.clone()
    groups[0] = 1
    folds = folds_by_class(labels, groups, 5, torch.Generator().manual_seed(0))
    assert all(folds[labels == label].bincount().tolist() == [4] * 5 for label in range(4))


def test_neighbours_to_choose_from_are_in_all_parts_that_are_fitted_to():
    # Two folds of 4 videos, so 8 clips to be neighbours: 8 would be all of them, and say the same for every video.
    train = features(8, seed=0)
    result = run_probe("knn", train, train, CONFIG, seed=0, protocol=replace(SHORT, num_neighbours=(8, 7)))
    assert result.chosen == {"num_neighbours": 7}


def test_what_is_chosen_is_best_on_all_videos_that_were_left_out():
    # Four videos of one class lie in the middle of the other; many neighbours outvote them, one is now and then theirs.
    train = features(40, seed=0)
    train.values[::10] = features(40, seed=1).values[1::10]
    result = run_probe("knn", train, train, CONFIG, seed=0, protocol=replace(SHORT, num_neighbours=(1, 20)))
    assert result.validation_is_right == tuple(number % 10 != 0 for number in range(40))
    assert result.validation_top1 == 0.9 and result.chosen == {"num_neighbours": 20}


def test_a_class_that_one_group_holds_is_not_chosen_by():
    groups, labels = torch.arange(21) // 3, torch.arange(21) % 2
    labels[groups == 0] = 2
    config = MMEConfig(**{**CONFIG.to_dict(), "id2label": {0: "jump", 1: "run", 2: "sit"}})
    train = LabelledFeatures(features(21, seed=0).values, labels, groups)
    result = run_probe("knn", train, train, config, seed=0, protocol=SHORT)
    assert [is_right is None for is_right in result.validation_is_right] == (labels == 2).tolist()


def test_neighbours_vote_by_their_likeness():
    bank = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    shares = knn_chances(
        bank,
        torch.tensor([0, 1, 1]),
        torch.tensor([[3.0, 0.0], [3.0, 4.0]]),
        num_classes=2,
        num_neighbours=[1, 2, 9],
        temperature=0.5,
        queries_at_once=1,
    )
    # Cosines with the bank: 1, 0, -1 and 0.6, 0.8, -0.6.
    e = math.exp
    assert shares[0].tolist() == [[1, 0], [0, 1]]
    expected = [[e(2) / (e(2) + 1), 1 / (e(2) + 1)], [e(1.2) / (e(1.2) + e(1.6)), e(1.6) / (e(1.2) + e(1.6))]]
    torch.testing.assert_close(shares[1], torch.tensor(expected))
    torch.testing.assert_close(shares[2][0, 0], torch.tensor(e(2) / (e(2) + 1 + e(-2))))


def test_features_are_standardised_by_those_of_training():
    values = torch.tensor([[[1.0, 5.0]], [[3.0, 5.0]]], dtype=torch.float16)
    standardise = Standardisation.of(values)
    assert standardise(values).tolist() == [[[-1.0, 0.0]], [[1.0, 0.0]]]  # mean 2, deviation 1; one that never changes
    assert standardise(torch.tensor([4.0, 6.0])).tolist() == [2.0, 1.0]
    # Of half-precision tokens the sums are not.
    many = torch.full((300, 1, 300, 1), 2.0).half()
    many[::2] = 4.0
    assert (Standardisation.of(many).mean.item(), Standardisation.of(many).deviation.item()) == (3.0, 1.0)


def test_heads_side_by_side_are_what_each_would_be_alone():
    data = features(20, seed=0)
    candidates = [{"learning_rate": rate, "weight_decay": decay} for rate, decay in ((1e-3, 0.0), (1e-1, 1.0))]

    def trained(some):
        torch.manual_seed(0)
        heads = [nn.Linear(8, 2) for _ in candidates]
        chosen = [heads[number] for number in some]
        own = [candidates[number] for number in some]
        generator = torch.Generator().manual_seed(0)
        train_heads(chosen, data, Standardisation.of(data.values), own, replace(HEADS, min_updates=5), generator)
        return [head.weight for head in chosen]

    for together, alone in zip(trained([0, 1]), [*trained([0]), *trained([1])], strict=True):
        torch.testing.assert_close(together, alone)


def test_the_learning_rate_rises_before_it_falls():
    data = features(8, seed=0)
    head, weights = nn.Linear(8, 2), []
    head.register_forward_hook(lambda *_: weights.append(head.weight.detach().clone()))
    protocol = replace(HEADS, min_updates=6, batch_size=16, warmup_fraction=0.5)
    candidates = [{"learning_rate": 1e-3, "weight_decay": 0.0}]
    train_heads([head], data, Standardisation.of(data.values), candidates, protocol, torch.Generator())
    # All clips are in each batch and the rate is small, so that Adam's step is the rate: 0, 1/3 and 2/3 of it, then the
    # half cosine from 1 at the fourth of six updates.
    steps = [(after - before).abs().mean().item() for before, after in pairwise(weights)]
    assert steps == pytest.approx([0.0, 1e-3 / 3, 2e-3 / 3, 1e-3, 0.75e-3], rel=0.05)


def test_more_clips_of_a_video_make_no_longer_training():
    for num_clips in (1, 6):
        data = LabelledFeatures(torch.randn(20, num_clips, 8), torch.arange(20) % 2)
        head, updates = nn.Linear(8, 2), []
        head.register_forward_hook(lambda *_, updates=updates: updates.append(1))
        protocol = replace(HEADS, num_epochs=3, min_updates=2, batch_size=8)
        candidates = [{"learning_rate": 1e-3, "weight_decay": 0.0}]
        train_heads([head], data, Standardisation.of(data.values), candidates, protocol, torch.Generator())
        assert len(updates) == 7  # 60 clips in batches of 8


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_an_attentive_head_is_the_classifiers_attentive_pooler(qkv_bias):
    torch.manual_seed(0)
    head = AttentiveHead(MMEConfig(**{**CONFIG.to_dict(), "qkv_bias": qkv_bias}))
    for parameter in head.parameters():
        nn.init.normal_(parameter)  # biases, the query and the last layer start as zeros or nearly
    tokens = torch.randn(4, 5, 8)
    expected = head.classifier(head.fc_norm(head.pooler(tokens)))
    torch.testing.assert_close(head(tokens), expected)

    of_expected = torch.autograd.grad(expected.square().sum(), list(head.parameters()))
    of_head = torch.autograd.grad(head(tokens).square().sum(), list(head.parameters()))
    for found, wanted in zip(of_head, of_expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dropout", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_an_attentive_head_in_training_has_the_dropout_of_its_configuration(dropout):
    # As good as all is dropped, so that what is drawn does not matter.
    torch.manual_seed(0)
    head = AttentiveHead(MMEConfig(**{**CONFIG.to_dict(), dropout: 1 - 1e-9})).train()
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    tokens = torch.randn(4, 5, 8)
    expected = head.classifier(head.fc_norm(head.pooler(tokens)))
    torch.testing.assert_close(head(tokens), expected)
    assert not torch.allclose(head.eval()(tokens), expected)


def test_the_best_of_equals_is_the_surest():
    scores = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.7, 0.3]])
    labels = torch.tensor([0, 0, 0, 1])
    surer = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.6, 0.4]])
    worse = torch.tensor([[0.0, 1.0]] * 4)
    assert best_of([worse, scores, surer], labels) == 2
    assert best_of([surer, scores], labels) == 0


def test_seeds_are_summed_up():
    results = [
        ProbeResult(seed, {"num_neighbours": 1}, 0.5, top1, top1, 8, (True, None), (True,))
        for seed, top1 in enumerate((0.2, 0.4))
    ]
    summary = summary_of(results)
    assert summary["test_top1_mean"] == pytest.approx(0.3) and summary["validation_top1_std"] == 0.0
    assert summary["test_top1_std"] == pytest.approx(0.2 / math.sqrt(2))  # (0.1 ** 2 + 0.1 ** 2) / (2 - 1)
    assert summary["seeds"][1]["seed"] == 1 and summary_of(results[:1])["test_top1_std"] is None
