"""Print what Koji's read_config_files would make of each path, as one JSON object a line.

Koji uses ConfigParser() with its defaults and utf8; a directory stands for its *.conf files in order.
"""
import configparser
import json
import os
import sys


def convert(get, section, option):
    try:
        return repr(get(section, option))
    except (ValueError, configparser.Error):
        return "error"


def read(path):
    files = [path]
    if os.path.isdir(path):
        files = sorted(os.path.join(path, n) for n in os.listdir(path) if n.endswith(".conf"))
    cfg = configparser.ConfigParser()
    try:
        cfg.read(files, encoding="utf8")
    except configparser.ParsingError as ex:  # MissingSectionHeaderError is one, with a line of its own
        line = getattr(ex, "lineno", None) or ex.errors[0][0]
        return {"error": type(ex).__name__, "line": line}
    except configparser.Error as ex:
        return {"error": type(ex).__name__, "line": ex.lineno}
    except UnicodeDecodeError as ex:
        return {"error": type(ex).__name__, "line": 0}
    sections = []
    for name in cfg.sections():
        settings = {}
        for option in cfg.options(name):
            try:
                value = cfg.get(name, option)
            except configparser.InterpolationError:
                value = None
            settings[option] = {
                "raw": cfg.get(name, option, raw=True),
                "value": value,
                "int": convert(cfg.getint, name, option),
                "float": convert(cfg.getfloat, name, option),
                "bool": convert(cfg.getboolean, name, option),
            }
        sections.append({"name": name, "settings": settings})
    return {"sections": sections}


for path in sys.stdin.read().split("\0"):
    print(json.dumps(read(path)))
