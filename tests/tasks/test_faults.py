"""A small part of the fault campaign; `python benchmarks/store_faults.py` is the whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAULTS = 20


def test_faults_between_store_and_s3(s3_service: object, tmp_path: Path) -> None:
    """`s3_service` only says whether there is an S3 server to start."""
    command = [sys.executable, "benchmarks/store_faults.py", "--s3", str(FAULTS), "--server", "0", "--workers", "2"]
    done = subprocess.run([*command, "--json", str(tmp_path / "faults.json")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    reports = json.loads((tmp_path / "faults.json").read_text())
    assert len(reports) == len({(report["kind"], report["phase"]) for report in reports}) == FAULTS
    assert {report["outcome"] for report in reports} == {"recovered", "error", "recomputed"}
