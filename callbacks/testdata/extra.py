"""What Python makes of `extra`: the oracle of the tests of trimming.

Reads JSON Lines {"kwargs": TEXT, "dict": NAME, "limit": N, "keep": [KEY, ...]} and adds to each "length", the
length of json.dumps(extra) (absent: null), and "body", json.dumps of the kwargs after trimming.
"""
import json
import sys

for line in sys.stdin:
    case = json.loads(line)
    kwargs = json.loads(case["kwargs"])
    build = kwargs.get(case["dict"])
    case["length"] = None
    if isinstance(build, dict) and "extra" in build:
        case["length"] = len(json.dumps(build["extra"]))
        if case["limit"] and case["length"] > abs(case["limit"]):
            extra = build["extra"] if isinstance(build["extra"], dict) else {}
            kept = {k: v for k, v in extra.items() if k in case["keep"]}
            if kept:
                build["extra"] = kept
            else:
                del build["extra"]
    case["body"] = json.dumps(kwargs)
    print(json.dumps(case))
