#!/usr/bin/env python3
"""Checks the flag vectors with nothing but hashlib: a second reading of docs/flags.md."""

import hashlib
import json
import pathlib
from decimal import Decimal

HERE = pathlib.Path(__file__).parent
KEYS = {"v3": "dwcp_v3_hde", "compression": "dwcp_v3_compression"}


def bucket(key, salt, node):
    digest = hashlib.sha256(b"\0".join(part.encode() for part in (key, salt, node))).digest()
    return int.from_bytes(digest[:8], "big") * 100_000 >> 64


def decide(key, rule, node):
    if rule.get("kill"):
        return False, "killed"
    if not rule["enabled"]:
        return False, "disabled"
    if node in rule.get("exclude", []):
        return False, "excluded"
    if node in rule.get("include", []):
        return True, "included"
    threshold = rule["threshold"] if "threshold" in rule else int(rule["percentage"] * 1000)
    return bucket(key, rule.get("salt", ""), node) < threshold, "bucket"


def rows(name):
    return json.loads((HERE / name).read_text(), parse_float=Decimal)


for row in rows("buckets.json"):
    assert bucket(row["flag"], row["salt"], row["node"]) == row["bucket"], row

for row in rows("decisions.json"):
    flags, node = row["document"]["flags"], row["node"]
    assert decide(KEYS["v3"], flags[KEYS["v3"]], node) == (row["v3"], row["why"]), row
    rule = flags.get(KEYS["compression"])
    assert (decide(KEYS["compression"], rule, node)[0] if rule else True) == row["compression"], row

for row in rows("exact.json"):
    rule = {"enabled": True, **{key: row[key] for key in ("salt", "include", "exclude", "threshold")}}
    chosen = [node for node in sorted(row["roster"]) if decide(KEYS["v3"], rule, node)[0]]
    assert chosen == row["on"], row
    if row["percentage"] != "100":
        # No lower threshold would do.
        most = len(row["roster"]) - len(row["exclude"])
        assert len(chosen) == max(min(row["wanted"], most), len(row["include"])), row
        lower = {**rule, "threshold": row["threshold"] - 1}
        fewer = [node for node in row["roster"] if decide(KEYS["v3"], lower, node)[0]]
        assert row["threshold"] == 0 or len(fewer) < len(chosen), row

for row in rows("refused.json"):
    try:
        json.loads(row["text"])
    except ValueError:
        # 1e400 is JSON, and a number that Python reads and serde_json does not.
        assert row["refused"] == "garbage", row
    else:
        assert row["refused"] != "garbage" or "1e400" in row["text"], row
