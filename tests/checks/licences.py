#!/usr/bin/env python3
"""Checks the licence and the source of every dependency against deny.toml, for machines without cargo-deny.

usage: licences.py   (in the project's root)
"""

import json
import re
import subprocess
import sys
import tomllib


def allowed(expression, allow):
    """Whether an SPDX expression can be met with the allowed licences ("/" is the old way to write OR)."""
    words = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    at = 0

    def peek():
        return words[at] if at < len(words) else None

    def take():
        nonlocal at
        at += 1
        return words[at - 1]

    def one():
        if peek() is None:
            raise ValueError("ends too early")
        word = take()
        if word == "(":
            value = either()
            if peek() != ")":
                raise ValueError("no closing parenthesis")
            take()
            return value
        if peek() == "WITH":
            take()
            word += " WITH " + take()
        return word in allow

    def both():
        value = one()
        while peek() == "AND":
            take()
            value = one() and value
        return value

    def either():
        value = both()
        while peek() == "OR":
            take()
            value = both() or value
        return value

    value = either()
    if peek() is not None:
        raise ValueError(f"unexpected {peek()!r}")
    return value


def self_test():
    allow = {"MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"}
    for expression, want in {
        "MIT": True,
        "GPL-3.0": False,
        "MIT/GPL-3.0": True,
        "GPL-3.0 OR (MIT AND Apache-2.0)": True,
        "MIT AND GPL-3.0": False,
        "Apache-2.0 WITH LLVM-exception": True,
        "GPL-2.0 WITH LLVM-exception OR GPL-3.0": False,
    }.items():
        assert allowed(expression, allow) == want, expression


def main():
    self_test()
    with open("deny.toml", "rb") as f:
        deny = tomllib.load(f)
    allow = set(deny["licenses"]["allow"])
    registries = {"registry+" + url for url in deny["sources"]["allow-registry"]}
    packages = {}
    for target in deny["graph"]["targets"]:
        command = ["cargo", "metadata", "--format-version=1", "--locked", "--filter-platform", target]
        for package in json.loads(subprocess.check_output(command))["packages"]:
            packages[package["id"]] = package
    bad = 0
    for package in packages.values():
        name = f"{package['name']} {package['version']}"
        if package["source"] is not None and package["source"] not in registries:
            print(f"{name}: source {package['source']} is not allowed by deny.toml")
            bad += 1
        licence = package["license"]
        try:
            good = licence is not None and allowed(licence, allow)
        except (ValueError, IndexError) as e:
            print(f"{name}: cannot read licence {licence!r}: {e}")
            good = False
        if not good:
            print(f"{name}: licence {licence!r} is not allowed by deny.toml")
            bad += 1
    if bad:
        sys.exit(f"{bad} dependencies refused")
    print(f"licences and sources of {len(packages)} packages are allowed")


main()
