"""How often bootstrap intervals hold the true mean, on differences as they are here.

The generator is fitted to every real comparison under ``benchmarks/results/*/*.json`` that has at least 60 %
zeros: per-query nDCG@10 of a trained system minus that of the base. Of each comparison it takes the share of
zeros, gains and losses, and a Beta distribution for the size of the gains and another for that of the losses,
both by their first two moments; so its mean is known exactly. As a cross-check the same table is made with
populations that are the real differences themselves, drawn with replacement.

    python -m benchmarks.intervals            # 400 samples of every comparison: half a minute
    python -m benchmarks.intervals --full     # 2000 samples of every comparison: about five minutes

Prints the table as Markdown and writes benchmarks/results/intervals.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stm_training.evaluate.bootstrap import METHODS, Resampled, interval, t_quantile
from stm_training.evaluate.versions import installed_versions

RESULTS = Path(__file__).resolve().parent / "results"
SIZES = (60, 120, 300)
MOST_NONZERO = 0.4
FEWEST_OF_A_SIGN = 3
LEVEL = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Population:
    """Differences that can be drawn from, with a mean that is known.

    Attributes:
        name: The comparison it was fitted to.
        real: (m,) the real differences.
        zeros: Share of differences that are exactly 0.
        gains: Share above 0.
        gain_size: Both parameters of the Beta distribution of the gains.
        loss_size: Both parameters of the Beta distribution of the losses' sizes.
    """

    name: str
    real: Floats
    zeros: float
    gains: float
    gain_size: tuple[float, float]
    loss_size: tuple[float, float]

    @property
    def mean(self) -> float:
        """The true mean of what :meth:`draw` gives."""
        losses = 1.0 - self.zeros - self.gains
        return self.gains * _beta_mean(self.gain_size) - losses * _beta_mean(self.loss_size)

    def draw(self, shape: tuple[int, int], rng: np.random.Generator) -> Floats:
        """Samples of differences."""
        kind = rng.random(shape)
        gain, loss = rng.beta(*self.gain_size, shape), rng.beta(*self.loss_size, shape)
        return np.where(kind < self.zeros, 0.0, np.where(kind < self.zeros + self.gains, gain, -loss))


def _beta_mean(parameters: tuple[float, float]) -> float:
    return parameters[0] / sum(parameters)


def fit(name: str, differences: Floats) -> Population:
    """The population of one comparison, by shares and moments."""
    gains, losses = differences[differences > 0], -differences[differences < 0]
    zeros = float((differences == 0).mean())
    return Population(name, differences, zeros, float((differences > 0).mean()), _beta(gains), _beta(losses))


def _beta(sizes: Floats) -> tuple[float, float]:
    mean, variance = float(sizes.mean()), float(sizes.var(ddof=1))
    concentration = max(mean * (1.0 - mean) / max(variance, 1e-4) - 1.0, 0.5)
    return mean * concentration, (1.0 - mean) * concentration


def comparisons(results: Path = RESULTS) -> Iterator[tuple[str, Floats]]:
    """Every stored comparison with the base: its name and its differences per query."""
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        bases = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("base*.json"))]
        for path in sorted(folder.glob("*.json")) if bases else []:
            scores = json.loads(path.read_text(encoding="utf-8")).get("scores", {})
            for name, values in scores.items():
                reference = bases[0]["scores"].get(name, {})
                if (
                    path.name.startswith("base")
                    or not isinstance(values, dict)
                    or set(values) != set(reference)
                ):
                    continue
                diffs = np.array([values[query] - reference[query] for query in reference], dtype=np.float64)
                diffs[np.abs(diffs) < 1e-12] = 0.0
                yield f"{folder.name}/{path.stem}/{name}", diffs


def usable(differences: Floats) -> bool:
    """Mostly zeros, and enough of both signs for moments."""
    nonzero = (differences != 0).mean() <= MOST_NONZERO
    signs = min((differences > 0).sum(), (differences < 0).sum())
    return bool(nonzero) and bool(signs >= FEWEST_OF_A_SIGN)


def resample(samples: Floats, resamples: int, seed: int) -> Resampled:
    """Bootstrap every row with the same draws, as :func:`paired_bootstrap` does at one seed."""
    n = samples.shape[1]
    drawn = np.random.default_rng(seed).integers(0, n, size=(resamples, n))
    flat = drawn + n * np.arange(resamples)[:, None]
    weights = np.bincount(flat.ravel(), minlength=resamples * n).reshape(resamples, n).T / n
    return Resampled(samples, samples @ weights, samples**2 @ weights)


def misses(
    population: Population, n: int, *, empirical: bool, samples: int, resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """Method -> shares of intervals wholly above the true mean and wholly below it, and their mean width."""
    rng = np.random.default_rng([seed, n])
    if empirical:
        drawn = rng.choice(population.real, size=(samples, n))
        true = float(population.real.mean())
    else:
        drawn, true = population.draw((samples, n), rng), population.mean
    resampled = resample(drawn, resamples, seed)
    found: dict[str, dict[str, float]] = {}
    for method in METHODS:
        lo, hi = interval(method, resampled, LEVEL)
        found[method] = _counted(lo, hi, true)
    error = drawn.std(axis=1, ddof=1) / np.sqrt(n)
    reach = t_quantile(LEVEL, n - 1) * error  # no bootstrap: a yardstick
    found["Student's t"] = _counted(drawn.mean(axis=1) - reach, drawn.mean(axis=1) + reach, true)
    return found


def _counted(lo: Floats, hi: Floats, true: float) -> dict[str, float]:
    slack = 1e-12
    above, below = float((lo > true + slack).mean()), float((hi < true - slack).mean())
    return {"above": above, "below": below, "width": float((hi - lo).mean())}


def simulate(
    populations: Sequence[Population], *, samples: int, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """A row per source of differences, size and method."""
    rows = []
    for source in ("fitted", "empirical"):
        for n in SIZES:
            found = [
                misses(
                    population,
                    n,
                    empirical=source == "empirical",
                    samples=samples,
                    resamples=resamples,
                    seed=seed + number,
                )
                for number, population in enumerate(populations)
            ]
            rows += [_row(source, n, method, [one[method] for one in found]) for method in found[0]]
    return rows


def _row(source: str, n: int, method: str, found: Sequence[dict[str, float]]) -> dict[str, Any]:
    coverage = np.array([1.0 - one["above"] - one["below"] for one in found])
    return {
        "source": source,
        "n": n,
        "method": method,
        "coverage": float(coverage.mean()),
        "worst": float(coverage.min()),
        "off": float(np.abs(coverage - LEVEL).mean()),
        "above": float(np.mean([one["above"] for one in found])),
        "below": float(np.mean([one["below"] for one in found])),
        "width_points": 100 * float(np.mean([one["width"] for one in found])),
    }


def chosen(rows: Sequence[dict[str, Any]]) -> str:
    """The bootstrap whose coverage is least off 95 %, in the mean over comparisons, sizes and sources."""
    off = {method: np.mean([row["off"] for row in rows if row["method"] == method]) for method in METHODS}
    return min(off, key=lambda method: float(off[method]))


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        "| differences | n | interval | coverage | worst comparison | mean distance from 95 % "
        "| wholly above | wholly below | width, points |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['source']} | {row['n']} | {row['method']} | {row['coverage']:.1%} | {row['worst']:.1%} "
        f"| {100 * row['off']:.2f} | {row['above']:.1%} | {row['below']:.1%} | {row['width_points']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def fit_quality(populations: Sequence[Population]) -> dict[str, list[float]]:
    """Median over comparisons of what the real differences and the fitted ones have: [real, fitted]."""
    rng = np.random.default_rng(0)
    pairs = [(population.real, population.draw((1, 50_000), rng)[0]) for population in populations]

    def skew(values: Floats) -> float:
        return float(((values - values.mean()) ** 3).mean() / values.std() ** 3)

    figures: dict[str, Callable[[Floats], float]] = {
        "zeros": lambda values: float((values == 0).mean()),
        "sd": lambda values: float(values.std()),
        "absolute skewness": lambda values: abs(skew(values)),
    }
    return {
        name: [float(np.median([figure(pair[side]) for pair in pairs])) for side in (0, 1)]
        for name, figure in figures.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print, store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full", action="store_true", help="2000 samples and 2000 resamples, not 400 and 1000"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=RESULTS / "intervals.json", metavar="FILE")
    options = parser.parse_args(arguments)
    populations = [fit(name, diffs) for name, diffs in comparisons() if usable(diffs)]
    samples, resamples = (2000, 2000) if options.full else (400, 1000)
    started = time.monotonic()
    rows = simulate(populations, samples=samples, resamples=resamples, seed=options.seed)
    best, quality = chosen(rows), fit_quality(populations)
    print(as_markdown(rows))
    print(f"\n{len(populations)} comparisons, {samples} samples each, {resamples} resamples each.")
    for name, (real, fitted) in quality.items():
        print(f"median {name}: {real:.3f} of the real differences, {fitted:.3f} of the fitted ones")
    print(f"least off 95 % in the mean: {best}")
    document = {
        "chosen": best,
        "comparisons": [population.name for population in populations],
        "fit": quality,
        "samples": samples,
        "resamples": resamples,
        "seed": options.seed,
        "rows": rows,
        "seconds": round(time.monotonic() - started, 1),
        "versions": installed_versions(),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
