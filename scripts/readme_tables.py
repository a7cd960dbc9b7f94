#!/usr/bin/env python3
"""Writes README's tables from the records in results/. With --check, fails when they differ.

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def cpu_bench():
    """One row per record and token count of results/cpu."""
    records = [json.loads(p.read_text()) for p in sorted((ROOT / "results/cpu").glob("*.json"))]
    if not records:
        return "No record yet: `scripts/cpu_bench.sh build/demo/cli/switchyard` makes one."
    machine = records[0]["machine"]
    lines = [
        f"{machine['cpu']}, {records[0]['limits']['before']['num_threads']} threads, commit {records[0]['commit']}.",
        "",
        "| layer | weights | tokens | experts hit | median us | GB/s | GFLOP/s | limit us | share of limit | bound by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        for row in record["results"]:
            lines.append(
                f"| {record['title']} | {record['spec']['weight_format']} | {row['tokens']} | "
                f"{row['distinct_experts']:.0f} | {row['median_us']:.0f} | {row['gbps']:.1f} | {row['gflops']:.0f} | "
                f"{row['limit_us']:.0f} | {100 * row['share']:.0f} % | {row['bound']} |")
    return "\n".join(lines)


TABLES = {"cpu-bench": cpu_bench}


def main():
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, table in TABLES.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.S)
        if not pattern.search(text):
            sys.exit(f"README.md has no table {name}")
        text = pattern.sub(lambda match: match[1] + table() + "\n" + match[2], text)
    if "--check" in sys.argv[1:]:
        if text != readme.read_text():
            sys.exit("README.md's tables differ from results/; run scripts/readme_tables.py")
        print("README's tables are those of results/")
    else:
        readme.write_text(text)


if __name__ == "__main__":
    main()
