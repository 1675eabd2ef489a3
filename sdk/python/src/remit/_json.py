"""JSON as it is checked: copies that nobody else holds, and the canonical form (RFC 8785) of a tool's definition.

Must never let a value through that the check and the tool could read differently.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Mapping

_DEPTH = 64
_DEFINITION = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")


def snapshot(value: Any, path: str = "arguments", depth: int = 0) -> Any:
    """A deep copy of a JSON value. ValueError, with the path, for anything that is not exactly JSON."""
    kind = type(value)
    if value is None or kind in (str, bool, int) or (kind is float and math.isfinite(value)):
        return value
    if depth < _DEPTH:
        if kind is list:
            return [snapshot(v, f"{path}.{i}", depth + 1) for i, v in enumerate(value)]
        if kind is dict and all(type(k) is str for k in value):
            return {k: snapshot(v, f"{path}.{k}", depth + 1) for k, v in value.items()}
    raise ValueError(f"`{path}` ({kind.__name__}) is not a plain JSON value")


def definition_digest(tool: Mapping[str, Any]) -> str:
    """Digest of a tool's definition as an MCP server lists it; `_meta`, `icons` and what else a client need not know left out."""
    picked = {k: tool[k] for k in _DEFINITION if k in tool}
    return "sha256:" + hashlib.sha256(canonical(picked).encode()).hexdigest()


def canonical(value: Any) -> str:
    """RFC 8785."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda k: k.encode("utf-16-be"))
        return "{" + ",".join(f"{canonical(k)}:{canonical(value[k])}" for k in keys) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(float(value))
    return json.dumps(value, ensure_ascii=False)


def _number(x: float) -> str:
    """Number::toString of ECMAScript: the shortest digits that read back as `x`, laid out its way."""
    if not math.isfinite(x):
        raise ValueError("a number of JSON is finite")
    if x == 0:
        return "0"
    mantissa, _, exponent = f"{abs(x)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    # The value is 0.DIGITS times ten to the power of `point`.
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    if len(digits) <= point <= 21:
        text = digits.ljust(point, "0")
    elif 0 < point <= 21:
        text = f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        text = digits[0] + ("." + digits[1:] if len(digits) > 1 else "") + f"e{point - 1:+d}"
    return "-" + text if x < 0 else text
