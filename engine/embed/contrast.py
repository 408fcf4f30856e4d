"""Train a small network by contrast: what its teacher says is alike comes near, all else goes away.

The only file beside engine/embed/export.py that imports torch, and only while it trains.

Always true
  - The same features, groups and seed give the same layers, on the same machine: one thread, deterministic kernels.
  - Groups are drawn by the root of their size. In each batch some events are told as poorer sources would tell them,
    and what a sender chooses at will is blurred: a vector must not hang on either.

The loss is supervised contrastive (Khosla et al. 2020, eq. 2, outside): the nearest strangers weigh the most. A linear
classifier on the vectors is taught beside it and thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.embed.base import F32
from engine.embed.linear import LinearEmbedder
from engine.embed.network import SEEN_MAX, Layer
from engine.embed.thin import thinned
from engine.features import FEATURES

HIDDEN = (256, 128)
BATCH = 512
PASSES = 40  # through the data
STEPS_MIN, STEPS_MAX = 200, 2_000
RATE = 4e-3  # at most, of AdamW on one cycle
DECAY = 1e-3
DROPOUT = 0.2
TEMPERATURE = 0.1
SHARPNESS = 10.0  # of the classifier on vectors of length 1
SMOOTHING = 0.02
JUDGED_MAX = 256  # more groups are told apart by contrast alone
POORER = 0.3  # of a batch, told by a poorer source
BLUR = 0.1  # robust deviations

_CHOSEN = frozenset({"time", "count", "length", "rate", "bulk"})  # groups of features that a sender has in its hands


Numbers = NDArray[np.int64]
Incidental = tuple[Sequence[int], float]  # features, and the share of a batch that has them from other events


def train(
    scaler: LinearEmbedder,
    features: F32,
    groups: Numbers,
    width: int,
    seed: int,
    incidental: Sequence[Incidental] = (),
    steps_max: int = STEPS_MAX,
) -> list[Layer]:
    """The layers of a network from scaler.scaled(features) to `width` numbers. groups: int64 [n], whose events are
    alike; -1 is not learned from. At least two groups are needed. incidental: what has little to do with what is
    alike."""
    import torch

    taught = np.flatnonzero(groups >= 0)
    numbers, group = np.unique(groups[taught], return_inverse=True)
    assert len(numbers) > 1, "one group has nothing to be told apart from"
    features = features[taught]
    chance = np.bincount(group)[group] ** -0.5
    chance /= chance.sum()
    members, starts = np.argsort(group, kind="stable"), np.concatenate(([0], np.cumsum(np.bincount(group))))
    steps = min(steps_max, int(np.clip(PASSES * len(group) / BATCH, STEPS_MIN, STEPS_MAX)))
    rng = np.random.default_rng(seed)
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.set_num_threads(1)
            torch.use_deterministic_algorithms(True)
            torch.manual_seed(seed)
            net = _network(torch, 2 * len(scaler.columns), width)
            judge = torch.nn.Linear(width, len(numbers)) if len(numbers) <= JUDGED_MAX else None
            learned = [*net.parameters(), *(judge.parameters() if judge else [])]
            learner = torch.optim.AdamW(learned, lr=RATE / 25, weight_decay=DECAY)
            pace = torch.optim.lr_scheduler.OneCycleLR(learner, RATE, total_steps=steps)
            blurred = _blurred(scaler.columns.tolist())
            for _ in range(steps):
                rows = _mated(rng.choice(len(group), BATCH // 2, p=chance), group, members, starts, rng)
                x = _told(scaler, _mixed(features[rows], incidental, rng), blurred, rng)
                loss = _loss(torch, net(torch.from_numpy(x)), torch.from_numpy(group[rows]), judge)
                learner.zero_grad()
                loss.backward()
                learner.step()
                pace.step()
            return _layers(net.eval())
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict)


def _mated(rows: Numbers, group: Numbers, members: Numbers, starts: Numbers, rng: np.random.Generator) -> Numbers:
    """The rows, and another of each one's group. members: rows in order of group; starts: where each group begins."""
    of = group[rows]
    mates = members[rng.integers(starts[of], starts[of + 1])]
    return np.concatenate((rows, mates))


def _mixed(features: F32, incidental: Sequence[Incidental], rng: np.random.Generator) -> F32:
    """A batch whose events have what is incidental from each other, some of them."""
    mixed = features.copy()
    for columns, share in incidental:
        strangers = rng.permutation(len(features))
        strange = rng.random((len(features), 1)) < share
        mixed[:, columns] = np.where(strange, features[strangers][:, columns], features[:, columns])
    return mixed


def _told(scaler: LinearEmbedder, features: F32, blurred: NDArray[np.float64], rng: np.random.Generator) -> F32:
    """float32 [n, inputs] of one batch."""
    poorer = rng.random((len(features), 1)) < POORER
    s = scaler.scaled(np.where(poorer, thinned(features, rng), features))
    m = len(scaler.columns)
    s[:, :m] += rng.normal(0.0, BLUR, (len(s), m)) * blurred * (1.0 - s[:, m:])
    return np.clip(s, -SEEN_MAX, SEEN_MAX).astype(np.float32)


def _blurred(columns: Sequence[int]) -> NDArray[np.float64]:
    return np.array([float(FEATURES[c].group in _CHOSEN) for c in columns])


def _network(torch: Any, inputs: int, width: int) -> Any:
    nn, parts, last = torch.nn, [], inputs
    for size in HIDDEN:
        parts += [nn.Linear(last, size), nn.BatchNorm1d(size), nn.ReLU(), nn.Dropout(DROPOUT)]
        last = size
    return nn.Sequential(*parts, nn.Linear(last, width))


def _loss(torch: Any, out: Any, group: Any, judge: Any) -> Any:
    z = torch.nn.functional.normalize(out, dim=1)
    alone = torch.eye(len(z), dtype=torch.bool)
    likeness = (z @ z.T / TEMPERATURE).masked_fill(alone, -1e9)
    alike = (group[:, None] == group[None, :]) & ~alone
    log_share = likeness - torch.logsumexp(likeness, dim=1, keepdim=True)
    n = alike.sum(dim=1)
    contrast = -((log_share * alike).sum(dim=1)[n > 0] / n[n > 0]).mean()
    if judge is None:
        return contrast
    judged = torch.nn.functional.cross_entropy(SHARPNESS * judge(z), group, label_smoothing=SMOOTHING)
    return contrast + judged


def _layers(net: Any) -> list[Layer]:
    """The linear layers, each with the normalisation behind it folded in."""
    layers: list[Layer] = []
    for part in net:
        name = type(part).__name__
        if name == "Linear":
            layers.append(Layer(part.weight.detach().numpy().copy(), part.bias.detach().numpy().copy()))
        elif name == "BatchNorm1d":
            weights, bias = layers.pop()
            by = (part.weight / (part.running_var + part.eps).sqrt()).detach().numpy()
            shift = part.bias.detach().numpy()
            layers.append(Layer(weights * by[:, None], (bias - part.running_mean.numpy()) * by + shift))
    return layers
