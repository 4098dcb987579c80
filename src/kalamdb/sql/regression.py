"""corr(), covar_…() and regr_…() as PostgreSQL computes them: the method of Youngs and Cramer, row by row.

Sums of floating point depend on the order of rows, there as here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from kalamdb.errors import KalamError

_NAN = math.nan
Sums = tuple[int, float, float, float, float, float]


def _sums(ys: Sequence[float | None], xs: Sequence[float | None]) -> Sums:
    """Count, sum and squared deviations of x, the same of y, and products of deviations."""
    count, sx, sxx, sy, syy, sxy = 0, 0.0, 0.0, 0.0, 0.0, 0.0
    for y, x in zip(ys, xs, strict=True):
        if y is None or x is None:
            continue
        before, old_x, old_y = count, sx, sy
        count, sx, sy = count + 1, sx + x, sy + y
        if not before:
            if not math.isfinite(x):
                sxx = sxy = _NAN
            if not math.isfinite(y):
                syy = sxy = _NAN
            continue
        dx, dy = x * count - sx, y * count - sy
        scale = 1.0 / (count * before)
        sxx += dx * dx * scale
        syy += dy * dy * scale
        sxy += dx * dy * scale
        if any(map(math.isinf, (sx, sxx, sy, syy, sxy))):
            x_overflows = not math.isinf(old_x) and not math.isinf(x)
            y_overflows = not math.isinf(old_y) and not math.isinf(y)
            if ((math.isinf(sx) or math.isinf(sxx)) and x_overflows) or (
                    (math.isinf(sy) or math.isinf(syy)) and y_overflows) or (
                    math.isinf(sxy) and x_overflows and y_overflows):
                raise KalamError("22003", "value out of range: overflow")
            sxx, syy, sxy = (_NAN if math.isinf(each) else each for each in (sxx, syy, sxy))
    return count, sx, sxx, sy, syy, sxy


def _quotient(one: float, two: float) -> float:
    """As processors divide."""
    if two == 0:
        return _NAN if one == 0 or one != one else math.copysign(math.inf, one) * math.copysign(1, two)
    return one / two


def _root(value: float) -> float:
    return math.sqrt(value) if value >= 0 else _NAN


_FINAL: dict[str, Callable[[int, float, float, float, float, float], float | None]] = {
    "corr": lambda n, sx, sxx, sy, syy, sxy: None if sxx == 0 or syy == 0 else _quotient(sxy, _root(sxx * syy)),
    "covar_pop": lambda n, sx, sxx, sy, syy, sxy: sxy / n,
    "covar_samp": lambda n, sx, sxx, sy, syy, sxy: sxy / (n - 1) if n > 1 else None,
    "regr_avgx": lambda n, sx, sxx, sy, syy, sxy: sx / n,
    "regr_avgy": lambda n, sx, sxx, sy, syy, sxy: sy / n,
    "regr_intercept": lambda n, sx, sxx, sy, syy, sxy: None if sxx == 0 else (sy - sx * sxy / sxx) / n,
    "regr_r2": lambda n, sx, sxx, sy, syy, sxy: None if sxx == 0 else 1.0 if syy == 0 else _quotient(
        sxy * sxy, sxx * syy),
    "regr_slope": lambda n, sx, sxx, sy, syy, sxy: None if sxx == 0 else sxy / sxx,
    "regr_sxx": lambda n, sx, sxx, sy, syy, sxy: sxx,
    "regr_sxy": lambda n, sx, sxx, sy, syy, sxy: sxy,
    "regr_syy": lambda n, sx, sxx, sy, syy, sxy: syy,
}
NAMES = tuple(_FINAL)


def aggregate(name: str) -> Callable[[Sequence[float | None], Sequence[float | None]], float | None]:
    """Of the values of Y and those of X."""
    final = _FINAL[name]

    def work(ys: Sequence[float | None], xs: Sequence[float | None]) -> float | None:
        sums = _sums(ys, xs)
        return final(*sums) if sums[0] else None

    return work
