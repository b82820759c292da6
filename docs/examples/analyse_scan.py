"""Send a scan, have it analysed, fetch the answer: all that a hospital's script needs, with httpx alone.

python analyse_scan.py scan.nii.gz    (TOMOTRAIN_URL, TOMOTRAIN_API_KEY; safe to run again after any failure)
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import httpx

TRIES, PAUSE_S = 60, 2.0


def ask(http: httpx.Client, method: str, path: str, **request) -> dict:
    """One request; while the service is away or busy, again: each of them may come twice."""
    for _ in range(TRIES):
        try:
            answer = http.request(method, path, **request)
            if answer.is_success:
                return answer.json()
            if answer.status_code not in (429, 503):
                sys.exit(f"{answer.json()['title']}: {answer.json()['detail']}")
        except httpx.TransportError as error:
            print(f"{error}; trying again", file=sys.stderr)
        time.sleep(PAUSE_S)
    sys.exit(f"{method} {path}: no answer after {TRIES} tries")


scan = Path(sys.argv[1]).read_bytes()
once = {"Idempotency-Key": hashlib.sha256(scan).hexdigest()}
key = {"Authorization": f"Bearer {os.environ['TOMOTRAIN_API_KEY']}"}
with httpx.Client(base_url=os.environ["TOMOTRAIN_URL"], headers=key, timeout=300) as http:
    volume = ask(http, "POST", "/v1/volumes", content=scan, headers=once)["volume"]
    wanted = {"kind": "embed", "volume_id": volume["id"], "parameters": {}}
    job = ask(http, "POST", "/v1/jobs", json=wanted, headers=once)
    while job["state"] not in ("succeeded", "failed", "cancelled"):
        time.sleep(PAUSE_S)
        job = ask(http, "GET", job["links"]["self"])
    print(json.dumps(ask(http, "GET", f"/v1/jobs/{job['id']}/result"), indent=2))
