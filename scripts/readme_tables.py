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


def cpu_ggml():
    """One row per format of results/cpu/ggml: ours, ggml's milliseconds and their ratio by token count."""
    records = [json.loads(p.read_text()) for p in sorted((ROOT / "results/cpu/ggml").glob("*.json"))]
    if not records:
        return "No record yet: `scripts/ggml_compare.sh --pypi --record` makes one."
    first = records[0]
    tokens = [row["tokens"] for row in first["results"]]
    lines = [
        f"{first['machine']['cpu']}, {first['limits']['before']['num_threads']} threads, commit {first['commit']}, "
        f"ggml {first['ggml']}. Milliseconds: ours / ggml (ratio).",
        "",
        "| layer | weights | " + " | ".join(f"T = {t}" for t in tokens) + " |",
        "|---" * (len(tokens) + 2) + "|",
    ]
    for record in records:
        cells = [f"{row['ours_ms']:.3g} / {row['ggml_ms']:.3g} ({row['ggml_ms'] / row['ours_ms']:.1f})"
                 for row in record["results"]]
        lines.append(f"| {record['title']} | {record['format']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gpu_record(name):
    """A record of results/h200 and the line that says where it comes from; None when there is none."""
    path = ROOT / "results/h200" / name
    if not path.exists():
        return None, "No record yet: `scripts/gpu_check.sh` makes one."
    record = json.loads(path.read_text())
    machine = record["machine"]
    return record, (f"{machine['name']}, driver {machine['driver_version']}, commit {record['commit']}, "
                    f"{record['date'][:10]}.")


def by_tokens(rows, label, tokens):
    """One line per label and one column per token count: microseconds and the share of the limit."""
    cells = {}
    for row in rows:
        share = f" ({100 * row['share_of_limit']:.0f} %)" if "share_of_limit" in row else ""
        cells.setdefault(label(row), {})[row["tokens"]] = f"{row['us']:.4g}{share}"
    shown = [t for t in tokens if any(t in line for line in cells.values())]
    lines = ["| | " + " | ".join(f"T = {t}" for t in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for name, line in cells.items():
        lines.append(f"| {name} | " + " | ".join(line.get(t, "") for t in shown) + " |")
    return "\n".join(lines)


def gpu_layers():
    record, origin = gpu_record("layers.json")
    if record is None:
        return origin
    tokens = (1, 8, 64, 256, 1024, 8192)
    table = by_tokens(record["results"], lambda row: f"{row['model']}, {row['weights']} x {row['activations']}", tokens)
    peers, peers_origin = gpu_record("layer_peers.json")
    if peers is None:
        return f"{origin}\n\n{table}"
    others = by_tokens(peers["results"], lambda row: f"{row['model']}, {row['peer']}", tokens)
    return f"{origin}\n\n{table}\n\nOther libraries' layers, timed the same way by `scripts/gpu_layer_peers.py`. {peers_origin}\n\n{others}"


def gpu_steps():
    record, origin = gpu_record("steps.json")
    if record is None:
        return origin
    others = ("zeroing", "chunked", "one-shot", "generic")
    rows = [row for row in record["results"] if not any(word in row["case"] for word in others)]
    table = by_tokens(rows, lambda row: f"{row['step']}: {row['case']}", (1, 64, 1024, 8192, 16384))
    return f"{origin}\n\n{table}"


TABLES = {"cpu-bench": cpu_bench, "cpu-ggml": cpu_ggml, "gpu-layers": gpu_layers, "gpu-steps": gpu_steps}


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
