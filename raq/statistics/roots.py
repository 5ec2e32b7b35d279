"""Where a monotone function is 0. Neither torch nor ray.

SciPy's root finders are in a package whose import takes 0.4 s, which every `raq show` would wait for.
"""

import math
from collections.abc import Callable

STEPS, TOLERANCE = 300, 4e-16


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where `function` crosses 0 between low and high, at which it has opposite signs; it may be infinite there.

    The Illinois algorithm (Dowell & Jarratt 1971): false position, in which an end that stays counts half; halves the
    interval where that would not.
    """
    at_low, at_high = function(low), function(high)
    for step in range(STEPS):
        x = high - at_high * (high - low) / (at_high - at_low) if math.isfinite(at_high - at_low) else math.nan
        if step % 16 == 15 or not min(low, high) < x < max(low, high):
            x = (low + high) / 2
        y = function(x)
        if y == 0 or abs(x - high) <= TOLERANCE * max(abs(low), abs(high)):
            return x
        if (y > 0) == (at_high > 0):
            at_low = at_low / 2
        else:
            low, at_low = high, at_high
        high, at_high = x, y
    return high
