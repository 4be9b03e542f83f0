"""The loss of a task: some structures of the model against everything else."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segunlearn.errors import InvalidInputError
from segunlearn.networks import ModelConfig
from segunlearn.unlearning.loop import dice_ce_of

#: Images ``(B, C, X, Y[, Z])`` float32 and labels ``(B, 1, X, Y[, Z])`` int64.
Batch = tuple[torch.Tensor, torch.Tensor]


def values_of(structures: Sequence[str], config: ModelConfig) -> tuple[int, ...]:
    """Label values of structures, in the model's order; of all where none is named.

    Raises
    ------
    InvalidInputError
        The model does not know one of them.
    """
    known = config.label_values
    if unknown := sorted(set(structures) - set(known)):
        raise InvalidInputError(
            f"the model has no structure {', '.join(unknown)}; it knows {', '.join(known)}."
        )
    return tuple(value for name, value in known.items() if not structures or name in structures)


def collapsed(logits: torch.Tensor, values: Sequence[int]) -> torch.Tensor:
    """Join every class that is not of the task into one.

    The probability of the rest is the sum of theirs, so how the network divides the rest is not
    judged: a site that annotates one structure does not unlearn the others.

    Parameters
    ----------
    logits
        ``(B, K, ...)``; class 0 is background.
    values
        Classes of the task, ascending.

    Returns
    -------
    torch.Tensor
        ``(B, 1 + len(values), ...)``; the very logits where the task has every structure.
    """
    rest = [k for k in range(logits.shape[1]) if k not in values]
    if rest == [0]:
        return logits
    return torch.cat([logits[:, rest].logsumexp(dim=1, keepdim=True), logits[:, list(values)]], 1)


def relabelled(label: torch.Tensor, values: Sequence[int]) -> torch.Tensor:
    """Give the classes of the task the numbers 1, 2, …; everything else becomes 0."""
    new = torch.zeros_like(label)
    for number, value in enumerate(values, start=1):
        new[label == value] = number
    return new


def task_loss(logits: torch.Tensor, label: torch.Tensor, values: Sequence[int]) -> torch.Tensor:
    """Soft Dice plus cross-entropy of a task, a mean over the batch.

    Parameters
    ----------
    logits
        ``(B, K, ...)``.
    label
        ``(B, 1, ...)`` with the model's values.
    values
        See ``collapsed``.
    """
    return dice_ce_of(collapsed(logits, values), relabelled(label, values))
