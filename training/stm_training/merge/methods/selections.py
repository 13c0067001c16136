"""Which numbers of a delta take part in a merge: the largest, those between the tails, or random ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stm_training.merge.methods.blocks import TILE, Block, Blocks
from stm_training.merge.methods.cuts import Cut, Taken, find_cuts
from stm_training.merge.recipe import MergeRecipe

Pick = Callable[[Tensor, int], Tensor]
"""The (n,) numbers of a tile and the index of the first -> the same, zeros where they do not take part."""

# Chances are multiples of 1/65536, so that one random 64-bit number decides about four changes.
_CHANCES = 1 << 16


class Selection(Protocol):
    """A way to choose."""

    @property
    def needs_statistics(self) -> bool:
        """Whether :meth:`statistics` makes passes over the blocks."""

    def statistics(self, blocks: Blocks, size: int, recipe: MergeRecipe, used: Sequence[int]) -> Any:
        """Look at all blocks first; ``used`` are the places of the members that count."""

    def pick(self, place: int, block: Block, recipe: MergeRecipe, statistics: Any, name: str) -> Pick | None:
        """For the tiles of a block in order; ``None`` where every number of the member takes part."""

    def rescale(self, recipe: MergeRecipe) -> list[float]:
        """Factor per member that makes up for what was left out."""


class Largest:
    """The ``density`` share of numbers that is largest in magnitude.

    TIES, Yadav et al. 2023 (arXiv 2306.01708), section 3, "trim".
    """

    needs_statistics = True

    def statistics(
        self, blocks: Blocks, size: int, recipe: MergeRecipe, used: Sequence[int]
    ) -> dict[int, Cut]:
        """Cuts by member."""
        densities = list(recipe.densities().values())
        counts = {place: max(1, round(densities[place] * size)) for place in used if densities[place] < 1}
        cuts = find_cuts(blocks, size, list(counts.items()))
        return {place: cuts[place, count] for place, count in counts.items()}

    def pick(
        self, place: int, block: Block, recipe: MergeRecipe, statistics: dict[int, Cut], name: str
    ) -> Pick | None:
        """What lies above the threshold."""
        if place not in statistics:
            return None
        taken = Taken(statistics[place], block)
        return lambda delta, start: taken.of(delta)

    def rescale(self, recipe: MergeRecipe) -> list[float]:
        """TIES does not rescale."""
        return [1.0] * len(recipe.weights)


class Between:
    """All but the largest ``gamma`` and the smallest ``1 - density - gamma`` of the numbers.

    Model Breadcrumbs, Davari and Belilovsky 2023 (arXiv 2312.06795), section 3: both tails of each layer's
    changes are masked.
    """

    needs_statistics = True

    def statistics(
        self, blocks: Blocks, size: int, recipe: MergeRecipe, used: Sequence[int]
    ) -> dict[int, tuple[Cut, Cut]]:
        """By member: what lies above the lower tail, and the upper tail."""
        densities, gammas = list(recipe.densities().values()), list(recipe.gammas().values())
        counts = {}
        for place in used:
            dropped = round(gammas[place] * size)
            if dropped or densities[place] < 1:
                counts[place] = (min(size, dropped + max(1, round(densities[place] * size))), dropped)
        wanted = [(place, count) for place, both in counts.items() for count in both]
        cuts = find_cuts(blocks, size, wanted)
        return {place: (cuts[place, upto], cuts[place, top]) for place, (upto, top) in counts.items()}

    def pick(
        self, place: int, block: Block, recipe: MergeRecipe, statistics: dict[int, tuple[Cut, Cut]], name: str
    ) -> Pick | None:
        """What lies above the lower tail and not in the upper one."""
        if place not in statistics:
            return None
        upto, top = (Taken(cut, block) for cut in statistics[place])
        return lambda delta, start: upto.of(delta) - top.of(delta)

    def rescale(self, recipe: MergeRecipe) -> list[float]:
        """BreadCrumbs does not rescale."""
        return [1.0] * len(recipe.weights)


class AtRandom:
    """Every number with the chance ``density``; what is kept is divided by it, so that the mean stays.

    DARE, Yu et al. 2024 (arXiv 2311.03099), section 3.2. Whether a number stays depends on the recipe's seed,
    the parameter's name, the expert's name and the number's index, and on nothing else.
    """

    needs_statistics = False

    def statistics(self, blocks: Blocks, size: int, recipe: MergeRecipe, used: Sequence[int]) -> None:
        """None needed."""

    def pick(self, place: int, block: Block, recipe: MergeRecipe, statistics: None, name: str) -> Pick | None:
        """What the draw leaves."""
        expert, density = list(recipe.densities().items())[place]
        chance = _chance(density)
        if chance == _CHANCES:
            return None
        key = _key(recipe.seed, name, expert)

        def draw(delta: Tensor, start: int) -> Tensor:
            first = start % TILE
            kept = _draws(key, start // TILE)[first : first + len(delta)] < chance
            mask = torch.from_numpy(kept.view(np.uint8)).to(delta.device)
            return mask.float().mul_(delta)  # several times as fast as the product with a boolean

        return draw

    def rescale(self, recipe: MergeRecipe) -> list[float]:
        """One over the chance."""
        return [_CHANCES / _chance(density) for density in recipe.densities().values()]


def _chance(density: float) -> int:
    """Of 65536 draws, how many keep a number."""
    return max(1, round(density * _CHANCES))


def _key(seed: int, name: str, expert: str) -> int:
    """128 bits that stand for what the draws depend on, besides the index."""
    text = "\0".join((str(seed), name, expert))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def _draws(key: int, tile: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """(TILE,) random numbers of one tile; Philox counts, so that no tile needs those before it."""
    # A tile takes far fewer than 2^64 steps of the 256-bit counter, so that no two tiles share any.
    raw = np.random.Philox(key=key, counter=tile << 64).random_raw(TILE // 4)
    draws: np.ndarray[tuple[int], np.dtype[np.uint16]] = raw.astype("<u8", copy=False).view("<u2")
    return draws
