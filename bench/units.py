"""Numbers as a reader wants them: a few digits and a unit."""

from __future__ import annotations

NOT_KNOWN = "n/a"


def scaled(value: float, units: tuple[tuple[str, float], ...], smallest: str) -> str:
    """Three digits in the largest unit in which there is a whole one."""
    for unit, scale in units:
        if value >= 0.9995 * scale:  # so that 999.6 us is 1 ms
            digits = 0 if value >= 99.95 * scale else 1 if value >= 9.995 * scale else 2
            return f"{value / scale:.{digits}f} {unit}"
    return f"{value / units[-1][1]:.2f} {smallest}"


def seconds(value: float | None) -> str:
    units = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
    return NOT_KNOWN if value is None else scaled(value, units, "us")


def size(value: float | None) -> str:
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    return NOT_KNOWN if value is None else scaled(value, units, "kB")


def percent(value: float | None) -> str:
    return NOT_KNOWN if value is None else f"{100 * value:.0f}%"


def times(value: float | None) -> str:
    """A factor: two decimals, one from ten on."""
    if value is None:
        return NOT_KNOWN
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"


def rate(value: float | None) -> str:
    return NOT_KNOWN if value is None else f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def error(value: float | None) -> str:
    return NOT_KNOWN if value is None else f"{value:.1e}"
