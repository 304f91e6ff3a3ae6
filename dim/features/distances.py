"""Two clouds of points compared: Fréchet distance, precision and recall, density and coverage.

Everything is in float64 on the device of the points, and pairwise distances are taken some rows at a time, so that memory
grows with the number of points and not with its square.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dim.errors import InputError

METRICS = ("fid", "precision", "recall", "density", "coverage")
# Neighbours that a ball reaches to, as published: Kynkäänniemi et al. 2019 (precision, recall); Naeem et al. 2020 (the others).
K_PRECISION, K_COVERAGE = 3, 5
K_LARGEST = max(K_PRECISION, K_COVERAGE)
# Distances held at a time: 64 MiB in float64.
_CHUNK = 2**23


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Fréchet distance of two clouds of features, as Gaussians (Heusel et al. 2017): |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)).

    Biased upwards for few images: compare only figures of equally many.

    Args:
        real, generated: float (N, F) and (M, F), two or more rows each; fewer rows than columns are allowed.

    Raises:
        InputError: for fewer than two rows.
    """
    if min(len(real), len(generated)) < 2:
        raise InputError(f"{min(len(real), len(generated))} image(s): a Fréchet distance needs at least 2 on each side")
    real, generated = double(real), double(generated)
    covariances = [torch.cov(points.T).view(points.shape[1], -1) for points in (real, generated)]
    roots = []
    for covariance in covariances:
        values, vectors = torch.linalg.eigh(covariance)
        roots.append(vectors * values.clamp(min=0).sqrt() @ vectors.T)
    # tr (S S')^(1/2) is the sum of the singular values of S^(1/2) S'^(1/2), the roots of the eigenvalues of
    # S^(1/2) S' S^(1/2). Taken so, small ones keep their digits, and singular covariances need no special case.
    cross = torch.linalg.svdvals(roots[0] @ roots[1]).sum()
    trace = covariances[0].trace() + covariances[1].trace() - 2 * cross
    return max(0.0, float((real.mean(0) - generated.mean(0)).square().sum() + trace))


def neighbour_metrics(real: Tensor, generated: Tensor) -> dict[str, float]:
    """Improved precision and recall (k = 3), density and coverage (k = 5), by name.

    Precision: part of the generated images that lie in a ball around a real one that reaches to its third real neighbour;
    recall: the same with the sides exchanged (Kynkäänniemi et al. 2019). Density: balls of real images (fifth
    neighbour) that a generated image lies in, over k; coverage: part of the real images whose ball holds a generated one
    (Naeem et al. 2020; their code has open balls, and so has this).

    Args:
        real, generated: float (N, F) and (M, F).

    Raises:
        InputError: for fewer than six rows.
    """
    if min(len(real), len(generated)) <= K_LARGEST:
        raise InputError(f"{min(len(real), len(generated))} images: expected at least {K_LARGEST + 1} on each side; draw more")
    # Distances do not change; near the origin their squares lose fewer digits.
    centre = double(real).mean(0)
    real, generated = double(real) - centre, double(generated) - centre
    real_radii, generated_radii = _radii(real), _radii(generated)
    ball, reach = real_radii[:, K_PRECISION - 1, None], real_radii[:, K_COVERAGE - 1, None]
    precise = torch.zeros(len(generated), dtype=torch.bool, device=real.device)
    recalled, covered, pairs = 0, 0, 0
    for part, table in distances(real, generated):
        precise |= (table <= ball[part]).any(0)
        recalled += (table <= generated_radii[:, K_PRECISION - 1]).any(1).sum()
        near = table < reach[part]
        covered += near.any(1).sum()
        pairs += near.sum()
    return {
        "precision": int(precise.sum()) / len(generated),
        "recall": int(recalled) / len(real),
        "density": int(pairs) / (K_COVERAGE * len(generated)),
        "coverage": int(covered) / len(real),
    }


def expected_coverage(real: int, generated: int, k: int = K_COVERAGE) -> float:
    """Expected coverage of `real` images by `generated` ones of the same distribution (Naeem et al. 2020).

    1 - (N-1)...(N-k) / ((M+N-1)...(M+N-k)), near 1 - 2^-k for many and equally many. The density to expect is 1.
    """
    return 1 - math.prod((real - j) / (generated + real - j) for j in range(1, k + 1))


def double(points: Tensor) -> Tensor:
    """The points in float64; from MPS, which has none, on the CPU."""
    return (points.cpu() if points.device.type == "mps" else points).double()


def distances(queries: Tensor, points: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Distances of all queries to all points, some rows at a time: their slice, and float64 (rows, points)."""
    rows = max(1, _CHUNK // len(points))
    for start in range(0, len(queries), rows):
        part = slice(start, min(start + rows, len(queries)))
        yield part, torch.cdist(queries[part], points)


def _radii(points: Tensor) -> Tensor:
    """Distances of each point to its nearest others, nearest first: float64 (N, 5)."""
    radii = points.new_empty(len(points), K_LARGEST)
    for part, table in distances(points, points):
        table[range(len(table)), range(part.start, part.stop)] = torch.inf
        radii[part] = table.topk(K_LARGEST, largest=False).values
    return radii
