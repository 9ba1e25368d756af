"""Linear, attentive and kNN probes on frozen features, by one protocol that no flag changes.

What is chosen, learning rate and weight decay or the number of neighbours, is chosen by cross-validation: a fifth of
the training videos, of each class alike, is left out to be judged, then the next, until enough were. Where groups of
videos are known, they are left out whole: videos of a scene that is trained on say little of one that is not. The probe
is then fitted to all training videos, and the test videos are judged once. What is random (the folds, the videos of a
low-shot probe, how heads start and the order of batches) is a seed's.

Shapes: V videos, K clips of each, N tokens of a clip, D features, C classes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn

from ..configuration_mme import MMEConfig
from ..modeling_mme import MMEAttentivePooler, MMEClassifierHead, MMEPreTrainedModel
from .labelled_features import LabelledFeatures, draw_shots, folds_by_class
from .metrics import classification_metrics
from .optimization import build_scheduler, parameter_groups

PROBES = ("linear", "attentive", "knn")


@dataclass(frozen=True)
class HeadProtocol:
    """How heads on features are trained: by AdamW, all combinations of rates and decays at once.

    Attributes:
        learning_rates: To choose from.
        weight_decays: To choose from.
        num_epochs: Passes, each of as many clips as there are videos: more clips of a video make no longer training.
        min_updates: More passes are made where these would be fewer updates.
        batch_size: Clips in an update.
        warmup_fraction: Share of the updates in which the learning rate rises, before it falls by half a cosine to 0.
    """

    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    num_epochs: int
    min_updates: int
    batch_size: int
    warmup_fraction: float = 0.1


@dataclass(frozen=True)
class ProbeProtocol:
    """All that a probe is by.

    Attributes:
        num_folds: Parts of the training videos that are left out by turns, to choose by.
        min_validation_videos: No further one is left out once so many videos were judged: of a large set the first is
            enough.
        linear: A linear layer on the mean of the tokens.
        attentive: An attentive pooler over tokens, a LayerNorm and a linear layer.
        num_neighbours: To choose from.
        temperature: Of the neighbours' votes.
    """

    num_folds: int = 5
    min_validation_videos: int = 200
    linear: HeadProtocol = HeadProtocol((1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (1e-2, 1.0), 60, 400, 256)
    attentive: HeadProtocol = HeadProtocol((1e-4, 3e-4, 1e-3), (5e-2,), 40, 300, 32)
    num_neighbours: tuple[int, ...] = (1, 5, 10, 20, 50)
    temperature: float = 0.07


@dataclass(frozen=True)
class ProbeResult:
    """What one probe with one seed came to.

    Attributes:
        seed: The seed.
        chosen: Hyper-parameters, those best on training videos that were left out.
        validation_top1: Share of these videos that were right, with the hyper-parameters chosen by it.
        test_top1: Share of the test videos that are right.
        test_mean_class_accuracy: The same, every class of the test videos counted alike.
        num_train_videos: What it was fitted to.
        validation_is_right: Of each training video, in the order of the data set (those that could be read, and were
            drawn), whether it was right when it was left out; None for one that was not judged: enough were, or none
            of its class was left to fit to.
        test_is_right: Of each test video, in the order of the data set (those that could be read), whether it is right:
            two models are compared video by video.
    """

    seed: int
    chosen: dict[str, float]
    validation_top1: float
    test_top1: float
    test_mean_class_accuracy: float
    num_train_videos: int
    validation_is_right: tuple[bool | None, ...]
    test_is_right: tuple[bool, ...]


def run_probe(
    name: str,
    train: LabelledFeatures,
    test: LabelledFeatures,
    config: MMEConfig,
    *,
    seed: int,
    shots: int | None = None,
    protocol: ProbeProtocol | None = None,
    device: torch.device | str = "cpu",
) -> ProbeResult:
    """Return what a probe makes of the test videos.

    Args:
        name: "linear", "attentive" or "knn".
        train: To fit and to choose by.
        test: To judge by, once.
        config: Of the encoder, with the number of classes.
        seed: Of all that is random.
        shots: Videos of each class to draw of the training ones, those to choose by among them; None for all.
        protocol: By default the one that all results are by.
        device: Where it is computed.

    Raises:
        ValueError: If a class has fewer videos than `shots`, or no class has two.
    """
    protocol = protocol or ProbeProtocol()
    generator = torch.Generator().manual_seed(seed)
    if shots is not None:
        train = train[draw_shots(train.labels, shots, generator, config.id2label)]
    options = {"name": name, "config": config, "protocol": protocol, "device": device, "generator": generator}
    chosen, validation_is_right = _choose(train, **options)
    (test_scores,) = _scores(train, test, [chosen], **options)
    found = classification_metrics(test_scores, test.labels)
    return ProbeResult(
        seed=seed,
        chosen=chosen,
        validation_top1=statistics.fmean(is_right for is_right in validation_is_right if is_right is not None),
        test_top1=found["top1"],
        test_mean_class_accuracy=found["mean_class_accuracy"],
        num_train_videos=len(train.labels),
        validation_is_right=validation_is_right,
        test_is_right=tuple((test_scores.argmax(1) == test.labels).tolist()),
    )


def _choose(
    train: LabelledFeatures, *, protocol: ProbeProtocol, generator: torch.Generator, **options: Any
) -> tuple[dict[str, float], tuple[bool | None, ...]]:
    """Return the candidate that is best on videos that were left out, and which of these it was right about."""
    folds = folds_by_class(train.labels, train.groups, protocol.num_folds, generator)
    left_out, scores = [], []
    # Those of the smallest part that is fitted to: all parts have the same.
    num_clips = (len(folds) - int(folds.bincount().max())) * train.values.shape[1]
    candidates = list(_candidates(options["name"], protocol, num_clips))
    for fold in torch.randperm(protocol.num_folds, generator=generator).tolist():
        part = train[(folds != fold).nonzero()[:, 0]]
        # Of a class that is in this fold alone nothing is learnt, whatever is chosen.
        videos = ((folds == fold) & torch.isin(train.labels, part.labels)).nonzero()[:, 0]
        if not len(videos):
            continue
        scores.append(_scores(part, train[videos], candidates, protocol=protocol, generator=generator, **options))
        left_out.append(videos)
        if sum(map(len, left_out)) >= protocol.min_validation_videos:
            break
    videos = torch.cat(left_out)
    joined = [torch.cat(own) for own in zip(*scores, strict=True)]
    best = best_of(joined, train.labels[videos])
    is_right: list[bool | None] = [None] * len(folds)
    for video, right in zip(videos.tolist(), joined[best].argmax(1) == train.labels[videos], strict=True):
        is_right[video] = right.item()
    return candidates[best], tuple(is_right)


def best_of(scores: Sequence[torch.Tensor], labels: torch.Tensor) -> int:
    """Return which scores (V, C) are right most often; of equals the one surest of what is right."""
    top1 = [(each.argmax(1) == labels).sum().item() for each in scores]
    surety = [each.gather(1, labels[:, None]).clamp_min(1e-12).log().mean().item() for each in scores]
    return max(range(len(scores)), key=lambda candidate: (top1[candidate], surety[candidate]))


def _candidates(name: str, protocol: ProbeProtocol, num_clips: int) -> Iterator[dict[str, float]]:
    if name == "knn":
        # Of a small bank all are neighbours: larger numbers would say the same.
        yield from ({"num_neighbours": k} for k in protocol.num_neighbours if k < num_clips or k == 1)
        return
    heads = protocol.linear if name == "linear" else protocol.attentive
    for learning_rate, weight_decay in product(heads.learning_rates, heads.weight_decays):
        yield {"learning_rate": learning_rate, "weight_decay": weight_decay}


def _scores(
    train: LabelledFeatures,
    videos: LabelledFeatures,
    candidates: Sequence[dict[str, float]],
    *,
    name: str,
    config: MMEConfig,
    protocol: ProbeProtocol,
    device: torch.device | str,
    generator: torch.Generator,
) -> list[torch.Tensor]:
    """Return each candidate's scores of `videos`, the mean over a video's clips of the chance of each class (V, C)."""
    standardise = Standardisation.of(train.values, device)
    if name == "knn":
        counts = [candidate["num_neighbours"] for candidate in candidates]
        chances = knn_chances(
            standardise(train.values).flatten(0, 1),
            train.labels.to(device).repeat_interleave(train.values.shape[1]),
            standardise(videos.values).flatten(0, 1),
            num_classes=config.num_labels,
            num_neighbours=counts,
            temperature=protocol.temperature,
        )
    else:
        own = protocol.linear if name == "linear" else protocol.attentive
        heads = [_new_head(name, config, generator).to(device) for _ in candidates]
        train_heads(heads, train, standardise, candidates, own, generator)
        chances = [_chances(head, videos.values.flatten(0, 1), standardise, own.batch_size) for head in heads]
    return [clips.unflatten(0, videos.values.shape[:2]).mean(1).cpu() for clips in chances]


@dataclass(frozen=True)
class Standardisation:
    """Makes every feature of training clips have mean 0 and variance 1; float32, on a device.

    Attributes:
        mean: Shape (D,).
        deviation: Shape (D,); 1 for a feature that is always the same.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor, device: torch.device | str = "cpu") -> Standardisation:
        """Return that of training features (..., D)."""
        count = values[..., 0].numel()
        # Video by video, so that of many tokens few are there as float64.
        mean = sum(video.double().flatten(0, -2).sum(0) for video in values) / count
        variance = sum((video.double() - mean).square().flatten(0, -2).sum(0) for video in values) / count
        deviation = torch.where(variance > 1e-12, variance.sqrt(), 1.0)
        return cls(mean.float().to(device), deviation.float().to(device))

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Return features (..., D) standardised."""
        return (values.to(self.mean.device).float() - self.mean) / self.deviation


def knn_chances(
    bank: torch.Tensor,
    bank_labels: torch.Tensor,
    queries: torch.Tensor,
    *,
    num_classes: int,
    num_neighbours: Sequence[int],
    temperature: float,
    queries_at_once: int = 1024,
) -> list[torch.Tensor]:
    """Return, for each number of neighbours, the share of each class in their votes, shape (queries, num_classes).

    A neighbour votes for its class with exp(cosine similarity / temperature).

    Args:
        bank: Features of training clips, shape (clips, D).
        bank_labels: Their classes, shape (clips,).
        queries: Features to judge, shape (queries, D).
        num_classes: C.
        num_neighbours: How many vote.
        temperature: The smaller, the more the nearest one decides.
        queries_at_once: Rows of the matrix of similarities that are there at once.

    Source: Wu et al., Unsupervised feature learning via non-parametric instance discrimination; as in DINO, which does
        not standardise features before.
    """
    bank = nn.functional.normalize(bank, dim=1)
    parts: list[list[torch.Tensor]] = [[] for _ in num_neighbours]
    for some in nn.functional.normalize(queries, dim=1).split(queries_at_once):
        nearest = (some @ bank.T).topk(min(max(num_neighbours), len(bank)), dim=1)
        votes = ((nearest.values - 1) / temperature).exp()  # - 1: the same shares, and none overflows
        for part, count in zip(parts, num_neighbours, strict=True):
            summed = votes.new_zeros(len(some), num_classes)
            summed.scatter_add_(1, bank_labels[nearest.indices[:, :count]], votes[:, :count])
            part.append(summed / summed.sum(1, keepdim=True))
    return [torch.cat(part) for part in parts]


class AttentiveHead(MMEPreTrainedModel):
    """The attentive pooler of `MMEForVideoClassification` with what follows it, on tokens.

    The pooler's query is the same for every clip. So the key's weights are applied to the query, and the value's to
    what was gathered, instead of both to every token: the same numbers up to rounding, for a small part of the work.
    """

    def __init__(self, config: MMEConfig):
        super().__init__(config)
        self.pooler = MMEAttentivePooler(config)
        self.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.fc_norm_eps)
        self.classifier = MMEClassifierHead(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits of tokens (clips, N, D), shape (clips, C)."""
        layer, query = self.pooler.layer, self.pooler.query[0]  # (1, D)
        attention = layer.attention
        asking, tokens = layer.layernorm_before(query), layer.layernorm_before(tokens)
        asked = attention.q_proj(asking).view(-1, attention.head_dim, 1) * attention.scaling  # (heads, head_dim, 1)
        of_keys = (attention.k_proj.weight.view(len(asked), attention.head_dim, -1) * asked).sum(1)  # (heads, D)
        of_itself = (asking @ of_keys.T).expand(len(tokens), 1, -1)
        weights = torch.cat([of_itself, tokens @ of_keys.T], dim=1).softmax(1)  # (clips, 1 + N, heads)
        weights = nn.functional.dropout(weights, attention.attention_dropout, self.training)
        gathered = weights[:, 1:].transpose(1, 2) @ tokens + weights[:, 0, :, None] * asking  # (clips, heads, D)
        of_values = attention.v_proj.weight.view(len(asked), attention.head_dim, -1)
        values = torch.einsum("bhd,hvd->bhv", gathered, of_values)
        if attention.v_proj.bias is not None:
            # Every token has the bias, by its weight; together these are 1, but for what was dropped.
            values = values + weights.sum(1)[..., None] * attention.v_proj.bias.view(len(asked), -1)
        pooled = query + layer.dropout(attention.o_proj(values.flatten(1)))
        pooled = pooled + layer.dropout(layer.mlp(layer.layernorm_after(pooled)))
        return self.classifier(self.fc_norm(pooled))


def _new_head(name: str, config: MMEConfig, generator: torch.Generator) -> nn.Module:
    # Layers are drawn from torch's global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
        if name == "attentive":
            return AttentiveHead(config)
        head = MMEClassifierHead(config.hidden_size, config.num_labels)
        nn.init.trunc_normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
        return head


def train_heads(
    heads: Sequence[nn.Module],
    train: LabelledFeatures,
    standardise: Standardisation,
    candidates: Sequence[dict[str, float]],
    protocol: HeadProtocol,
    generator: torch.Generator,
) -> None:
    """Train heads side by side on the same batches of clips, each with its own learning rate and weight decay.

    Args:
        heads: From features of clips to logits.
        train: Every clip is a sample.
        standardise: Applied to each batch.
        candidates: `learning_rate` and `weight_decay` of each head.
        protocol: How long, and in which batches.
        generator: Of the order of clips.
    """
    clips = train.values.flatten(0, 1)
    labels = train.labels.repeat_interleave(train.values.shape[1])
    batch_size = min(protocol.batch_size, len(clips))
    num_updates = max(protocol.num_epochs * len(train.labels) // batch_size, protocol.min_updates)
    groups = [
        {**group, "lr": candidate["learning_rate"]}
        for head, candidate in zip(heads, candidates, strict=True)
        for group in parameter_groups(head, candidate["weight_decay"])
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    num_warmup = round(protocol.warmup_fraction * num_updates)
    options = {"num_warmup_steps": num_warmup, "num_training_steps": num_updates, "min_learning_rate": 0.0}
    scheduler = build_scheduler(optimizer, **options)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(num_updates):
        if len(order) < batch_size:  # what is left of a permutation joins the next
            order = torch.cat([order, torch.randperm(len(clips), generator=generator)])
        batch, order = order[:batch_size], order[batch_size:]
        inputs = standardise(clips[batch])
        targets = labels[batch].to(inputs.device)
        # A sum: the gradient of each head is that of its own loss.
        loss = sum(nn.functional.cross_entropy(head(inputs), targets) for head in heads)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()


@torch.no_grad()
def _chances(head: nn.Module, clips: torch.Tensor, standardise: Standardisation, batch_size: int) -> torch.Tensor:
    head.eval()
    return torch.cat([head(standardise(some)).softmax(-1) for some in clips.split(batch_size)])


def summary_of(results: Sequence[ProbeResult]) -> dict[str, Any]:
    """Return the results of a probe with several seeds, with their means and standard deviations, for JSON.

    The deviation is that of a sample, and None for one seed.
    """
    summary: dict[str, Any] = {"seeds": [vars(result) for result in results]}
    for name in ("validation_top1", "test_top1", "test_mean_class_accuracy"):
        values = torch.tensor([getattr(result, name) for result in results], dtype=torch.float64)
        summary[f"{name}_mean"] = values.mean().item()
        summary[f"{name}_std"] = values.std().item() if len(values) > 1 else None
    return summary
