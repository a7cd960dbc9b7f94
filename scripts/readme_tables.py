#!/usr/bin/env python3
"""Writes the tables of README and docs/measured.md from the records in results/. With --check, fails when they differ.

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""
import json
import math
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
        "| layer | weights | tokens | experts hit | median us | GB/s | read GB/s | GFLOP/s | limit us | share of limit | bound by |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        weights = record["spec"]["weight_format"]
        if record["spec"]["activation_format"] != "auto":
            weights += f" x {record['spec']['activation_format']}"
        if record["device"] != records[0]["device"]:  # a forced instruction set
            weights += ", " + record["device"].removeprefix("x86-64 ").split(",")[0]
        for row in record["results"]:
            lines.append(
                f"| {record['title']} | {weights} | {row['tokens']} | "
                f"{row['distinct_experts']:.0f} | {row['median_us']:.0f} | {row['gbps']:.1f} | {row['read_gbps']:.1f} | {row['gflops']:.0f} | "
                f"{row['limit_us']:.0f} | {100 * row['share']:.0f} % | {row['bound']} |")
    return "\n".join(lines)


def cpu_figures():
    """What the CPU backend was asked to reach beside what results/cpu holds."""
    def record(name):
        return json.loads((ROOT / "results/cpu" / f"qwen3-30b-a3b-{name}.json").read_text())

    def row(name, tokens):
        return next(row for row in record(name)["results"] if row["tokens"] == tokens)

    def peak(name, kind):
        limits = record(name)["limits"]
        return (limits["before"][kind] + limits["after"][kind]) / 2

    if not (ROOT / "results/cpu/qwen3-30b-a3b-mxfp4.json").exists():
        return "No record yet: `scripts/cpu_bench.sh build/demo/cli/switchyard` makes one."
    lines = []
    for name, asked in (("mxfp4", 85), ("int8", 85), ("bf16", 85), ("fp8_e4m3", 75)):
        read = row(name, 1)["read_gbps"]
        lines.append([f"{name}, T = 1", f"{asked} % of read bandwidth", f"{100 * row(name, 1)['share']:.0f} % of {read:.0f} GB/s"])
    lines.append(["mxfp4, T = 64", "11.5 ms", f"{row('mxfp4', 64)['median_us'] / 1000:.1f} ms at {row('mxfp4', 64)['read_gbps']:.0f} GB/s"])
    for name, asked, kind, unit in (("mxfp4", 58, "int8_gops", "VNNI"), ("int8", 58, "int8_gops", "VNNI"), ("bf16", 78, "f32_gflops", "FMA")):
        share = 100 * row(name, 1024)["gflops"] / peak(name, kind)
        lines.append([f"{name}, T = 1024", f"{asked} % of the {unit} peak", f"{share:.0f} % of {peak(name, kind):.0f} Gop/s"])
    for name in ("mxfp4", "int8"):
        for tokens in (1, 64, 1024):
            ratio = row(f"{name}-avx2", tokens)["median_us"] / row(name, tokens)["median_us"]
            lines.append([f"{name} with AVX2 only, T = {tokens}", "2.2 times the time", f"{ratio:.2f} times"])
    first = record("mxfp4")
    origin = f"{first['machine']['cpu']}, {first['limits']['before']['num_threads']} threads, commit {first['commit']}, Qwen3-30B-A3B."
    return f"{origin}\n\n" + table_of(["layer", "asked", "measured"], lines)


def cpu_ggml():
    """Ours, another library's milliseconds and their ratio by token count: a row per format of results/cpu/ggml and ik_llama."""
    parts = []
    for folder, options in (("ggml", "--pypi"), ("ik_llama", "--ik CHECKOUT")):
        records = [json.loads(p.read_text()) for p in sorted((ROOT / "results/cpu" / folder).glob("*.json"))]
        if not records:
            parts.append(f"No record beside {folder} yet: `scripts/ggml_compare.sh {options} --record` makes one.")
            continue
        first = records[0]
        tokens = [row["tokens"] for row in first["results"]]
        lines = [
            f"{first['machine']['cpu']}, {first['limits']['before']['num_threads']} threads, commit {first['commit']}, "
            f"{first['peer']}. Milliseconds: ours / theirs (ratio).",
            "",
            "| layer | weights | their weights | read GB/s | " + " | ".join(f"T = {t}" for t in tokens) + " |",
            "|---" * (len(tokens) + 4) + "|",
        ]
        for record in records:
            cells = [f"{row['ours_ms']:.3g} / {row['peer_ms']:.3g} ({row['peer_ms'] / row['ours_ms']:.1f})"
                     for row in record["results"]]
            read = [record["limits"][when]["read_gbps"] for when in ("before", "after")]
            lines.append(f"| {record['title']} | {record['format']} | {record['peer_weights'].split(' in ')[0]} | "
                         f"{min(read):.0f} to {max(read):.0f} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


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

    def label(row):
        scope = ", with its router and shared experts" if row.get("from_hidden") else ""
        return f"{row['model']}, {row['weights']} x {row['activations']}{scope}"

    table = by_tokens(record["results"], label, tokens)
    peers, peers_origin = gpu_record("layer_peers.json")
    if peers is None:
        return f"{origin}\n\n{table}"
    others = by_tokens(peers["results"], lambda row: f"{row['model']}, {row['peer']}", tokens)
    return f"{origin}\n\n{table}\n\nOther libraries' layers, timed the same way by `scripts/gpu_layer_peers.py`. {peers_origin}\n\n{others}"


def gpu_shapes():
    """Built-in shapes in their own formats."""
    record, origin = gpu_record("shapes.json")
    if record is None:
        return origin
    table = by_tokens(record["results"], lambda row: f"{row['model']}, {row['weights']} x {row['activations']}",
                      (1, 8, 64, 512, 4096, 16384))
    return f"{origin}\n\n{table}"


def gpu_steps():
    record, origin = gpu_record("steps.json")
    if record is None:
        return origin
    others = ("zeroing", "chunked", "one-shot", "generic", "route, then sort")
    rows = [row for row in record["results"] if not any(word in row["case"] for word in others)]
    table = by_tokens(rows, lambda row: f"{row['step']}: {row['case']}", (1, 64, 1024, 8192, 16384))
    return f"{origin}\n\n{table}"


def figures(record, step):
    """Rows of one step by (case, tokens)."""
    return {(row["case"], row["tokens"]): row for row in record["results"] if row["step"] == step}


def table_of(head, lines):
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|"] +
                     ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines])


def with_share(row):
    return [f"{row['us']:.2f}", f"{row['limit_us']:.2f}", f"{100 * row['share_of_limit']:.0f} %"] if row else ["", "", ""]


def sort_peers():
    """The published figures of other sorts beside ours, model by model."""
    record, origin = gpu_record("steps.json")
    if record is None:
        return origin
    published = json.loads((ROOT / "results/published/moe_sorting_mi350x.json").read_text())
    ours = figures(record, "sort")
    parts = [f"{origin} Beside it {published['what']} ({published['source']})."]
    for model in published["models"]:
        shape = f"E{model['experts']} K{model['top_k']} unit {model['unit']}"
        lines = []
        for row in model["rows"]:
            def find(suffix):
                return next((ours[key] for key in ours if key[1] == row["tokens"] and key[0].endswith(shape + suffix)), None)
            lines.append([row["tokens"], row["ck"], row["opus"], row["flydsl"], *with_share(find("")),
                          *with_share(find(", zeroing 4096 bf16"))])
        parts.append(f"**{model['name']}**, {shape}\n\n" + table_of(
            ["T", "CK", "OPUS", "FlyDSL", "ours", "copy", "share", "with zeroing", "memset", "share"], lines))
    return "\n\n".join(parts)


def step_table(step, peer_cases):
    """Every case and size of a step; peer_cases names torch's way of doing some of them."""
    record, origin = gpu_record("steps.json")
    if record is None:
        return origin
    peers, _ = gpu_record("peers.json")
    torch = figures(peers, step) if peers else {}
    version = f" Peer: torch {peers['torch']}, same run." if torch else ""
    lines = []
    for (case, tokens), row in figures(record, step).items():
        peer = torch.get((peer_cases.get(case), tokens))
        lines.append([case, tokens, *with_share(row), f"{peer['us']:.2f}" if peer else ""])
    return f"{origin}{version}\n\n" + table_of(["case", "T", "us", "limit", "share", "torch"], lines)


def gpu_routing():
    return step_table("route", {"softmax E256 K8 f32": "topk + softmax, E256 K8 f32"})


def gpu_route_sort():
    """One launch for routing and sorting beside two."""
    record, origin = gpu_record("steps.json")
    if record is None:
        return origin
    rows = figures(record, "route+sort")
    separate = ", route, then sort"
    lines = []
    for (case, tokens), row in rows.items():
        if case.endswith(separate) or (case + separate, tokens) not in rows:
            continue
        other = rows[(case + separate, tokens)]["us"]
        lines.append([case, tokens, f"{row['us']:.2f}", f"{other:.2f}", f"{other / row['us']:.2f}"])
    return f"{origin}\n\n" + table_of(["case", "T", "one launch, us", "two launches, us", "ratio"], lines)


def gpu_quantisation():
    tables = step_table("quantize", {"bf16 to fp8 1x128": "compiled, bf16 to fp8 1x128, 7168"})
    return tables + "\n\nActivation and quantisation of a split-K intermediate:\n\n" + \
        step_table("activate_quantize", {}).split("\n\n", 1)[1]


def gpu_combine():
    return step_table("combine", {"K8 H7168 bf16": "bmm, K8 H7168 bf16"})


def gpu_tests():
    record, origin = gpu_record("tests.json")
    if record is None:
        return origin
    lines = [origin, "", f"{record['tests'] - record['failures']} of {record['tests']} tests pass."]
    lines += [f"compute-sanitizer {tool}: {found['tests']} tests, {found['errors']} errors" +
              (f", {found['unfinished_shards']} shards unfinished." if found["unfinished_shards"] else ".")
              for tool, found in sorted(record["sanitizers"].items())]
    return "\n".join(lines)


def gpu_fixtures():
    record, origin = gpu_record("tests.json")
    if record is None or "fixtures" not in record:
        return origin
    lines = [[name, *text.split()] for name, text in sorted(record["fixtures"].items())]
    return f"{origin}\n\n" + table_of(["fixture", "f32", "bf16", "bf16, the layer's own activations"], lines)


def gpu_prefill():
    """How well the cost model chooses among the compiled tiles, per kind of operands."""
    record, origin = gpu_record("prefill.json")
    if record is None:
        return origin
    cases = {}
    for row in record["results"]:
        cases.setdefault((row["operands"], row["model"], row["tokens"]), []).append(row)
    taken = {key: tiles for key, tiles in cases.items() if not tiles[0].get("decode")}
    lines = [f"{origin} {len({model for _, model, _ in cases})} models, T = 1 to 16384: {len(cases)} batches, of which layers give "
             f"{len(taken)} to these kernels.", "",
             "| operands | batches | chosen / best tiles: mean | above 1.15 | worst | predicted / measured, middle 90 % |",
             "|---|---|---|---|---|---|"]
    for operands in sorted({key[0] for key in cases}):
        losses, fits = [], []
        for (kind, model, tokens), tiles in taken.items():
            if kind != operands:
                continue
            # The sort's unit is the least height that both tiles divide: at most 384 rows (core/grouped_gemm_config.h).
            pairs = [(first["gate_up_us"] + second["down_us"], first, second) for first in tiles for second in tiles
                     if math.lcm(first["block_m"], second["block_m"]) <= 384]
            us, first, second = next(pair for pair in pairs if pair[1]["gate_up_chosen"] and pair[2]["down_chosen"])
            which = ", ".join(f"{tile['block_m']} x {tile['block_n']}" for tile in (first, second))
            losses.append((us / min(pair[0] for pair in pairs), f"{model}, T = {tokens}, {which}"))
            fits.append((first["gate_up_predicted_us"] + second["down_predicted_us"]) / us)
        fits.sort()
        worst, which = max(losses)
        lines.append(f"| {operands} | {len(losses)} | {sum(loss for loss, _ in losses) / len(losses):.3f} | "
                     f"{sum(loss > 1.15 for loss, _ in losses)} | {worst:.2f} ({which}) | "
                     f"{fits[len(fits) // 20]:.2f} to {fits[-1 - len(fits) // 20]:.2f} |")
    return "\n".join(lines)


def gpu_prefill_rates():
    """The prefill GEMMs of two layers in bursts and sustained."""
    record, origin = gpu_record("prefill.json")
    if record is None or "rates" not in record:
        return "No record yet: `scripts/gpu_check.sh` makes one."

    def rate(row, how):
        tflops, peak = row[f"{how}_tflops"], row[f"{how}_peak_tflops"]
        return [f"{tflops:.0f}", f"{peak:.0f}", f"{100 * tflops / peak:.0f} %"]

    lines = [[row["model"], row["operands"], row["gemm"], f"{row['block_m']} x {row['block_n']}", f"{row['burst_us']:.0f}",
              *rate(row, "burst"), *rate(row, "sustained")] for row in record["rates"]]
    return f"{origin} T = {record['rates'][0]['tokens']}.\n\n" + table_of(
        ["layer", "operands", "GEMM", "tile", "us, burst", "burst", "peak", "share", "sustained", "peak", "share"], lines)


def gpu_stages():
    """gate_up and down alone on published shapes."""
    record, origin = gpu_record("stages.json")
    if record is None:
        return origin
    lines = [[row["source"], row["stage"], f"{row['weights']} x {row['activations']}", row["tokens"], row["unit_size"], f"{row['us']:.1f}",
              f"{row['read_us']:.1f}", f"{100 * row['read_us'] / row['us']:.0f} %", f"{row['flops'] / row['us'] * 1e-6:.0f}",
              row.get("published_us", "")] for row in record["results"]]
    return f"{origin}\n\n" + table_of(["source", "stage", "operands", "T", "blocks of", "us", "read", "share", "TFLOP/s", "published"], lines)


def gpu_accuracy():
    """What formats cost, against three references."""
    record, origin = gpu_record("accuracy.json")
    if record is None:
        return origin
    lines = [[row["case"], row["tokens"], *(f"{row[key]:.2e}" for key in ("same_rounding", "exact_activations", "unquantised", "weights_alone"))]
             for row in record["results"]]
    return f"{origin}\n\n" + table_of(["formats", "T", "same rounding", "exact activations", "unquantised", "weights alone, unquantised"], lines)


def gpu_kernels():
    """Registers and stack by kernel template."""
    record, origin = gpu_record("kernels.json")
    if record is None:
        return origin
    families = {}
    for row in record["results"]:
        families.setdefault(row["kernel"].split("<")[0], []).append(row)
    lines = []
    for name, rows in sorted(families.items()):
        registers = sorted(row["registers"] for row in rows)
        stacked = [row for row in rows if row["stack_bytes"]]
        worst = max(rows, key=lambda row: row["stack_bytes"])
        lines.append([name, len(rows), f"{registers[0]} to {registers[-1]}" if registers[0] != registers[-1] else registers[0],
                      len(stacked), f"{worst['stack_bytes']}, `{worst['kernel']}`" if stacked else 0])
    return f"{origin}\n\n" + table_of(["kernel", "instances", "registers", "with a stack", "largest stack, bytes"], lines)


TABLES = {
    "README.md": {"cpu-bench": cpu_bench, "cpu-ggml": cpu_ggml, "gpu-layers": gpu_layers, "gpu-steps": gpu_steps},
    "docs/measured.md": {"cpu-figures": cpu_figures, "sort-peers": sort_peers, "gpu-routing": gpu_routing, "gpu-route-sort": gpu_route_sort,
                         "gpu-quantisation": gpu_quantisation, "gpu-combine": gpu_combine, "gpu-shapes": gpu_shapes, "gpu-prefill": gpu_prefill,
                         "gpu-prefill-rates": gpu_prefill_rates, "gpu-stages": gpu_stages, "gpu-kernels": gpu_kernels, "gpu-accuracy": gpu_accuracy, "gpu-tests": gpu_tests,
                         "gpu-fixtures": gpu_fixtures},
}


def main():
    for file, tables in TABLES.items():
        path = ROOT / file
        old = text = path.read_text()
        for name, table in tables.items():
            pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.S)
            if not pattern.search(text):
                sys.exit(f"{file} has no table {name}")
            text = pattern.sub(lambda match: match[1] + table() + "\n" + match[2], text)
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
        elif text != old:
            sys.exit(f"{file}'s tables differ from results/; run scripts/readme_tables.py")
    if "--check" in sys.argv[1:]:
        print("the tables are those of results/")


if __name__ == "__main__":
    main()
