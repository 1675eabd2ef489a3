"""Canonical JSON (RFC 8785): its published vectors, and the layout of numbers."""

from __future__ import annotations

import struct

import pytest

from remit._json import canonical, definition_digest

# RFC 8785, appendix B: IEEE 754 bits and the text that ECMAScript gives them.
NUMBERS = """
0000000000000000 0
8000000000000000 0
0000000000000001 5e-324
8000000000000001 -5e-324
7fefffffffffffff 1.7976931348623157e+308
ffefffffffffffff -1.7976931348623157e+308
4340000000000000 9007199254740992
c340000000000000 -9007199254740992
4430000000000000 295147905179352830000
44b52d02c7e14af5 9.999999999999997e+22
44b52d02c7e14af6 1e+23
44b52d02c7e14af7 1.0000000000000001e+23
444b1ae4d6e2ef4e 999999999999999700000
444b1ae4d6e2ef4f 999999999999999900000
444b1ae4d6e2ef50 1e+21
3eb0c6f7a0b5ed8c 9.999999999999997e-7
3eb0c6f7a0b5ed8d 0.000001
41b3de4355555553 333333333.3333332
41b3de4355555554 333333333.33333325
41b3de4355555555 333333333.3333333
41b3de4355555556 333333333.3333334
41b3de4355555557 333333333.33333343
becbf647612f3696 -0.0000033333333333333333
43143ff3c1cb0959 1424953923781206.2
"""


@pytest.mark.parametrize("line", NUMBERS.strip().splitlines())
def test_numbers(line: str) -> None:
    bits, text = line.split()
    assert canonical(struct.unpack(">d", bytes.fromhex(bits))[0]) == text


def test_integers_and_what_is_no_number() -> None:
    assert canonical([1, 1.0, 100, -5, 1e3, 0.1, 1e-7, 12.5, True]) == "[1,1,100,-5,1000,0.1,1e-7,12.5,true]"
    assert canonical(9007199254740993) == "9007199254740992"
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError):
            canonical(bad)


def test_strings_and_order() -> None:
    # RFC 8785, section 3.2.3: keys sort by UTF-16 code units, so that U+1F600 comes before U+FB33.
    keys = {"\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew", "1": "One", "\U0001f600": "Smiley", "\x80": "Control"}
    assert [part.split(":")[1] for part in canonical(keys)[1:-1].split(",")] == [
        '"Carriage Return"', '"One"', '"Control"', '"Euro Sign"', '"Smiley"', '"Hebrew"'
    ]  # fmt: skip
    assert canonical('\u20ac$\x0f\nA\'B"\\\\"/\x7f\u2028') == '"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/\x7f\u2028"'
    with pytest.raises(ValueError):
        definition_digest({"name": "\ud800"})


def test_definition() -> None:
    tool = {"name": "add", "description": "Adds.", "inputSchema": {"type": "object", "properties": {"b": {"minimum": 1.0}, "a": {}}}}
    digest = definition_digest(tool)
    assert digest == "sha256:6137c35f980c18466772cbdf1b18e283d8938233a6105f8822a3e76a6cfb4622"
    assert definition_digest({**tool, "_meta": {"x": 1}, "icons": [], "execution": {}}) == digest
    for member, value in (("title", "Add"), ("annotations", {}), ("description", "Adds!"), ("outputSchema", {})):
        assert definition_digest({**tool, member: value}) != digest
