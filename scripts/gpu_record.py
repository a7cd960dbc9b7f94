#!/usr/bin/env python3
"""Turns the logs of gpu_check.sh into records that say where they come from.

Usage: gpu_record.py LOG_FOLDER OUT_FOLDER COMMIT
"""
import datetime
import json
import pathlib
import re
import subprocess
import sys


def machine():
    fields = ["name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit"]
    query = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
                           capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return dict(zip(fields, (value.strip() for value in query.split(","))))


def sanitizer(log, tool):
    """Tests and errors of all shards; a shard without a summary did not finish."""
    found = [re.findall(r"SUMMARY: .*?(\d+) errors?", path.read_text()) for path in log.glob(f"{tool}.*.log")]
    return {"tests": sum(json.loads(path.read_text())["tests"] for path in log.glob(f"{tool}.*.json")),
            "errors": sum(int(count) for counts in found for count in counts),
            "unfinished_shards": sum(not counts for counts in found)}


def main():
    log, out, commit = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
    origin = {"commit": commit, "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
              "machine": machine()}

    def write(name, record):
        rows = record.get("results", [])  # one a line: thousands of them stay readable
        text = json.dumps({**record, **origin, **({"results": []} if rows else {})}, indent=1)
        lines = ",\n".join("  " + json.dumps(row) for row in rows)
        (out / name).write_text(text.replace('"results": []', f'"results": [\n{lines}\n ]') + "\n")

    shards = [json.loads(path.read_text()) for path in sorted(log.glob("tests.*.json"))]
    suites = {}
    for suite in (suite for shard in shards for suite in shard["testsuites"]):
        total = suites.setdefault(suite["name"], {"tests": 0, "failures": 0})
        for count in total:
            total[count] += suite[count]
    # What a test says besides passing: gtest's own keys aside.
    own = {"name", "file", "line", "status", "result", "timestamp", "time", "classname", "failures"}
    fixtures = {key: value for shard in shards for suite in shard["testsuites"] if suite["name"] == "GpuFixtures"
                for test in suite["testsuite"] for key, value in test.items() if key not in own}
    sanitizers = {tool: sanitizer(log, tool) for tool in ("memcheck", "racecheck", "initcheck")
                  if list(log.glob(f"{tool}.*.log"))}
    write("tests.json", {"tests": sum(suite["tests"] for suite in suites.values()),
                         "failures": sum(suite["failures"] for suite in suites.values()),
                         "suites": suites, "sanitizers": sanitizers, "fixtures": fixtures})
    for name in ("limits.json", "steps.json", "prefill.json", "stages.json", "kernels.json", "accuracy.json", "peers.json", "layer_peers.json", "shapes.json"):
        if (log / name).exists():
            write(name, json.loads((log / name).read_text()))
    layers = [json.loads(path.read_text()) for path in sorted(log.glob("layers.*.json"))]
    if layers:
        write("layers.json", {"device": layers[0]["device"], "results": [r for run in layers for r in run["results"]]})


if __name__ == "__main__":
    main()
