"""Draws labels from known rewards, fits them with each objective, and compares with plain Bradley-Terry.

    python benchmarks/simulate_objectives.py

Each item has one free reward. It is fitted by minimising the objective of `plaudit.objectives` on batches made by
Plaudit's collator, in float64 and to the optimum, so that nothing but the objective is compared. Plain Bradley-Terry
gets the same labels as far as a trainer of pairs could read them. Where a likelihood needs more than rewards (a
tie parameter, a scale), those numbers are fitted afterwards, on the training data, to the finished rewards.
The result goes to benchmarks/results as JSON, and the picture to docs/images.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_commit, describe_machine, load_average
from preference_models import Link
from scipy.optimize import minimize
from scipy.stats import spearmanr
from simulated_cases import Case, make_cases
from simulated_rows import Row
from simulation_picture import draw_picture
from torch.nn.functional import softplus

from plaudit.data.collate import SharedPrefixCollator
from plaudit.objectives import Objective
from plaudit.schema import Batch

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "objectives_simulation.json"
PICTURE = ROOT / "docs" / "images" / "objectives_simulation.svg"
PRIOR = 1e-4
"""Coefficient of the mean squared reward: it fixes the constant that comparisons leave open, and little else."""


def main() -> None:
    """Simulate, write the result, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="how often everything is drawn anew")
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of labels to learn from")
    parser.add_argument("--held_out", type=int, default=20_000, help="fresh labels to measure on")
    parser.add_argument("--cases", nargs="*", help="only these")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    load, start = load_average(), time.perf_counter()
    cases = [one for one in make_cases(arguments.scale) if not arguments.cases or one.name in arguments.cases]
    results = []
    for case in cases:
        seeds = []
        for seed in range(arguments.seeds):
            rng = np.random.default_rng(seed)
            truth = case.offset + rng.normal(0, case.spread, arguments.items)
            seeds.append(simulate(case, rng, truth, arguments.held_out))
        results.append(summarise(case, seeds))
        print(describe(results[-1]), flush=True)
    settings = {name: getattr(arguments, name) for name in ("seeds", "items", "scale", "held_out")}
    result = {
        "machine": describe_machine(),
        "commit": describe_commit(),
        "versions": versions(),
        "load_average": load,
        "seconds": round(time.perf_counter() - start, 1),
        "arguments": settings,
        "cases": results,
    }
    for path in (arguments.output, arguments.picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw_picture(result, arguments.picture)


def simulate(case: Case, rng: np.random.Generator, truth: np.ndarray, held_out: int) -> dict[str, Any]:
    """Draw once, fit everything, measure on fresh labels.

    Args:
        case: What is simulated.
        rng: Decides all labels.
        truth: The items' rewards, shape (M,).
        held_out: Number of fresh labels.

    Returns:
        ``true_nll``, and for each fit ``spearman``, ``nll`` and, of objectives that learn one, ``tie``.
    """
    train = case.draw(rng, truth, case.count)
    fresh = (case.fresh or case.draw)(rng, truth, held_out)
    found: dict[str, Any] = {"true_nll": case.nll(fresh, truth, case.link)}
    for fit in case.fits:
        rewards, tie = fit_rewards(fit.objective, fit.rows(rng, train), len(truth))
        known = Link() if tie is None else Link(tie=tie)
        scaled, link = adapt(case.nll, train, rewards, known, fit.afterwards)
        found[fit.name] = {
            "spearman": float(spearmanr(rewards, truth).statistic),
            "nll": case.nll(fresh, scaled, link),
            **({} if tie is None else {"tie": tie}),
        }
    return found


def fit_rewards(objective: Objective, rows: Sequence[Row], items: int) -> tuple[np.ndarray, float | None]:
    """Minimise an objective over one free reward for each item, and over its tie parameter.

    Args:
        objective: What is minimised.
        rows: Prepared rows; the last token of a response says which item it is.
        items: Number of items.

    Returns:
        The rewards, and Rao-Kupper's threshold or the logarithm of Davidson's weight; None for other objectives.
    """
    batches = [(batch, items_of(batch)) for batch in collate(objective, rows)]
    rewards = torch.zeros(items, dtype=torch.float64, requires_grad=True)
    tie = torch.zeros(1, dtype=torch.float64, requires_grad=True) if objective.learns_ties else None
    parameters = [rewards] if tie is None else [rewards, tie]
    count = sum(float(objective.units(batch)[0].sum()) for batch, _ in batches)

    def loss() -> torch.Tensor:
        total = PRIOR * rewards.square().mean()
        for batch, items_N in batches:
            loss_U, (count_U, _) = objective.losses(rewards[items_N], batch, tie), objective.units(batch)
            total = total + (count_U * loss_U).sum() / count
        return total

    if objective.name == "hinge":
        _descend(loss, parameters)
    else:
        _solve(loss, parameters)
    learned = None
    if tie is not None:
        learned = (softplus(tie) if objective.name == "rao_kupper" else tie).item()
    return rewards.detach().numpy(), learned


def collate(objective: Objective, rows: Sequence[Row]) -> list[Batch]:
    """Batches of the trainer's collator, with numbers in float64."""
    # Plackett-Luce compares all responses of a batch with each other.
    batch_size = 32 if objective.name == "plackett_luce" else 2048
    collator = SharedPrefixCollator(ties=objective.learns_ties)
    batches = [collator(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    return [{key: _double(value) for key, value in batch.items()} for batch in batches]


def items_of(batch: Batch) -> torch.Tensor:
    """Which item each reward belongs to: the token at which it is read, less the one of the prompt."""
    return batch["input_ids"].flatten()[batch["reward_positions"]] - 1


def adapt(
    nll: Callable[[Any, np.ndarray, Link], float],
    train: Any,
    rewards: np.ndarray,
    link: Link,
    names: Sequence[str],
) -> tuple[np.ndarray, Link]:
    """Fit what a likelihood needs beside finished rewards, on the training data.

    Args:
        nll: The likelihood.
        train: What the rewards were fitted to.
        rewards: The rewards.
        link: What is known.
        names: What is not: of ``scale`` and ``offset`` of the rewards, ``tie`` and ``log_noise``.
    """

    def apply(values: Sequence[float]) -> tuple[np.ndarray, Link]:
        found = dict(zip(names, values, strict=True))
        scaled = found.pop("scale", 1.0) * rewards + found.pop("offset", 0.0)
        return scaled, replace(link, **found)

    if not names:
        return rewards, link
    start = [{"scale": 1.0, "tie": 0.5}.get(name, 0.0) for name in names]
    best = minimize(lambda values: nll(train, *apply(values)), start, method="Nelder-Mead", options={"maxiter": 1000})
    return apply(best.x)


def summarise(case: Case, seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and spreads over the seeds; gains are paired, since both sides saw the same labels."""
    true = np.array([seed["true_nll"] for seed in seeds])
    fits = {}
    for fit in case.fits:
        values = {key: np.array([seed[fit.name][key] for seed in seeds]) for key in seeds[0][fit.name]}
        fits[fit.name] = {
            "role": fit.role,
            "objective": fit.objective.name,
            "fitted_afterwards": list(fit.afterwards),
            **{key: spread(value) for key, value in values.items()},
            "excess_nll": spread(values["nll"] - true),
        }
        if fit.role != "plain":
            fits[fit.name]["gain_over"] = {
                plain.name: spread(np.array([seed[plain.name]["nll"] for seed in seeds]) - values["nll"])
                for plain in case.fits
                if plain.role == "plain"
            }
    return {
        "name": case.name,
        "title": case.title,
        "labels": case.count,
        "held_out_nll_of": case.unit,
        "should_gain": case.should_gain,
        "true_tie": case.link.tie if any(fit.objective.learns_ties for fit in case.fits) else None,
        "true_nll": spread(true),
        "fits": fits,
    }


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation and extremes over seeds."""
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    figures = {"mean": values.mean(), "deviation": deviation, "smallest": values.min(), "largest": values.max()}
    return {name: round(float(value), 6) for name, value in figures.items()}


def describe(result: dict[str, Any]) -> str:
    """A few lines for the terminal."""
    lines = [f"{result['title']} ({result['labels']}), truth {result['true_nll']['mean']:.4f} nats"]
    for name, fit in result["fits"].items():
        tie = f", tie parameter {fit['tie']['mean']:.3f} of {result['true_tie']}" if "tie" in fit else ""
        gains = "".join(
            f"\n      gain over {plain}: {gain['mean']:+.4f} +- {gain['deviation']:.4f}"
            for plain, gain in fit.get("gain_over", {}).items()
        )
        lines.append(
            f"  {fit['role']:>9} {name}: Spearman {fit['spearman']['mean']:.3f}"
            f" (least {fit['spearman']['smallest']:.3f}),"
            f" excess {fit['excess_nll']['mean']:.4f} +- {fit['excess_nll']['deviation']:.4f}{tie}{gains}"
        )
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the numbers."""
    packages = ("plaudit", "torch", "numpy", "scipy", "matplotlib")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _solve(loss: Callable[[], torch.Tensor], parameters: Sequence[torch.Tensor]) -> None:
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=300, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def _descend(loss: Callable[[], torch.Tensor], parameters: Sequence[torch.Tensor], steps: int = 400) -> None:
    """For losses with corners, which second-order methods stumble over."""
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


if __name__ == "__main__":
    torch.set_num_threads(1)  # The tensors are too small for more.
    main()
